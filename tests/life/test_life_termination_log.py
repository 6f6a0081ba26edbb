"""The termination message through the whole of Rankguard: what `kubectl describe pod` has to show after a kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from life_parts import Wrapped, await_frozen, hanging_pyspy, watched
from own_mounts import OwnLog
from sidecar_process import eventually, identity_of, kill_identity
from test_life_volume import ext4, hanging

PROCESS = ("--captures", "process")
DIED = "Rankguard: TP1 was killed by signal 9 (SIGKILL) while serving; the engine is being killed. Incident "


@pytest.fixture
def own(tmp_path: Path) -> OwnLog:
    return OwnLog(tmp_path / "container")


def flag(own: OwnLog) -> tuple[str, str]:
    return ("--termination-log", str(own.path))


def step(record: dict[str, Any], event: str) -> dict[str, Any]:
    (found,) = (row for row in record["timeline"] if row["event"] == event)
    assert isinstance(found, dict)
    return found


@pytest.mark.root
def test_it_is_there_before_the_kill_though_the_volume_hangs(tmp_path: Path, own: OwnLog) -> None:
    """The engine stands still, not one process of it killed, and the container's file says why it is about to be."""
    with (
        ext4(tmp_path) as volume,
        hanging_pyspy(tmp_path) as python,
        watched(
            volume / "dumps", "--death-deadline", "10", *flag(own), python=python, prefix=own.prefix
        ) as (engine, sidecar),
    ):  # fmt: skip
        with hanging(volume):
            engine.kill("TP1")
            eventually(own.text, "the message")
            await_frozen(engine)
            assert {"server", "TP0"} <= {process.label for process in engine.alive()}
            assert sidecar.events("killed") == []
            assert engine.wait_gone(20) == []
            assert sidecar.incidents() == []
        record = sidecar.incident()
        assert own.text() == f"{DIED}{record['id']} in {volume / 'dumps'}.\n"
        assert step(record, "told the kubelet")["at"] < step(record, "killed")["at"]
        assert step(record, "told the kubelet")["detail"] == "in the termination log of 1 container"


@pytest.mark.root
def test_where_nothing_is_captured_it_follows_the_kill(tmp_path: Path, own: OwnLog) -> None:
    """The kill waits for nothing then; the held descriptor still leads to the file that the kubelet reads."""
    with watched(tmp_path / "dumps", "--captures", "none", *flag(own), prefix=own.prefix) as (engine, sidecar):
        own.file.write_text("the engine's own words")
        engine.kill("TP1")
        assert engine.wait_gone(20) == []
        record = sidecar.incident()
        before, line, end = own.text().split("\n")
        assert (before, end) == ("the engine's own words", "")
        assert line.startswith("Rankguard: TP1 was killed by signal 9 (SIGKILL) while serving; the engine ")
        assert line.endswith(f" Incident {record['id']} in {tmp_path / 'dumps'}.")


@pytest.mark.root
def test_the_whole_container_is_gone_at_once(tmp_path: Path, own: OwnLog) -> None:
    """As by a kill for memory, or its entrypoint's death: nobody is left to find the file through, and it is told."""
    with watched(tmp_path / "dumps", *PROCESS, *flag(own), prefix=own.prefix) as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard, signal.SIGSTOP)
        for process in engine.processes:
            engine.kill(process.label)
        assert engine.wait_gone(20) == []
        engine.collect()
        kill_identity(guard, signal.SIGCONT)
        record = sidecar.incident()
        assert f"Incident {record['id']}" in own.text()
        assert len(own.text().splitlines()) == 1, "one line for all of them"


@pytest.mark.root
def test_the_nodes_disk_hangs(tmp_path: Path) -> None:
    """Whoever writes there waits for ever: evidence, kill and record do not, and the record says what is missing."""
    with ext4(tmp_path) as volume:
        own = OwnLog(volume / "container")
        with (
            watched(tmp_path / "dumps", *PROCESS, *flag(own), prefix=own.prefix) as (engine, sidecar),
            hanging(volume),
        ):
            engine.kill("TP1")
            assert engine.wait_gone(20) == []
            record = sidecar.incident()
            assert {a["status"] for a in record["artifacts"] if a["rank"] == "TP0"} == {"captured"}
            not_told = "1 termination log not written: no answer within 2 s"
            assert step(record, "kubelet not told")["detail"] == not_told
            eventually(sidecar.standby, "the next recorder")


@pytest.mark.root
@pytest.mark.parametrize("worker", ["recorder", "guard"])
def test_a_worker_that_dies_meanwhile_makes_no_second_line(tmp_path: Path, own: OwnLog, worker: str) -> None:
    """Whoever takes the incident up finds the line there."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(
            tmp_path / "dumps", "--death-deadline", "3", *flag(own), python=python, prefix=own.prefix
        ) as (engine, sidecar),
    ):  # fmt: skip
        victim = identity_of(sidecar.standby() if worker == "recorder" else sidecar.worker("guard"))
        engine.kill("TP1")
        line = eventually(own.text, "the message")
        kill_identity(victim)
        assert engine.wait_gone(20) == []
        record = sidecar.incident()
        assert own.text() == line == f"{DIED}{record['id']} in {tmp_path / 'dumps'}.\n"


def test_wrapped(tmp_path: Path) -> None:
    """In the engine's own container its file is ours too, and is the one to write to. No rights are needed."""
    file = tmp_path / "termination-log"
    file.touch()
    with Wrapped(tmp_path / "dumps", *PROCESS, "--termination-log", str(file)) as engine:
        engine.kill("TP1")
        assert engine.process.wait(30) == 128 + signal.SIGKILL
        record = engine.record()
    assert file.read_text() == f"{DIED}{record['id']} in {tmp_path / 'dumps'}.\n"
    assert "told the kubelet" in [row["event"] for row in record["timeline"]]


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "why"),
    [(link, "has a symbolic link in it"), (fifo, "is no regular file"), (folder, "is no regular file"), (None, "")],
)
def test_what_is_no_log_is_left_alone_and_the_kill_happens(tmp_path: Path, make: Any, why: str) -> None:
    """A wrapped engine: one line in the log where something stands in the file's place, nothing is made or followed."""
    victim = tmp_path / "victim"
    victim.touch()
    path = tmp_path / "termination-log"
    if make is not None:
        make(path, victim)
    with Wrapped(tmp_path / "dumps", *PROCESS, "--termination-log", str(path)) as engine:
        engine.kill("TP1")
        assert engine.process.wait(30) == 128 + signal.SIGKILL
        record = engine.record()
        said = [line["because"] for line in engine.events("no termination log")]
    assert [line.startswith(why) for line in said] == ([True] if why else [])
    assert victim.read_text() == ""
    assert make is not None or not path.exists()
    assert not {"told the kubelet", "kubelet not told"} & {row["event"] for row in record["timeline"]}


def test_switched_off(tmp_path: Path) -> None:
    with Wrapped(tmp_path / "dumps", *PROCESS, "--termination-log", "none") as engine:
        engine.kill("TP1")
        assert engine.process.wait(30) == 128 + signal.SIGKILL
        assert "told the kubelet" not in [row["event"] for row in engine.record()["timeline"]]


@pytest.mark.root
def test_an_engine_that_is_left_running_is_told_nothing(tmp_path: Path, own: OwnLog) -> None:
    """Its container has not ended. The sidecar's own file is never written to."""
    arguments = ("--on-rank-death", "capture", *PROCESS, *flag(own))
    with watched(tmp_path / "dumps", *arguments, prefix=own.prefix) as (engine, sidecar):
        engine.kill("TP1")
        sidecar.incident()
        assert own.text() == ""
