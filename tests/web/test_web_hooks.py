"""The kubelet's preStop hook and /livez: the real web process, with this test as its guard and its kubelet."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_harness import Guard, WebProcess, rank, wait_for, web_process

HOOK = "/hooks/prestop"


@contextmanager
def calling(web: WebProcess, times: int = 1, **kwargs: Any) -> Iterator[list[Future[httpx.Response]]]:
    """Callers of the hook, each with a connection of its own, waiting for their answers."""
    with ThreadPoolExecutor(times) as callers:
        yield [callers.submit(web.get, HOOK, **kwargs) for _ in range(times)]


def hooks(guard: Guard, count: int = 1) -> list[dict[str, Any]]:
    """The first `count` hooks that the guard was told of, once it was."""

    def told() -> list[dict[str, Any]]:
        return [message for message in guard.read() if message["type"] == "hook"]

    return wait_for(lambda: told() if len(told()) >= count else None, f"{count} hooks")  # type: ignore[return-value]


def done(guard: Guard, hook: dict[str, Any], detail: str = "captured: one") -> None:
    guard.send({"type": "hook_done", "hook": hook["hook"], "detail": detail})


def connected(web: WebProcess, epoch: str = "") -> Guard:
    guard = web.guard(epoch)
    guard.settled()
    return guard


def test_answered_when_the_guard_is_done(shared: WebProcess) -> None:
    """Not before; and the port goes on serving. With nobody to ask, a healthy engine's hook is a deletion."""
    guard = connected(shared)
    with calling(shared) as [answer]:
        [hook] = hooks(guard)
        assert {**hook, "hook": 0} == {
            "type": "hook", "hook": 0, "deletion": True, "certain": False, "failing": False, "running": False,
            "group": "",
        }  # fmt: skip
        assert shared.get("/metrics").status_code == 200
        guard.settled()
        assert not answer.done()
        done(guard, hook, "captured: 20261120T235959.123Z-prestop")
        assert (answer.result(15).status_code, answer.result(15).text) == (
            200,
            "captured: 20261120T235959.123Z-prestop\n",
        )
    assert answer.result().headers["cache-control"] == "no-store"


def test_called_twice(shared: WebProcess) -> None:
    """At the same time and again later: each call is a hook of its own and gets its own answer."""
    guard = connected(shared)
    with calling(shared, 2) as answers:
        both = hooks(guard, 2)
        done(guard, both[1], "one")
        done(guard, both[0], "one")
        assert [answer.result(15).text for answer in answers] == ["one\n", "one\n"]
    with calling(shared) as [answer]:
        third = hooks(guard, 3)[2]
        done(guard, both[0], "not for this one")
        done(guard, third, "two\r\nlines\x1b[2J")
        assert answer.result(15).text == "two  lines [2J\n"
    assert len({hook["hook"] for hook in hooks(guard, 3)}) == 3


def test_a_call_is_a_get(shared: WebProcess) -> None:
    """Whoever only looks sets nothing off."""
    guard = connected(shared)
    for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        answer = shared.request(method, HOOK)
        assert answer.status_code == 405, method
        assert answer.headers["allow"] == "GET"
    assert shared.get(HOOK + "/").status_code == 404
    guard.settled()
    assert [message for message in guard.read() if message["type"] == "hook"] == []


def test_a_kubelet_that_gave_up_cancels_nothing(shared: WebProcess) -> None:
    """It hangs up when the grace period ends: the guard's work goes on, and its answer is nothing to anybody."""
    guard = connected(shared)
    with socket.create_connection(("127.0.0.1", shared.port())) as kubelet:
        kubelet.sendall(b"GET /hooks/prestop HTTP/1.1\r\nhost: h\r\n\r\n")
        [hook] = hooks(guard)
    done(guard, hook)
    guard.settled()
    assert shared.get("/healthz").status_code == 200


def test_a_call_that_was_found_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole web stood still while the kubelet called: the guard is told when that was, and only then."""
    soon = "import sidecar.web.hooks; sidecar.web.hooks.LATE = 0.5; "
    monkeypatch.setattr("web_harness.ENTRY", ENTRY_WITH.format(first=soon))
    with web_process(tmp_path) as web:
        guard = connected(web)
        assert web.get("/healthz").status_code == 200  # a port that is not served yet would be late too
        with calling(web) as [answer]:
            done(guard, hooks(guard)[0])
            answer.result(15)
        os.kill(web.pid, signal.SIGSTOP)
        before = time.monotonic()
        with calling(web) as [answer]:
            wait_for(lambda: time.monotonic() - before > 2.0, "the kubelet to go on")
            os.kill(web.pid, signal.SIGCONT)
            in_time, late = hooks(guard, 2)
            done(guard, late)
            assert answer.result(15).status_code == 200
        assert "called_at" not in in_time
        assert before - 0.1 < late["called_at"] < before + 1.5


def test_a_guard_that_is_lost_in_between(web: WebProcess) -> None:
    """The next one is asked again, by the same number; a call is not worth a third guard."""
    first = connected(web, "e1")
    with calling(web) as [answer]:
        [hook] = hooks(first)
        first.channel.close()
        second = connected(web, "e2")
        assert hooks(second) == [hook]
        done(second, hook, "by the second")
        assert answer.result(15).text == "by the second\n"
    with calling(web) as [answer]:
        hooks(second, 2)
        second.channel.close()
        third = connected(web, "e3")
        hooks(third)
        third.channel.close()
        connected(web, "e4")
        assert answer.result(15).text == "not captured: the guard was lost over it twice\n"


def test_a_guard_that_is_about_to_start(web: WebProcess) -> None:
    """The web has just begun, or the guard is being restarted: that is worth a moment."""
    with calling(web) as [answer]:
        wait_for(lambda: "preStop hook" in web.log(), "the call")
        guard = web.guard()
        [hook] = hooks(guard)
        done(guard, hook)
        assert answer.result(15).text == "captured: one\n"


def test_without_a_guard(web: WebProcess) -> None:
    """One that is lost and does not come back ends the wait, and from then on the answer comes at once. Always 200."""
    guard = connected(web)
    with calling(web) as [answer]:
        hooks(guard)
        guard.channel.close()
        assert answer.result(15).text == "not captured: the guard is not running\n"
    assert answer.result().status_code == 200
    assert web.get(HOOK).text == "not captured: the guard is not running\n"
    guard = connected(web, "e2")
    with calling(web) as [answer]:
        done(guard, hooks(guard)[0])
        assert answer.result(15).text == "captured: one\n"


def test_a_guard_that_is_never_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captures' deadline and the margin, and the answer comes all the same; what comes after it is no news."""
    short = "import sidecar.web.hooks; sidecar.web.hooks.MARGIN = 0.5; "
    monkeypatch.setattr("web_harness.ENTRY", ENTRY_WITH.format(first=short))
    with web_process(tmp_path, liveness_deadline=0.0) as web:
        guard = connected(web)
        with calling(web) as [answer]:
            [hook] = hooks(guard)
            assert answer.result(15).text == "not captured: the guard was not done within 0.5 s\n"
        done(guard, hook)
        guard.settled()


ENTRY_WITH = (
    "import sys; sys.path.insert(0, sys.argv[1]); {first}from sidecar.web.__main__ import main;"
    " main(int(sys.argv[2]), int(sys.argv[3]))"
)


def test_more_callers_than_wait(shared: WebProcess) -> None:
    """Anybody may call where there is no token: the seventeenth does not wait, and the port still serves."""
    guard = connected(shared)
    with calling(shared, 16) as answers:
        waiting = hooks(guard, 16)
        assert shared.get(HOOK).text == "not captured: 16 calls of the hook wait already\n"
        for hook in waiting:
            done(guard, hook)
        assert {answer.result(15).text for answer in answers} == {"captured: one\n"}


def test_broken_words_of_the_guard(shared: WebProcess) -> None:
    """Each costs a line; the call still waits for the right one."""
    guard = connected(shared)
    with calling(shared) as [answer]:
        [hook] = hooks(guard)
        number = hook["hook"]
        broken = [{}, {"hook": number}, {"hook": str(number), "detail": "x"}, {"hook": True, "detail": "x"},
                  {"hook": number, "detail": ["x"]}]  # fmt: skip
        lines = shared.log().count("a message of the guard's was ignored type=hook_done")
        for fields in broken:
            guard.send({"type": "hook_done", **fields})
        guard.settled()
        assert shared.log().count("a message of the guard's was ignored type=hook_done") == lines + len(broken)
        assert not answer.done()
        done(guard, hook, "")
        assert answer.result(15).text == "done\n"


def test_token(tmp_path: Path) -> None:
    """With --hook-token nobody else sets it off, and the token is in no answer and no log."""
    with web_process(tmp_path, hook_token="s3cret-token") as web:
        guard = connected(web)
        wrong: list[Any] = [
            {}, {"X-Rankguard-Token": ""}, {"X-Rankguard-Token": "s3cret"}, {"X-Rankguard-Token": "\xe9"},
            {"Authorization": "Bearer s3cret-token"},
            [("X-Rankguard-Token", "s3cret-token"), ("X-Rankguard-Token", "other")],
        ]  # fmt: skip
        for headers in wrong:
            answer = web.get(HOOK, headers=httpx.Headers(headers, encoding="latin-1"))
            assert answer.status_code == 403, headers
            assert "X-Rankguard-Token" in answer.text
            assert "s3cret" not in answer.text
        guard.settled()
        assert [message for message in guard.read() if message["type"] == "hook"] == []
        with calling(web, headers={"x-rankguard-token": "s3cret-token"}) as [right]:
            done(guard, hooks(guard)[0])
            assert right.result(15).status_code == 200
        assert "s3cret" not in web.log()


@pytest.mark.parametrize(
    ("environ", "setting", "group"),
    [
        ({}, "mine", "mine"),
        ({"LWS_LEADER_ADDRESS": "lws-0.lws.default", "LWS_GROUP_SIZE": "2"}, "", "lws-0"),
    ],
)
def test_the_group_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], setting: str, group: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with web_process(tmp_path, pod_group=setting) as web:
        guard = connected(web)
        with calling(web):
            [hook] = hooks(guard)
            done(guard, hook)
        assert hook["group"] == group


def test_hooks_and_scrapes_at_the_same_time(shared: WebProcess) -> None:
    """The loop that serves scrapes serves hooks too: none waits for the other."""
    guard = connected(shared)
    stop = threading.Event()

    def scrape() -> int:
        count = 0
        while not stop.is_set():
            assert shared.get("/metrics").status_code == 200
            count += 1
        return count

    with ExitStack() as stack:
        scraper = stack.enter_context(ThreadPoolExecutor(1)).submit(scrape)
        stack.callback(stop.set)
        for round_ in range(1, 6):
            with calling(shared) as [answer]:
                done(guard, hooks(guard, round_)[-1])
                assert answer.result(15).status_code == 200
        stop.set()
        assert scraper.result(15) > 0


# /livez.


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"failed": False}, 200),
        ({"failed": True}, 503),
        ({"failed": True, "observes": True}, 200),
        ({"state": "capturing", "incident": "20261120T235959.123Z-enginestalled"}, 200),
        ({"state": "down", "ready": False, "ready_detail": "0 of 1 ranks up"}, 200),
        ({"state": "starting"}, 200),
    ],
)
def test_livez(shared: WebProcess, fields: dict[str, Any], status: int) -> None:
    """503 in one state only, whatever else is wrong."""
    guard = shared.guard("")
    guard.state([rank("TP0", up=False)], expected=1, **fields)
    guard.settled()
    answer = shared.get("/livez")
    assert answer.status_code == status
    assert ("still there" in answer.text) == (status == 503)
    head = shared.request("HEAD", "/livez")
    assert (head.status_code, head.content) == (status, b"")
    assert shared.request("POST", "/livez").status_code == 405


def test_livez_without_a_guard(web: WebProcess) -> None:
    """At the start, and when a guard that had found the engine stuck is gone for good: nobody knows, so 200."""
    assert web.get("/livez").status_code == 200
    guard = web.guard()
    guard.state([rank("TP0")], failed=True)
    guard.settled()
    assert web.get("/livez").status_code == 503
    guard.channel.close()
    wait_for(lambda: web.get("/livez").status_code == 200, "the guard missed")
    assert web.get("/healthz").status_code == 503
