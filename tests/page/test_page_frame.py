"""What is around every view: signing in, the colours, links that lead nowhere, what the port sends."""

from __future__ import annotations

import httpx
from browser import run, settled
from conftest import TOKEN, Look, sign_in
from playwright.sync_api import expect
from view_rig import Viewer

REFUSED = r"status of 401"  # what the browser itself says of each answer


def test_it_asks_for_the_token(look: Look, writing: Viewer) -> None:
    """The shell holds nothing; a wrong token gets nowhere; the right one is kept for this tab alone."""
    url = f"http://127.0.0.1:{writing.api_port}/"
    page = look(url, expected=(REFUSED,)).page
    sign_in(page, "wrong")
    expect(page.get_by_text("That was not it.")).to_be_visible()
    assert "llama" not in page.content()
    sign_in(page)
    expect(page.get_by_text("llama-70b-0").first).to_be_visible()
    page.reload()
    expect(page.get_by_text("llama-70b-0").first).to_be_visible()
    assert TOKEN not in page.content()
    assert not [cookie for cookie in page.context.cookies() if cookie]
    assert run(page, "Object.values(localStorage).join()").find(TOKEN) == -1
    other = page.context.new_page()
    other.goto(url)
    expect(other.get_by_label("Token", exact=True)).to_be_visible()


def test_the_colours_can_be_chosen(look: Look, viewer: Viewer) -> None:
    """Those of the system at first; the button goes through light and dark, and the choice stays."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/", color_scheme="dark").page
    settled(page)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark = run(page, background)
    button = page.get_by_role("button", name="Colours")
    button.click()
    assert run(page, background) != dark
    page.reload()
    settled(page)
    assert run(page, background) != dark
    button.click()
    assert run(page, background) == dark
    expect(button).to_have_accessible_name("Colours: dark")


def test_who_closes_the_question_can_sign_in_later(look: Look, writing: Viewer) -> None:
    page = look(f"http://127.0.0.1:{writing.api_port}/", expected=(REFUSED,)).page
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sign in").click()
    sign_in(page)
    expect(page.get_by_text("llama-70b-0").first).to_be_visible()


def test_links_that_lead_nowhere(look: Look, viewer: Viewer) -> None:
    """Each says so in words, and leads back to the list."""
    page = look(f"http://127.0.0.1:{viewer.api_port}/", expected=(r"status of 404",)).page
    for route in ("#/nothing", "#/incident/", "#/incident/../../etc/passwd", "#/incident/prod/x/20261120T235959.123Z-a",
                  "#/incident/%ff", "#/incident/%2e%2e%2f", "#/incident/../about",
                  "#/incident/a/%2e%2e/../volume"):  # fmt: skip
        page.goto(f"http://127.0.0.1:{viewer.api_port}/{route}")
        expect(page.get_by_role("heading", name="This cannot be shown")).to_be_visible()
        page.get_by_role("link", name="All incidents").click()
        expect(page.get_by_text("llama-70b-0").first).to_be_visible()


def test_what_the_port_sends_with_the_page(viewer: Viewer) -> None:
    """A policy that lets nothing in but the page's own files, and none of them may be taken for something else."""
    answer = viewer.ask("/")
    assert answer.status_code == 200
    policy = dict(
        part.strip().split(" ", 1)
        for part in answer.headers["content-security-policy"].split(";")
        if " " in part.strip()
    )
    assert policy["default-src"] == "'none'"
    assert {policy[key] for key in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[key] for key in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    links = httpx.URL(f"http://127.0.0.1:{viewer.api_port}/")
    for file, kind in (
        ("page/js/main.js", "text/javascript"),
        ("page/css/base.css", "text/css"),
        ("page/icon.svg", "image/svg+xml"),
    ):
        sent = viewer.client.get(links.join(file))
        assert sent.status_code == 200
        assert sent.headers["content-type"].startswith(kind)
        assert sent.headers["x-content-type-options"] == "nosniff"
    for path in (
        "/page/",
        "/page/js",
        "/page/../web/gate.py",
        "/page/%2e%2e/gate.py",
        "/page/js/%2e%2e/%2e%2e/../gate.py",
    ):
        assert viewer.ask(path).status_code == 404
