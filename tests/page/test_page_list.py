"""The list: what the API says, found again by filters and words, page by page, and live."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import Seen, settled
from conftest import Look
from dump_folders import incident, put
from playwright.sync_api import Locator, Page, expect
from real_incidents import MANY, Volume, beside
from sidecar_process import Sidecar, eventually
from view_rig import Viewer

from sidecar.demo.standin import StandIn


def rows_of(page: Page) -> Locator:
    return page.locator("main tbody tr")


def paths_of(page: Page) -> list[str]:
    """The incidents of the rows, in their order."""
    links = rows_of(page).locator("a").all()
    return [str(link.get_attribute("href")).removeprefix("#/incident/") for link in links]


@pytest.fixture(scope="module")
def full(many: Path) -> Iterator[Viewer]:
    with Viewer(many) as viewer:
        viewer.rows(limit=500)  # once: it then has them in memory, as a viewer that has run for a while
        yield viewer


@pytest.fixture
def crowded(look: Look, full: Viewer) -> Seen:
    seen = look(f"http://127.0.0.1:{full.api_port}/")
    settled(seen.page)
    return seen


def test_each_row_says_what_the_api_says(look: Look, viewer: Viewer) -> None:
    """Newest first: the sentence, reason, first failed rank and cause, pod, engine, size."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/").page
    settled(page)
    told = viewer.rows()
    assert len(told) == 3
    assert paths_of(page) == [row["path"] for row in told] == sorted(paths_of(page), key=_id, reverse=True)
    for row, shown in zip(told, rows_of(page).all(), strict=True):
        for words in (row["sentence"], row["reason"], row["rank"], row["cause"], row["engine"], row["pod"]["name"]):
            if words:
                expect(shown).to_contain_text(words)
        expect(shown).to_contain_text(row["pod"]["namespace"])
        expect(shown).to_contain_text(re.compile(r"\d KiB"))


def test_a_row_opens_its_incident_and_back_comes_back(look: Look, viewer: Viewer, volume: Volume) -> None:
    page = look(f"http://127.0.0.1:{viewer.api_port}/").page
    rows_of(page).locator(f"a[href='#/incident/{volume.death}']").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("TP2")
    assert page.url.endswith(volume.death)
    page.go_back()
    expect(rows_of(page)).to_have_count(3)


def test_ten_thousand_are_opened_at_once(look: Look, full: Viewer) -> None:
    """Of ten thousand the first page is asked for and drawn, and no more."""
    page = look(f"http://127.0.0.1:{full.api_port}/").page
    expect(rows_of(page)).to_have_count(50)
    expect(page.locator("main")).to_contain_text(str(MANY))


def test_pages_follow_one_another(crowded: Seen, full: Viewer) -> None:
    """Older, and back to the newest; the address of a page opens that page."""
    page = crowded.page
    expect(rows_of(page)).to_have_count(50)
    first = paths_of(page)
    told = full.incidents(limit="100").json()["incidents"]
    assert first == [row["path"] for row in told[:50]]
    page.get_by_role("link", name="Older incidents").click()
    expect(rows_of(page).locator("a").first).to_have_attribute("href", f"#/incident/{told[50]['path']}")
    assert paths_of(page) == [row["path"] for row in told[50:]]
    page.reload()
    expect(rows_of(page).locator("a").first).to_have_attribute("href", f"#/incident/{told[50]['path']}")
    page.get_by_role("link", name="Back to the newest").click()
    expect(rows_of(page).locator("a").first).to_have_attribute("href", f"#/incident/{first[0]}")


FILTERS: list[tuple[str, dict[str, str]]] = [
    ("Reason", {"reason": "EngineStalled"}),
    ("Cause", {"cause": "sigkill"}),
    ("Pod", {"pod": "llm-7"}),
    ("First failed rank", {"rank": "TP6"}),
    ("Search", {"q": "llm-13 livenessfailed"}),
]


@pytest.mark.parametrize(("label", "filters"), FILTERS)
def test_filters_change_the_rows_and_the_address(
    crowded: Seen, full: Viewer, label: str, filters: dict[str, str]
) -> None:
    """The rows are the API's for that filter; the address that they give shows the same to somebody else."""
    page = crowded.page
    ((key, value),) = filters.items()
    (newest,) = full.incidents(limit="1").json()["incidents"]
    told = [row["path"] for row in full.incidents(limit="50", **filters).json()["incidents"]]
    field = page.get_by_label(label, exact=label != "Search")
    if not field.is_visible():
        page.get_by_text("More filters").click()
    if field.evaluate("e => e.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)
    expect(rows_of(page).locator("a").last).to_have_attribute("href", f"#/incident/{told[-1]}")
    assert paths_of(page) == told
    asked = parse_qs(urlsplit(page.url).fragment.partition("?")[2])
    assert asked == {key: [value]}
    page.reload()
    expect(rows_of(page).locator("a").last).to_have_attribute("href", f"#/incident/{told[-1]}")
    assert paths_of(page) == told
    page.get_by_role("button", name="No longer filter by").click()
    expect(rows_of(page).locator("a").first).to_have_attribute("href", re.compile(_id(newest["path"])))


def test_a_filter_that_the_api_refuses_says_why(look: Look, viewer: Viewer) -> None:
    """In the API's own words; nothing is shown that nobody asked for."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/#/?since=yesterday", expected=(r"status of 400",)).page
    expect(page.get_by_role("alert")).to_contain_text("it takes a time such as")
    expect(rows_of(page)).to_have_count(0)


def test_a_new_incident_appears_by_itself(look: Look, tmp_path: Path) -> None:
    """On a viewer: it comes, changes and goes without a click."""
    put(tmp_path / "prod" / "llm-0", incident(1.0, rank="TP1"))
    with Viewer(tmp_path) as viewer:
        page = look(f"http://127.0.0.1:{viewer.api_port}/").page
        expect(rows_of(page)).to_have_count(1)
        expect(page.locator("#live")).to_have_text("live")
        home = put(tmp_path / "prod" / "llm-0", incident(0.0, rank="TP7"), sealed=False)
        row = rows_of(page).filter(has_text="TP7")
        expect(row).to_contain_text("not sealed")
        record = json.loads((home / "incident.json").read_text())
        (home / "incident.json").write_text(json.dumps(record | {"sealed": True}))
        expect(row).not_to_contain_text("not sealed")
        home.rename(tmp_path / "elsewhere")
        expect(row).to_contain_text("removed")


def test_a_death_is_seen_on_the_page_beside_the_engine(look: Look, tmp_path: Path) -> None:
    """On a sidecar: the ranks as they are, then the one that died, and the incident, with no click and no reload."""
    with ExitStack() as stack:
        engine, sidecar = small_engine(stack, tmp_path)
        page = look(url_of(sidecar)).page
        settled(page)
        expect(page.locator("main")).to_contain_text("serving")
        expect(page.locator("#live")).to_have_text("live")
        assert rows_of(page).filter(has_text="TP1").count() == 0
        engine.kill("TP1")
        row = page.locator("main tr", has=page.locator("a[href^='#/incident/']"))
        expect(row).to_contain_text("TP1")
        eventually(lambda: engine.collect() or _sealed(sidecar), "the incident sealed")
        expect(row).to_contain_text("TP1 was killed by signal 9")
        row.get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("TP1 was killed by signal 9")


def test_evidence_is_asked_for_on_the_page(look: Look, tmp_path: Path) -> None:
    """Beside an engine a button saves it; the incident that comes is a Manual one, and nothing is killed."""
    with ExitStack() as stack:
        engine, sidecar = small_engine(stack, tmp_path)
        page = look(url_of(sidecar)).page
        page.get_by_role("button", name="Save the evidence now").click()
        expect(page.locator("main tr", has_text="Manual")).to_be_visible()
        eventually(lambda: _sealed(sidecar), "the incident sealed")
        assert len(engine.alive()) == len(engine.processes)


def small_engine(stack: ExitStack, folder: Path) -> tuple[StandIn, Sidecar]:
    """Two ranks with a Rankguard beside them, both up."""
    engine = stack.enter_context(StandIn(tp=2, light=True, detokenizer=False))
    sidecar = stack.enter_context(beside(folder / "prod" / "llm-0", engine.process.pid))
    engine.wait_ready()
    return engine, sidecar.wait_serving()


def url_of(sidecar: Sidecar) -> str:
    return f"http://{sidecar.wait('listening', process='supervisor')['api_listen']}/"


def _sealed(sidecar: Sidecar) -> bool:
    found = [json.loads((folder / "incident.json").read_text()) for folder in sidecar.incidents()]
    return bool(found) and all(record["sealed"] for record in found)


def _id(path: str) -> str:
    return path.rpartition("/")[2]
