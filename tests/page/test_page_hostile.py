"""Broken, half-written and hostile incidents are shown as what they are, and harm nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PHONE, open_all, overflow, run, settled
from conftest import Look
from hostile_incidents import KINDS, MARK, OUTSIDE
from playwright.sync_api import Page, expect
from view_rig import Viewer

# What a reader could take for something else: escape sequences, bidirectional overrides, what cannot be seen.
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
Hostile = tuple[Viewer, dict[str, str]]


@pytest.fixture(scope="module")
def served(hostile: tuple[Path, dict[str, str]]) -> Iterator[Hostile]:
    folder, paths = hostile
    with Viewer(folder) as viewer:
        yield viewer, paths


def test_they_are_listed(look: Look, served: Hostile) -> None:
    """Each has its row; what cannot be read says why."""
    viewer, paths = served
    page = look(f"http://127.0.0.1:{viewer.api_port}/").page
    settled(page)
    for row in viewer.rows():
        link = page.locator(f"main a[href={json.dumps('#/incident/' + row['path'])}]").first
        expect(link).to_be_visible()
    for name in ("half", "gigabyte", "deep", "record is a link"):
        assert paths[name] in {row["path"] for row in viewer.rows() if row["unreadable"]}
    expect(page.locator("main").get_by_text("1073741824 bytes, more than").first).to_be_visible()
    assert_harmless(page)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_shown_and_harms_nothing(look: Look, served: Hostile, kind: str) -> None:
    """Every part of it is opened, on a phone: no script of its own runs, no element is its own, no link leads away."""
    viewer, paths = served
    page = look(f"http://127.0.0.1:{viewer.api_port}/#/incident/{paths[kind]}", viewport=PHONE).page
    opened = list(open_all(page))
    assert opened or kind not in ("markup", "wrong within")
    assert_harmless(page)
    assert overflow(page) <= 0
    unreadable = viewer.incidents(f"/{paths[kind]}").json()["unreadable"]
    if unreadable:
        expect(page.locator("main")).to_contain_text(unreadable)


def assert_harmless(page: Page) -> None:
    """That no dialog came and nothing was asked for elsewhere, `look` itself asserts."""
    assert page.title() != MARK
    assert page.locator(f"#{MARK}").count() == 0
    text = page.locator("body").inner_text()
    assert OUTSIDE not in text
    assert not _ODD.search(text.replace("\n", "").replace("\t", "")), _ODD.search(text)
    hrefs = run(page, "[...document.querySelectorAll('[href], [src]')].map(e => e.href?.baseVal ?? e.href ?? e.src)")
    assert [href for href in hrefs if not href.startswith(f"{page.url.partition('#')[0]}")] == []
    assert (
        run(page, "document.querySelectorAll('script:not([type=module]), iframe, object, embed, main img').length") == 0
    )
