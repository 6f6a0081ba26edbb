"""The page is for everybody: with a screen reader, a keyboard, a phone, in the dark, and with no network behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import PHONE, findings, open_all, overflow, settled
from conftest import Look
from playwright.sync_api import Locator, Page, expect
from real_incidents import Volume
from view_rig import Viewer


def parts(page: Page, viewer: Viewer, volume: Volume) -> Iterator[str]:
    """Every view, as it opens and then each of its parts. That no request leaves the machine, `look` asserts."""
    routes = {"list": "#/", "volume": "#/volume", "death": f"#/incident/{volume.death}",
              "stall": f"#/incident/{volume.stall}", "nothing": "#/nothing"}  # fmt: skip
    for name, route in routes.items():
        page.goto(f"http://127.0.0.1:{viewer.api_port}/{route}")
        settled(page)
        yield name
        for part in open_all(page):
            yield f"{name}, {part}"


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))])
def test_no_barriers(look: Look, viewer: Viewer, volume: Volume, scheme: str, rules: tuple[str, ...]) -> None:
    """axe finds nothing serious or critical in any part of any view; in the dark too, where colours alone differ.

    Of the long views each part is looked at once: the smallest incident as a whole, of the hang what only it has.
    """
    page = look(f"http://127.0.0.1:{viewer.api_port}/", color_scheme=scheme).page
    found: dict[str, list[str]] = {}
    for name, route in {"list": "#/", "volume": "#/volume", "memory": f"#/incident/{volume.memory}"}.items():
        page.goto(f"http://127.0.0.1:{viewer.api_port}/{route}")
        *_, last = ["", *open_all(page)]
        found[f"{name} {last}"] = findings(page, rules=rules)
    page.goto(f"http://127.0.0.1:{viewer.api_port}/#/incident/{volume.stall}")
    settled(page)
    found["timeline"] = findings(page, "#timeline", rules)
    found["metrics"] = findings(page, "#metrics", rules)
    for tab in page.get_by_role("tab").all():
        tab.click()
        settled(page)
        found[tab.inner_text()] = findings(page, "[role=tabpanel]:not([hidden])", rules)
    page.get_by_role("button", name="Copy for an issue").click()
    found["copy"] = findings(page, "dialog", rules)
    assert {part: problems for part, problems in found.items() if problems} == {}
    assert len(found) >= 10


def test_on_a_phone(look: Look, viewer: Viewer, volume: Volume) -> None:
    """Nothing is wider than the screen, so that a person scrolls in one direction."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/", viewport=PHONE, is_mobile=True, has_touch=True).page
    wide = {part: pixels for part in parts(page, viewer, volume) if (pixels := overflow(page)) > 0}
    assert wide == {}


def test_by_keyboard_alone(look: Look, viewer: Viewer, volume: Volume) -> None:
    """Tab, Enter and the arrows reach every view and every part of it."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/").page
    settled(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    row = page.locator(f"main a[href='#/incident/{volume.stall}']").first
    go_to(page, row)
    page.keyboard.press("Enter")
    settled(page)
    tabs = page.get_by_role("tab")
    go_to(page, tabs.first)
    for number in range(tabs.count()):
        expect(tabs.nth(number)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel").locator("visible=true").first).to_be_visible()
        page.keyboard.press("ArrowRight")
    for link in page.get_by_role("navigation", name="Sections").get_by_role("link").all():
        link.focus()
        page.keyboard.press("Enter")
        title = page.locator("h2:focus")
        expect(title).to_be_in_viewport()
        (top, under) = (title.bounding_box(), link.bounding_box())
        assert top is not None
        assert under is not None
        assert top["y"] >= under["y"] + under["height"], "the title is under the bar that leads to it"
    page.get_by_role("link", name="Volume").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Volume", level=1)).to_be_visible()
    go_to(page, page.get_by_role("button", name="Look again"))


def go_to(page: Page, wanted: Locator, most: int = 200) -> None:
    """Press Tab until it has the focus. Raises `AssertionError` where it is never reached."""
    for _ in range(most):
        if wanted.evaluate("e => e === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} is not reached by Tab")
