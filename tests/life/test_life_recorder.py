"""The recorder ends or hangs at the worst moments: the kill happens all the same, and there is a readable record."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from life_parts import assert_killed_once, await_frozen, hanging_pyspy, new_worker, watched
from sidecar_process import events_of, identity_of, kill_identity


def test_killed_standing_by(tmp_path: Path) -> None:
    """Another one comes to stand by, and the next incident has all its evidence."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        old = identity_of(sidecar.standby())
        seen = len(sidecar.lines)
        kill_identity(old)
        sidecar.wait("recorder stands by", after=seen)
        engine.kill("TP1")
        record = assert_killed_once(engine, sidecar)
        stacks = {a["rank"] for a in record["artifacts"] if a["kind"] == "pyspy_text" and a["status"] == "captured"}
        assert stacks >= {"server", "TP0"}


def test_killed_at_the_same_time_as_a_rank(tmp_path: Path) -> None:
    """A death with no recorder there: one is waited for for a moment, the kill comes anyway, the record is written."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        kill_identity(identity_of(sidecar.standby()))
        engine.kill("TP1")
        assert_killed_once(engine, sidecar)


@pytest.mark.parametrize("status", [None, "captured"])
def test_killed_during_the_captures(tmp_path: Path, status: str | None) -> None:
    """What it had not yet written may be lost; that it died is in the record, which is whole and sealed."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", "--death-deadline", "1.5", python=python) as (engine, sidecar),
    ):
        recorder = identity_of(sidecar.standby())
        engine.kill("TP1")
        if status:
            sidecar.wait("captured", status=status)
        else:
            sidecar.wait("frozen")
        await_frozen(engine)
        kill_identity(recorder)
        record = assert_killed_once(engine, sidecar)
        assert "recorder lost" in events_of(record)


@pytest.mark.parametrize(("event", "process"), [("captures done", "recorder"), ("gone", "guard")])
def test_killed_while_it_writes(tmp_path: Path, event: str, process: str) -> None:
    """The next recorder goes on with the same folder: one incident, sealed, with what was written before."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        recorder = identity_of(sidecar.standby())
        engine.kill("TP1")
        sidecar.wait(event, process=process)
        kill_identity(recorder)
        record = assert_killed_once(engine, sidecar)
        for artifact in record["artifacts"]:
            if artifact["path"]:
                assert (sidecar.incidents()[0] / artifact["path"]).stat().st_size == artifact["bytes"]


def test_hangs(tmp_path: Path) -> None:
    """A recorder that stands still holds up the kill until the deadline and no longer; awake again, it writes."""
    with watched(tmp_path / "dumps", "--death-deadline", "0.5") as (engine, sidecar):
        recorder = identity_of(sidecar.standby())
        kill_identity(recorder, signal.SIGSTOP)
        engine.kill("TP1")
        sidecar.wait("deadline")
        assert engine.wait_gone(20) == []
        assert sidecar.incidents() == []
        kill_identity(recorder, signal.SIGCONT)
        assert_killed_once(engine, sidecar)


def test_killed_when_it_has_done_its_work(tmp_path: Path) -> None:
    """At its word that the record is sealed: the incident is whole, and the next recorder does not open it again."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        recorder = identity_of(sidecar.standby())
        engine.kill("TP1")
        sidecar.wait("sealed", process="recorder")
        kill_identity(recorder)
        sidecar.wait("sealed", process="guard")
        new_worker(sidecar, "recorder", recorder)
        assert_killed_once(engine, sidecar)
        assert not sidecar.events("incident taken up again")
