"""The web ends at any time, and so may the whole sidecar: what was counted stays counted."""

from __future__ import annotations

import http.client
import signal
import threading
from pathlib import Path

import pytest
from life_parts import (
    Ranks,
    ask,
    assert_counted_once,
    assert_killed_once,
    await_metric,
    metric,
    new_worker,
    port_of,
    watched,
)
from sidecar_process import Sidecar, eventually, identity_of, kill_identity, running


def test_killed_at_rest_and_after_an_incident(tmp_path: Path) -> None:
    """The port stays open while there is no web; the counters go on from where they were, once each."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        assert ask(port_of(sidecar), "/healthz")[0] == 200
        web = identity_of(sidecar.worker("web"))
        kill_identity(web)
        engine.kill("TP1")
        assert_killed_once(engine, sidecar)
        captured = metric(sidecar, "captures_total", kind="process")
        assert captured > 0
        web = new_worker(sidecar, "web", web)
        kill_identity(web)
        new_worker(sidecar, "web", web)
        await_metric(sidecar, 2, "process_restarts_total", process="web")
        assert_counted_once(sidecar)
        assert metric(sidecar, "captures_total", kind="process") == captured
        assert metric(sidecar, "terminations_total") == 1


@pytest.mark.parametrize("delay_ms", [10, 60])
def test_killed_during_an_incident(tmp_path: Path, delay_ms: int) -> None:
    """At whatever moment of an incident: each event is counted once, by this web or by the next."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        ask(port_of(sidecar), "/healthz")  # its start is over
        web = identity_of(sidecar.worker("web"))
        engine.kill("TP1")
        threading.Event().wait(delay_ms / 1000)
        kill_identity(web)
        assert_killed_once(engine, sidecar)
        assert metric(sidecar, "failfast_seconds_count") == 1


def test_counters_survive_a_restart_of_the_sidecar(tmp_path: Path) -> None:
    """A new run on the same folder goes on from all that the last one showed, though it was SIGKILLed; another pod on
    this folder has counters of its own.
    """
    stamps = []
    for uid, before in (("pod-1", 0), ("pod-2", 0), ("pod-1", 1)):
        with Ranks() as engine, Sidecar(
            tmp_path / "dumps", "--captures", "none", "--pod-uid", uid, *engine.flags
        ) as sidecar:  # fmt: skip
            engine.start()
            sidecar.wait_serving()
            await_metric(sidecar, before, "terminations_total")
            assert metric(sidecar, "rank_deaths_total", cause="sigkill") == before
            stamps.append(metric(sidecar, "last_incident_timestamp_seconds"))
            engine.kill(before)
            await_metric(sidecar, before + 1, "terminations_total")
            assert metric(sidecar, "rank_deaths_total", cause="sigkill") == before + 1
            assert metric(sidecar, "rank_deaths_by_rank_total", rank=f"TP{before}") == 1
            assert metric(sidecar, "incidents_total", reason="RankDied") == before + 1
    assert stamps[:2] == [0, 0]
    assert stamps[2] > 0


def test_hangs(tmp_path: Path) -> None:
    """A web that stands still is ended and another one comes; meanwhile the supervisor answers /livez, a death is seen
    and the kill happens, and what happened is counted once.
    """
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        port = port_of(sidecar)
        assert ask(port, "/healthz")[0] == 200
        web = identity_of(sidecar.worker("web"))
        kill_identity(web, signal.SIGSTOP)
        engine.kill("TP1")
        assert engine.wait_gone(20) == [], sidecar.log()
        # The kernel takes connections for whoever listens: the first that is answered is answered by the supervisor.
        assert eventually(lambda: asked(port, "/livez"), "an answer of /livez", 60.0) == 200
        sidecar.wait("web killed", 60.0, because="its heartbeat has stopped")
        new_worker(sidecar, "web", web)
        assert_killed_once(engine, sidecar)
        assert not running(web)


def asked(port: int, path: str) -> int:
    """The status of a GET; 0 where no answer came within a second."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
