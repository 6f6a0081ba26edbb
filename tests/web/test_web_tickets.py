"""Tickets: one file, one address, for a while, and nothing else."""

from __future__ import annotations

import pytest
from dump_folders import STACK, incident, put
from web_harness import wait_for, web_process

from sidecar.web.tickets import SECONDS, Tickets

RIGHT = {"authorization": "Bearer right"}


@pytest.fixture
def guarded(tmp_path):
    (tmp_path / "token").write_text("right")
    with web_process(tmp_path, api_token_file=str(tmp_path / "token")) as web:
        home = put(tmp_path, incident(1))
        (home / "a b%2f?#ü.txt").write_text("awkward")
        yield web, f"/api/v1/incidents/{home.name}"


def test_a_download_without_the_token(guarded):
    """A ticket opens the file that it was made for, whole or in part, to who reads it, and nothing else."""
    web, incident = guarded

    def ask(path: str, ticket: str, method: str = "GET", **headers: str):
        return web.request(method, path, "api_listen", params={"ticket": ticket}, headers=headers)

    def ticket(path: str) -> str:
        made = web.api("tickets", "POST", json={"path": path}, headers=RIGHT).json()
        assert made["seconds"] == SECONDS
        return made["ticket"]

    stack, bundle = f"{incident}/artifacts/pyspy/TP0.json", f"{incident}/bundle"
    good = ticket(stack)
    assert ask(stack, good).content == STACK
    assert ask(stack, good, range="bytes=1-3").content == STACK[1:4]
    assert ask(stack, good, "HEAD").status_code == 200
    assert ask(stack.replace("/pyspy/", "%2Fpyspy%2F"), good).content == STACK  # the same address
    assert ask(bundle, ticket(bundle)).content[:2] == b"\x1f\x8b"
    awkward = f"{incident}/artifacts/a%20b%252f%3F%23%C3%BC.txt"
    assert ask(awkward, ticket(awkward)).content == b"awkward"

    end, _, mac = good.partition(".")
    others = [
        (f"{incident}/artifacts/incident.json", "GET"), (bundle, "GET"), (incident, "GET"),
        ("/api/v1/incidents", "GET"), ("/api/v1/status", "GET"), (f"{incident}/pin", "PUT"),
        (stack, "POST"), (stack, "DELETE"), (stack, "PUT"),
    ]  # fmt: skip
    for path, method in others:
        assert ask(path, good, method).status_code == 401, path
    for forged in ("", ".", "x", good + "0", f"{int(end) + 1}.{mac}", f"0{end}.{mac}", mac, f".{mac}", "ü." + mac):
        assert ask(stack, forged).status_code == 401, forged
    twice = web.get(f"{stack}?ticket={good}&ticket={good}", "api_listen")
    assert twice.status_code == 401
    assert ask("/", good).status_code == 401
    assert ask(stack, good, origin="http://evil.example").status_code == 403
    assert ask(stack, good, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert web.api("tickets", "POST", json={"path": stack}).status_code == 401
    assert good not in web.log()
    assert mac not in web.log()


def test_a_ticket_ends_with_the_token_and_with_the_process(guarded):
    web, incident = guarded
    bundle = f"{incident}/bundle"

    def ticket(token: str) -> str:
        given = {"authorization": f"Bearer {token}"}
        return web.api("tickets", "POST", json={"path": bundle}, headers=given).json()["ticket"]

    def status(ticket: str) -> int:
        return web.get(bundle, "api_listen", params={"ticket": ticket}).status_code

    first = ticket("right")
    assert status(first) == 200
    (web.folder / "token").write_text("changed\n")
    wait_for(lambda: status(first) == 401, "the ticket's end")
    second = ticket("changed")
    (web.folder / "token").write_text("changed")  # the same one, written again
    wait_for(lambda: web.api("about", headers={"authorization": "Bearer changed"}).status_code == 200, "an answer")
    assert status(second) == 200
    web.kill()
    web.start()
    wait_for(lambda: web.get("/healthz").status_code == 200, "the next process")
    assert status(second) == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[" * 60_000, 400), (b"[]", 400), (b'"path"', 400), (b'{"path": 1}', 400),
        (b'{"path": "/api/v1/status"}', 400), (b'{"path": "/api/v1/incidents/../status/bundle"}', 400),
        (b'{"path": "http://evil.example/api/v1/incidents/20261120T235959.123Z/bundle"}', 400),
        (b'{"path": "/api/v1/incidents/20261120T235959.123Z/artifacts/"}', 400),
        (b'{"path": "/api/v1/incidents/20261120T235959.123Z/bundle", "more": 1}', 400),
        (b"\xff" * 10, 400), (b" " * 100_000, 413),
        (b'{"path": "/api/v1/incidents/20261120T235959.123Z/bundle"}', 200),
        (b'{"path": "/api/v1/incidents/prod/llm-0/20261120T235959.123Z/artifacts/\\ud800"}', 200),
    ],
)  # fmt: skip
def test_what_is_asked_for(shared, body, status):
    """A wrong body gets one line. Where no token is needed a page need not know that, and gets its ticket too."""
    answer = shared.api("tickets", "POST", content=body)
    assert answer.status_code == status
    assert ("ticket" if status == 200 else "error") in answer.json()
    assert shared.api("tickets").status_code == 405


def test_it_is_good_for_its_time():
    now = [1000.0]
    tickets = Tickets(lambda: now[0])
    path = "/api/v1/incidents/20261120T235959.123Z/bundle"
    ticket = tickets.make(path)
    now[0] += SECONDS - 1
    assert tickets.good(ticket, path)
    now[0] += 1
    assert not tickets.good(ticket, path)
