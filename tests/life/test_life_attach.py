"""Attach mode over the engine's whole life: clean stops, restarts, and what the sidecar itself costs over them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from life_parts import Ranks, ask, await_metric, metric, port_of, watched
from sidecar_process import Sidecar, eventually, identity_of, load, running


def test_a_stop_of_the_sidecar(tmp_path: Path) -> None:
    """SIGTERM to it while the engine serves: it leaves with 0, the engine is untouched, nothing is recorded."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        before = [process.identity for process in engine.alive()]
        assert sidecar.stop() == 0
        assert [i for i in before if not running(i)] == []
        assert sidecar.incidents() == []


def test_a_clean_stop_of_the_engine(tmp_path: Path) -> None:
    """Everything leaves with 0: no incident, nothing is killed, and the sidecar waits for the next engine."""
    with watched(tmp_path / "dumps", exit_clean_on_term=True) as (engine, sidecar):
        seen = len(sidecar.lines)
        engine.kill("server", 15)
        assert engine.wait_gone(20) == []
        assert engine.process.wait(20) == 0
        sidecar.wait("engine stopped", after=seen)
        sidecar.wait("watching", state="restarting", after=seen)
        assert sidecar.incidents() == []
        assert not sidecar.events("killed")
        assert metric(sidecar, "rank_deaths_total") == 0


def test_a_stop_while_an_incident_is_open(tmp_path: Path) -> None:
    """SIGTERM to the sidecar between a death and the seal: it ends when the incident is over, not before."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        engine.kill("TP1")
        sidecar.wait("frozen")
        assert sidecar.stop() == 0
        assert engine.wait_gone(20) == []
        record = sidecar.incident()
        assert record["termination"] is not None


@pytest.mark.long
def test_ten_engines_one_after_the_other(tmp_path: Path) -> None:
    """The owner restarts the engine each time: each death is an incident of its own, and nothing piles up in us."""
    with (
        Ranks() as engine,
        Sidecar(tmp_path / "dumps", "--captures", "none", *engine.flags) as sidecar,
    ):
        held: dict[str, list[int]] = {"supervisor": [], "guard": []}
        for generation in range(10):
            seen = len(sidecar.lines)
            engine.start()
            sidecar.wait("watching", state="serving", after=seen)
            assert sorted(line["rank"] for line in sidecar.lines[seen:] if line["event"] == "rank") == ["TP0", "TP1"]
            eventually(lambda n=generation: len(sidecar.events("recorder stands by")) > n, "a recorder that stands by")
            engine.kill(generation % 2)
            assert engine.collect() == [-9, -9]
            sidecar.wait("sealed", after=seen, process="guard")
            sidecar.wait("watching", after=seen, state="restarting", because="gone")
            eventually(lambda: len(sidecar.workers("recorder")) == 1, "one recorder")
            for name, pid in (("supervisor", sidecar.pid), ("guard", sidecar.worker("guard"))):
                held[name].append(descriptors(pid))
        # One more or less is a recorder that comes or goes; one more each time would be seven.
        assert min(held["guard"][7:]) <= max(held["guard"][:3]), held
        assert min(held["supervisor"][7:]) <= max(held["supervisor"][:3]), held
        records = [load(folder) for folder in sidecar.incidents()]
        assert [record["failures"][0]["rank"] for record in records] == ["TP0", "TP1"] * 5
        assert all(record["sealed"] for record in records)
        await_metric(sidecar, 10, "terminations_total")
        assert metric(sidecar, "rank_deaths_total") == 10
        assert metric(sidecar, "rank_deaths_by_rank_total", rank="TP0") == 5
        assert metric(sidecar, "process_restarts_total") == 0
        assert sidecar.events("guard restarted") == []


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_readiness_follows_the_engine(tmp_path: Path) -> None:
    """/readyz is 200 while nothing is expected or all ranks are up, 503 while one is missing; /healthz stays 200."""
    with (
        Ranks() as engine,
        Sidecar(tmp_path / "dumps", "--captures", "none", "--on-rank-death", "observe", *engine.flags) as sidecar,
    ):
        port = port_of(sidecar)
        sidecar.wait("recorder stands by")
        await_readiness(port, 503, "0 of 2 ranks up")
        assert ask(port, "/healthz")[0] == 200
        engine.start()
        await_readiness(port, 200, "2 of 2 ranks up")
        assert metric(sidecar, "rank_up", rank="TP0") == 1
        assert metric(sidecar, "ranks_expected") == 2
        engine.kill(1)
        await_readiness(port, 503, "1 of 2 ranks up")
        assert metric(sidecar, "rank_up", rank="TP1") == 0
        assert ask(port, "/healthz")[0] == 200
        engine.kill(0)
        engine.start()
        await_readiness(port, 200, "2 of 2 ranks up")
        assert ask(port, "/healthz")[0] == 200


def test_readiness_with_nothing_expected(tmp_path: Path) -> None:
    """200 while the expected number is unknown: a pattern that matches nothing must not take a pod out of service."""
    with Ranks() as engine, Sidecar(tmp_path / "dumps", *engine.flags[:4]) as sidecar:
        await_readiness(port_of(sidecar), 200, "")
        engine.start()
        sidecar.wait("watching", state="serving")
        await_readiness(port_of(sidecar), 200, "2 ranks up")


def test_health_without_a_guard(tmp_path: Path) -> None:
    """A guard that is gone for longer than a restart takes is a sidecar that is not healthy, until there is a next."""
    with Ranks() as engine, Sidecar(tmp_path / "dumps", *engine.flags) as sidecar:
        port = port_of(sidecar)
        sidecar.wait("recorder stands by")
        eventually(lambda: ask(port, "/healthz")[0] == 200, "healthy")
        os.kill(sidecar.pid, 19)  # the supervisor stands still, so that no next guard comes
        try:
            os.kill(identity_of(sidecar.worker("guard")).pid, 9)
            eventually(lambda: ask(port, "/healthz")[0] == 503, "not healthy")
            assert ask(port, "/readyz")[0] == 503
            assert metric(sidecar, "rank_deaths_total") == 0  # /metrics answers all the same
        finally:
            os.kill(sidecar.pid, 18)
        eventually(lambda: ask(port, "/healthz")[0] == 200, "healthy again")


def await_readiness(port: int, status: int, text: str) -> None:
    """Wait until /readyz says so."""
    eventually(lambda: (answer := ask(port, "/readyz"))[0] == status and text in answer[1], f"{status} {text!r}")
