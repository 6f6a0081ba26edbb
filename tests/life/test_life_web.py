"""The web ends at any time, and so may the whole sidecar: what was counted stays counted."""

from __future__ import annotations

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
from sidecar_process import Sidecar, identity_of, kill_identity


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
