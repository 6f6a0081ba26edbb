"""The news: who listens sees what happens, at no cost to anybody else."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from dump_folders import incident, put, rewrite
from event_stream import EventStream
from hung_folder import hung
from web_harness import rank, switches, wait_for, web_process

from sidecar.dumps.catalog import Page
from sidecar.web.changes import changed, seen
from sidecar.web.news import LISTENERS, Listener


def test_an_incident_appears_changes_and_goes(web):
    """First a word that the stream is up, then each change of the list's newest rows, as the list has them."""
    old = put(web.folder, incident(5))
    with EventStream(web.port("api_listen")) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.next() == ("hello", {})
        home = put(web.folder, incident(1, "TP7"), sealed=False)
        opened = stream.until("incident", path=home.name)
        assert (opened["rank"], opened["sealed"], opened["sentence"]) == ("TP7", False, "")
        rewrite(home, sealed=True, verdict={"sentence": "TP7 left", "confidence": "high", "apart": ["TP7"]})
        sealed = stream.until("incident", path=home.name, sealed=True)
        assert (sealed["sentence"], sealed["confidence"], sealed["apart"]) == ("TP7 left", "high", ["TP7"])
        assert web.api("incidents").json()["incidents"][0] == sealed
        shutil.rmtree(home)
        assert stream.until("removed") == {"path": home.name}
        (old / ".pinned").touch()
        assert stream.until("incident", path=old.name)["pinned"] is True


def test_the_engine_s_state(web):
    """At the beginning as it is, then whenever it changes, and when nobody knows any more."""
    guard = web.guard()
    guard.state([rank("TP0"), rank("TP1")], expected=2)
    guard.settled()
    with EventStream(web.port("api_listen")) as stream:
        assert stream.next() == ("hello", {})
        now = {"state": "serving", "engine": "sglang", "ranks_expected": 2, "ranks_up": 2, "incident": None}
        assert stream.next() == ("status", {**now, "ready": True})
        guard.state([rank("TP0"), rank("TP1")], expected=2)  # nothing new
        guard.state([rank("TP0"), rank("TP1", up=False)], expected=2, state="terminating", incident="one")
        assert stream.next() == (
            "status", {**now, "state": "terminating", "ranks_up": 1, "incident": "one", "ready": False},
        )  # fmt: skip
        home = put(web.folder, incident(1))
        stream.until("incident", path=home.name)
        guard.channel.close()
        assert stream.until("status", state=None)["ready"] is False


def test_so_many_and_no_more(web):
    """The next one is told so, and gets in when another has left."""
    port = web.port("api_listen")
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(EventStream(port)).next()
        for _ in range(LISTENERS - 1):
            stack.enter_context(EventStream(port)).next()
        refused = web.api("events")
        assert refused.status_code == 503
        assert "too many listen" in refused.json()["error"]
        first.close()

        def let_in() -> bool:
            with EventStream(port) as stream:
                return stream.response.status_code == 200

        wait_for(let_in, "the place of the one that left")
    assert web.api("events", "POST").status_code == 405


def at_rest(pid: int, seconds: float) -> int:
    """Times that a thread of the process went to sleep of its own accord within `seconds`."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        before = switches(pid)
        assert poll.poll(seconds * 1000) == [], "the process ended"
        return switches(pid) - before
    finally:
        os.close(pidfd)


def test_nobody_listens_nothing_is_looked_at(web):
    """After the last one has left, as before the first: the process sleeps."""
    web.guard().settled()
    with EventStream(web.port("api_listen")) as stream:
        stream.next()
        assert at_rest(web.pid, 3) >= 3  # a look each second, at least
    wait_for(lambda: at_rest(web.pid, 3) <= 2, "sleep")


def test_open_streams_do_not_hold_up_the_end(web):
    with ExitStack() as stack:
        streams = [stack.enter_context(EventStream(web.port("api_listen"))) for _ in range(3)]
        for stream in streams:
            assert stream.next() == ("hello", {})
        os.kill(web.pid, signal.SIGTERM)
        for stream in streams:
            while stream.next() is not None:  # ended as it should be, not cut off
                pass
        assert web.process.wait(10) == 0
    assert "Cancel" not in web.log()


@pytest.mark.root
def test_a_volume_that_hangs_stops_the_news_alone(tmp_path):
    """Listeners come, hear of the engine and leave again; all that waits for the volume is one look. When it is back,
    who was there before is told what there is."""
    volume = tmp_path / "volume"
    volume.mkdir()
    with web_process(volume) as web:
        guard = web.guard()
        guard.state([rank("TP0")], expected=1)
        guard.settled()
        home = put(volume, incident(1))
        with ExitStack() as stack:
            with hung(volume):
                threads = []
                for number in range(4):
                    with EventStream(web.port("api_listen")) as stream:
                        assert stream.next() == ("hello", {})
                        guard.state([rank("TP0")], expected=1, incident=f"number-{number}")
                        stream.until("status", incident=f"number-{number}")
                        threads.append(len(os.listdir(f"/proc/{web.pid}/task")))
                assert threads[-1] == threads[0]
                waiting = stack.enter_context(EventStream(web.port("api_listen")))
                assert waiting.next() == ("hello", {})
            waiting.until("incident", path=home.name)  # which nobody could tell it at first


def test_who_does_not_read_is_cut_off(web):
    """His news do not pile up here, and whoever reads goes on getting them."""
    homes = [put(web.folder, incident(hours)) for hours in range(1, 41)]
    with socket.socket() as deaf, EventStream(web.port("api_listen")) as stream:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", web.port("api_listen")))
        deaf.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert deaf.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"
        stream.next()
        stream.next()
        long = dict.fromkeys(("summary", "reason", "engine"), "\U0001f4a5" * 1000)
        rounds = iter(range(1000))

        def cut() -> bool:
            number = next(rounds)
            for home in homes:
                rewrite(home, **long, verdict={"sentence": f"{number} " + long["summary"]})
            stream.until("incident", path=homes[0].name)
            return not held(web, deaf)

        wait_for(cut, "the one that does not read to be cut", 60)
        assert web.api("status").status_code == 200


def held(web, client: socket.socket) -> bool:
    """By the kernel's table the other end of `client` belongs to a process, not only to the kernel (inode 0)."""
    ends = (f":{web.port('api_listen'):04X}", f":{client.getsockname()[1]:04X}")
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != "0" for row in rows)


def test_of_one_incident_the_latest_waits():
    """A reader that is slow gets each incident once, as it is now; one that leaves too much lying is sent home."""

    async def taken(paths: int, most: int) -> list[bytes | None]:
        listener = Listener()
        for number in range(1000):
            listener.put(f"path-{number % paths}", str(number).encode())
        return [await listener.next() for _ in range(most)]

    assert asyncio.run(taken(3, 3)) == [b"997", b"998", b"999"]
    assert asyncio.run(taken(1000, 1)) == [None]


def page(rows: dict[str, int], following: str = "") -> Page:
    """A page of incidents that began at these hours of a day, each with a number of files."""
    found = [{"path": path(hour), "artifacts": files} for hour, files in rows.items()]
    return Page(tuple(found), len(found), following and path(following), True, ())


path: Callable[[str], str] = "20261120T{}0000.000Z-x".format


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (page({}), page({}), []),
        (page({}), page({"10": 1}), ["10"]),
        (page({"10": 1}), page({"10": 1}), []),
        (page({"10": 1}), page({"12": 1, "11": 1, "10": 2}), ["10", "11", "12"]),
        (page({"12": 1, "11": 1}), page({"12": 1}), ["-11"]),
        (page({"12": 1, "11": 1}, "11"), page({"13": 1, "12": 1}, "12"), ["13"]),  # 11 went out of view
        (page({"13": 1, "12": 1}, "12"), page({"12": 1, "11": 1}, "11"), ["-13"]),  # 11 came into view
        (page({"13": 1, "12": 1}, "12"), page({"13": 1, "11": 1}, "11"), ["-12"]),
        (page({"13": 1, "12": 1}), page({}, "13"), ["-13"]),  # a look that was cut short speaks of no more than it saw
    ],
)
def test_what_has_changed(before, now, said):
    """What comes into view or goes out of it, since others come and go, is no news."""
    found = changed(seen(before), seen(now))
    assert [name[9:11] if row is not None else f"-{name[9:11]}" for name, row in found] == said
