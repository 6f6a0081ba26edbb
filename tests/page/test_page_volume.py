"""The volume: what is used and by whom, what goes next; and what may be changed, by whom."""

from __future__ import annotations

import re

from browser import settled
from conftest import Look, sign_in
from playwright.sync_api import Page, expect
from real_incidents import Volume
from view_rig import Viewer


def signed_in(look: Look, viewer: Viewer, route: str = "") -> Page:
    page = look(f"http://127.0.0.1:{viewer.api_port}/{route}", expected=("status of 401",)).page
    sign_in(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    return settled(page)


def test_it_says_what_the_api_says(look: Look, viewer: Viewer) -> None:
    """Pods with their incidents and bytes, the whole, and what retention drops next."""
    told = viewer.ask("/api/v1/volume").json()
    page = look(f"http://127.0.0.1:{viewer.api_port}/#/volume").page
    settled(page)
    main = page.locator("main")
    assert {pod["pod"] for pod in told["pods"]} == {"llama-70b-0", "mixtral-1", "embedder-0"}
    for pod in told["pods"]:
        row = page.locator("table.pods tr", has_text=pod["pod"])
        expect(row).to_contain_text(pod["namespace"])
        expect(row.get_by_role("cell").first).to_contain_text(str(pod["incidents"]))
        for step in pod["next"]:
            expect(page.locator("table.next tr", has_text=step["path"].rpartition("/")[2])).to_have_count(1)
    expect(main).to_contain_text(f"{told['incidents']} incidents")
    expect(main).to_contain_text(told["folder"])
    page.locator("table.pods").get_by_role("link", name="mixtral-1").click()
    expect(page.locator("main tbody tr")).to_have_count(1)


def test_nothing_can_be_changed_by_default(look: Look, viewer: Viewer, volume: Volume) -> None:
    """No button that pins or deletes is there."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/").page
    for route in ("#/", "#/volume", f"#/incident/{volume.death}"):
        page.goto(f"http://127.0.0.1:{viewer.api_port}/{route}")
        settled(page)
        expect(page.get_by_role("button", name=re.compile("^(Pin|Unpin|Delete)"))).to_have_count(0)


def test_an_incident_is_pinned_and_deleted(look: Look, writing: Viewer, volume: Volume) -> None:
    """With --write and the token. Before one is deleted the page asks; whoever says no keeps it."""
    page = signed_in(look, writing, f"#/incident/{volume.death}")
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    assert writing.incidents(f"/{volume.death}").json()["pinned"] is True
    page.get_by_role("button", name="Unpin").click()
    expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()
    assert writing.incidents(f"/{volume.death}").json()["pinned"] is False
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    assert writing.incidents(f"/{volume.death}").status_code == 200
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator("main tbody tr")).to_have_count(2)
    assert writing.incidents(f"/{volume.death}").status_code == 404
