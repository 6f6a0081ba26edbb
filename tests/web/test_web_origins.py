"""A page of another origin, behind the same port-forward: it reads nothing and does nothing."""

from __future__ import annotations

import pytest
from web_harness import web_process

WINDOW = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture(scope="module", params=["", "right"], ids=["no-token", "token"])
def asked(request, tmp_path_factory):
    """Asks with the token, where one is needed: it must not help a stranger."""
    folder = tmp_path_factory.mktemp("origins")
    (folder / "token").write_text("right")
    settings = {"api_token_file": str(folder / "token")} if request.param else {}
    with web_process(folder, **settings) as web:
        web.guard().settled()

        def ask(method: str, path: str, headers) -> int:
            given = [*headers, ("authorization", "Bearer right")]
            return web.request(method, path, "api_listen", headers=given).status_code

        yield ask


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "something-new", "same-origin, none"])
@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "/api/v1/incidents", {"sec-fetch-mode": "cors"}),
        ("GET", "/api/v1/events", {"sec-fetch-mode": "no-cors"}),
        ("GET", "/api/v1/incidents", WINDOW),
        ("GET", "/page/js/main.js", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}),
        ("GET", "/", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}),
        ("GET", "/", {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}),
        ("GET", "/", {"sec-fetch-mode": "navigate"}),
        ("POST", "/", WINDOW),
        ("POST", "/api/v1/captures", {}),
        ("POST", "/api/v1/captures", WINDOW),
        ("POST", "/api/v1/tickets", {}),
    ],
)
def test_a_page_of_another_origin(asked, site, method, path, more):
    """Another port of localhost is the same site, and a stranger all the same; these requests carry no Origin."""
    assert asked(method, path, [("sec-fetch-site", site), *more.items()]) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_may_lead_to_the_page(asked, site):
    """From a chat, or from beside an alert, into a window of its own: the page holds no data by itself."""
    assert asked("GET", "/", [("sec-fetch-site", site), *WINDOW.items()]) == 200
    evil = [("sec-fetch-site", site), ("origin", "http://evil.example"), *WINDOW.items()]
    assert asked("GET", "/", evil) == 403


@pytest.mark.parametrize("site", [None, "same-origin", "none"])
def test_our_own_page_a_person_and_curl(asked, site):
    given = [] if site is None else [("sec-fetch-site", site)]
    assert asked("GET", "/api/v1/incidents", given) == 200
    assert asked("GET", "/page/js/main.js", given) == 200
    assert asked("POST", "/api/v1/captures", given) == 202


@pytest.mark.parametrize("name", ["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"])
def test_nothing_is_said_twice(asked, name):
    assert asked("GET", "/api/v1/status", [(name, "same-origin"), (name, "cross-site")]) == 400
