"""The guard ends or hangs at the worst moments: nothing stays stopped, nothing is lost, nothing is told twice."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from life_parts import (
    assert_counted_once,
    assert_killed_once,
    await_frozen,
    await_metric,
    hanging_pyspy,
    metric,
    new_worker,
    stopped,
    watched,
)
from sidecar_process import events_of, identity_of, kill_identity, running

LONG = ("--death-deadline", "60")  # a window between freeze and kill that only the test itself ends


@pytest.mark.parametrize(("event", "status"), [("frozen", None), ("captured", "captured")])
def test_killed_between_freeze_and_kill(tmp_path: Path, event: str, status: str | None) -> None:
    """The supervisor's dead man's switch kills what the guard had frozen; the next guard finishes the same incident."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", *LONG, python=python) as (engine, sidecar),
    ):
        guard = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait(event, **({"status": status} if status else {}))
        await_frozen(engine)
        kill_identity(guard)
        record = assert_killed_once(engine, sidecar)
        sidecar.wait("dead man's switch fired", signal="SIGKILL", incident=record["id"])
        assert "guard restarted" in events_of(record)
        if status:  # what was captured before is kept
            assert ("process", status) in {(a["kind"], a["status"]) for a in record["artifacts"]}


@pytest.mark.parametrize(
    ("event", "process"),
    [("rank died", "guard"), ("killed", "guard"), ("gone", "guard"), ("captures done", "recorder"),
     ("sealed", "recorder"), ("sealed", "guard")],
)  # fmt: skip
def test_killed_at_a_transition(tmp_path: Path, event: str, process: str) -> None:
    """Whatever the guard was about to do next is done by the next one, once."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait(event, process=process)
        kill_identity(guard)
        new_worker(sidecar, "guard", guard)
        assert_killed_once(engine, sidecar)


@pytest.mark.parametrize("delays_ms", [(0, 6, 15, 40), (3, 10, 25, 60)])
def test_killed_some_time_after_the_death(tmp_path: Path, delays_ms: tuple[int, ...]) -> None:
    """At any moment: the delay is no synchronisation, it is where in the flow the guard ends."""
    with ExitStack() as stack:
        pairs = [  # started at the same time: most of the test's time is their start
            stack.enter_context(watched(tmp_path / f"dumps-{delay_ms}", ready=False)) for delay_ms in delays_ms
        ]
        for delay_ms, (engine, sidecar) in zip(delays_ms, pairs, strict=True):
            engine.wait_ready()
            sidecar.wait_serving()
            guard = identity_of(sidecar.worker("guard"))
            engine.kill("TP1")
            threading.Event().wait(delay_ms / 1000)
            kill_identity(guard)
            new_worker(sidecar, "guard", guard)
            assert_killed_once(engine, sidecar)


def test_killed_again_while_it_takes_up_the_incident(tmp_path: Path) -> None:
    """The second guard ends too, at its first word about the incident; the third one finishes it."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", *LONG, python=python) as (engine, sidecar),
    ):
        first = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait("frozen")
        kill_identity(first)
        second = new_worker(sidecar, "guard", first)
        sidecar.wait("incident taken up again")
        kill_identity(second)
        new_worker(sidecar, "guard", second)
        assert_killed_once(engine, sidecar)


def test_hangs_while_the_engine_is_frozen(tmp_path: Path) -> None:
    """A guard that stands still lets its deadline pass: the supervisor kills the engine, and the guard as well."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", "--death-deadline", "0.5", python=python) as (engine, sidecar),
    ):
        guard = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait("frozen")
        kill_identity(guard, signal.SIGSTOP)
        sidecar.wait("dead man's switch fired", because="the deadline has passed", signal="SIGKILL")
        assert_killed_once(engine, sidecar)
        assert not running(guard)


@pytest.mark.parametrize(("number", "deadline"), [(signal.SIGKILL, "60"), (signal.SIGSTOP, "0.5")])
def test_what_was_not_to_be_killed_runs_on(tmp_path: Path, number: signal.Signals, deadline: str) -> None:
    """Action capture, and the guard ends or hangs with the engine frozen: everything gets SIGCONT, nothing SIGKILL."""
    flags = ("--on-rank-death", "capture", "--death-deadline", deadline)
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", *flags, python=python) as (engine, sidecar),
    ):
        guard = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait("frozen")
        # What was killed may still be on its way out.
        frozen = [process.identity for process in engine.alive() if process.label != "TP1"]
        kill_identity(guard, number)
        sidecar.wait("dead man's switch fired", signal="SIGCONT")
        record = sidecar.incident()
        assert stopped(frozen) == []
        assert [identity for identity in frozen if not running(identity)] == []
        assert record["termination"] is None
        assert "let go" in events_of(record)
        await_metric(sidecar, 1, "incidents_total")
        assert_counted_once(sidecar)
        assert metric(sidecar, "terminations_total") == 0


def test_a_death_while_there_is_no_guard(tmp_path: Path) -> None:
    """The rank dies when the guard is dead: the next guard has its pidfd from the supervisor, and its exit status."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard, signal.SIGSTOP)  # from here on it sees nothing
        engine.kill("TP1")
        kill_identity(guard)
        assert_killed_once(engine, sidecar)


def test_killed_at_rest(tmp_path: Path) -> None:
    """With no incident open, the engine is not touched, and the next guard does the work."""
    with watched(tmp_path / "dumps", "--captures", "none") as (engine, sidecar):
        before = [process.identity for process in engine.alive()]
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard)
        sidecar.wait("guard restarted")
        assert [i for i in before if not running(i)] == []
        assert not sidecar.events("dead man's switch fired")
        assert sidecar.incidents() == []
        engine.kill("TP1")
        assert_killed_once(engine, sidecar)
