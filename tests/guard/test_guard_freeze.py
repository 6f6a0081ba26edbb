"""Freeze, let go, kill: everything of the engine, however it tries to get away, and nobody else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guard_troupe import Troupe, killed_pids, labels_of
from guard_watch import beside, watched
from sidecar_process import PROC, events_of, eventually, kill_identity, running, state_of

from sidecar.demo.standin import StandIn

TWO_RANKS = "rank('TP0'); rank('TP1')\n"


@contextmanager
def troupe_watched(tmp_path: Path, code: str, *labels: str, flags: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """A troupe that is complete with two ranks, and a sidecar that is ready for its failure."""
    with Troupe(code) as troupe, beside(tmp_path, troupe.pid, "--expected-ranks", "2", *flags) as sidecar:
        troupe.await_labels("TP0", "TP1", *labels)
        sidecar.wait_serving()
        yield troupe, sidecar


def told_of_children(troupe: Troupe, what: str) -> set[int]:
    return {int(rest[0]) for said, _, rest in troupe.said if said == what}


def test_with_action_capture_nothing_stays_stopped(tmp_path: Path) -> None:
    """Everything was frozen for the capture, everything runs on after it, and nothing is killed."""
    code = TWO_RANKS + "rank('TP2', lambda: witness('TP2'))\ntell_of_children()"
    with troupe_watched(tmp_path, code, "TP2", flags=("--on-rank-death", "capture")) as (troupe, sidecar):
        troupe.kill("TP1")
        record = sidecar.incident()
        assert {"frozen", "let go"} <= set(events_of(record))
        assert record["termination"] is None
        staying = {"TP0", "TP2"}
        pids = {troupe.pid_of(label) for label in staying}
        eventually(lambda: troupe.hear(0.05) and pids <= told_of_children(troupe, "continued"), "all were continued")
        for label in {*staying, "server"}:
            eventually(lambda label=label: state_of(troupe.identities[label]) in ("S", "R"), f"{label} runs on")
        assert [rest for said, _, rest in troupe.said if said == "TP2-caught"] == [["SIGCONT"]]
        info = os.waitid(os.P_PID, troupe.pid, os.WCONTINUED | os.WNOHANG)
        assert info is not None
        assert info.si_code == os.CLD_CONTINUED


def test_with_action_observe_nobody_is_signalled(tmp_path: Path) -> None:
    """The kernel tells a parent of each stop of its children: there is none, nor any signal to one that would say."""
    code = TWO_RANKS + "rank('TP2', lambda: witness('TP2'))\ntell_of_children()"
    with troupe_watched(tmp_path, code, "TP2", flags=("--on-rank-death", "observe")) as (troupe, sidecar):
        troupe.kill("TP1")
        eventually(sidecar.incidents, "the opening record")
        eventually(lambda: troupe.hear(0.05) and told_of_children(troupe, "ended"), "the parent knows")
        assert os.waitid(os.P_PID, troupe.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is None
        assert {label for label, who in troupe.identities.items() if running(who)} >= {"server", "TP0", "TP2"}
        troupe.kill_all()  # the engine goes by itself: what was observed is the record
        record = sidecar.incident()
        assert record["failures"][0]["rank"] == "TP1"
        assert record["termination"] is None
        assert {"frozen", "killed", "let go"}.isdisjoint(events_of(record))
        assert told_of_children(troupe, "stopped") | told_of_children(troupe, "continued") == set()
        assert [said for said, _, _ in troupe.said if said == "TP2-caught"] == []


@pytest.mark.parametrize("captures", ["process", "none"])
def test_a_child_in_a_session_of_its_own(captures: str, tmp_path: Path) -> None:
    """It left the group and the session, and is the engine's by its parent: gone with it, its parent killed or not."""
    with watched(tmp_path, "--captures", captures, tp=2, escape="session") as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.kill("server")
        record = sidecar.incident()
        assert record["reason"] == "EngineExited"
        assert engine.wait_gone() == []
        assert engine.find("escaped").pid in killed_pids(record)


def test_a_daemon_outside_a_container_is_not_known_as_the_engine_s(tmp_path: Path) -> None:
    """Attached on a bare host, a double-forked child that left before anybody looked has nothing of the engine: no
    parent, no group, no session, no container. It is left alone; in a pod its container tells, in wrap mode its
    environment.
    """
    with StandIn(tp=2, escape="daemon") as engine:
        engine.wait_ready()
        daemon = engine.find("escaped").identity
        with beside(tmp_path, engine.process.pid) as sidecar:
            sidecar.wait_serving()
            engine.kill("TP1")
            record = sidecar.incident()
            assert [process.label for process in engine.wait_gone(0.5)] == ["escaped"]
            assert daemon.pid not in killed_pids(record)
            assert running(daemon)


def test_a_daemon_of_a_wrapped_command_goes_with_it(tmp_path: Path) -> None:
    """Wrapped, everything that the command started bears a mark in its environment, a double-forked child too."""
    dumps = tmp_path / "dumps"
    flags = ("--log-format", "json", "--dump-dir", str(dumps), "--listen", "none", "--api-listen", "none")
    run = (sys.executable, "-m", "sidecar", "run", *flags, "--captures", "process", "--")
    log = tmp_path / "log"
    with log.open("w") as stderr, StandIn(prefix=run, stderr=stderr, tp=2, escape="daemon") as engine:
        engine.wait_ready()
        eventually(lambda: '"state": "serving"' in log.read_text(), "serving")
        eventually(lambda: '"recorder stands by"' in log.read_text(), "a recorder")
        engine.kill("TP1")
        assert engine.process.wait(30) == 128 + signal.SIGKILL, log.read_text()
        assert engine.wait_gone() == []


FORKER = """
def forker():
    def child():
        {leave}
        say("born")
        {life}
    for _ in range(3000):
        fork(child)
        {collect}
        time.sleep(0.003)
    wait()
"""
BRIEF = {"leave": "pass", "life": "os._exit(0)", "collect": "os.wait()"}
LEAVING = {"leave": "os.setsid()", "life": "wait()", "collect": "pass"}


@pytest.mark.parametrize(
    ("kind", "captures"),
    [
        pytest.param(BRIEF, "process", id="brief children through the freeze"),
        pytest.param(LEAVING, "process", id="children that leave through the freeze"),
        pytest.param(LEAVING, "none", id="children that leave through the kill alone"),
    ],
)
def test_one_that_forks_without_end(kind: dict[str, str], captures: str, tmp_path: Path) -> None:
    """A process that forks all through the freeze and the kill: nothing that it made is left, in whatever session."""
    code = FORKER.format(**kind) + TWO_RANKS + "order()\nfork(forker, 'forker')\nwait()"
    with troupe_watched(tmp_path, code, flags=("--captures", captures)) as (troupe, sidecar):
        troupe.order("fork")
        eventually(lambda: troupe.hear(0.05) and sum(said == "born" for said, _, _ in troupe.said) > 20, "it forks")
        troupe.kill("TP1")
        record = sidecar.incident()
        troupe.wait_gone()
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        assert record["termination"]["survivors"] == []


def test_a_process_in_a_vfork_wait(tmp_path: Path) -> None:
    """Its parent sits in D until the child has executed something, so it never shows as stopped: nobody waits for it,
    and it is gone with the others.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # posix_spawn is a vfork, and opening a FIFO that nobody writes to comes before the exec.
    open_first = f"[(os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, os.O_RDONLY, 0)]"
    spawner = f"lambda: os.posix_spawn('/bin/true', ['true'], {{}}, file_actions={open_first})"
    with troupe_watched(tmp_path, f"rank('TP0', {spawner})\nrank('TP1')\nwait()") as (troupe, sidecar):
        eventually(lambda: state_of(troupe.identities["TP0"]) == "D", "the vfork wait")
        troupe.kill("TP1")
        record = sidecar.incident()
        troupe.wait_gone()
        assert troupe.pid_of("TP0") in killed_pids(record)
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        assert "deadline" not in events_of(record)


def test_strangers_are_never_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a root: one outside the tree but in the engine's own group and session, one that bears a rank's title
    elsewhere in the namespace, and one in the sidecar's session and group. None of them is stopped, continued, killed
    or given any signal.
    """
    code = """
def engine():
    say("root")
    rank("TP0")
    rank("TP1")
    wait()
fork(lambda: witness("neighbour"))
order()
fork(engine)
tell_of_children()
"""
    roommate = tmp_path / "roommate"
    launcher = tmp_path / "launcher"
    # Double-forked before the sidecar takes the shell's place: in its session and group, and no child of it.
    launcher.write_text(
        f'#!/bin/sh\n(sleep 60 </dev/null >/dev/null 2>&1 & echo $! >{roommate})\nexec {sys.executable} "$@"\n'
    )
    launcher.chmod(0o755)
    with Troupe("rank('TP9', lambda: witness('TP9'))\nwait()") as elsewhere, Troupe(code) as troupe:
        elsewhere.await_labels("TP9")
        troupe.await_labels("neighbour")
        troupe.order("go")
        troupe.await_labels("root", "TP0", "TP1")
        monkeypatch.setattr(sys, "executable", str(launcher))
        with beside(tmp_path, troupe.pid_of("root"), "--expected-ranks", "2") as sidecar:
            monkeypatch.undo()
            stranger = eventually(lambda: roommate.exists() and roommate.read_text().strip(), "the roommate")
            identity = PROC.stat(int(stranger)).identity
            try:
                sidecar.wait_serving()
                assert PROC.stat(identity.pid).sid == sidecar.pid
                troupe.kill("TP1")
                record = sidecar.incident()
                assert labels_of(record["failures"]) == ["TP1"]
                assert killed_pids(record) - {troupe.pid_of("TP1")} == {troupe.pid_of("root"), troupe.pid_of("TP0")}
                assert not running(troupe.identities["TP0"])
                assert state_of(identity) == "S"
            finally:
                kill_identity(identity)
        neighbour = troupe.identities["neighbour"]
        assert PROC.stat(neighbour.pid).pgid == troupe.pid
        for who, label in ((troupe, "neighbour"), (troupe, "server"), (elsewhere, "TP9")):
            assert state_of(who.identities[label]) in ("S", "R")
        for who, label in ((troupe, "neighbour"), (elsewhere, "TP9")):
            caught = f"{label}-caught"
            kill_identity(who.identities[label], signal.SIGUSR1)
            eventually(lambda who=who, caught=caught: who.hear(0.05) and caught in [s[0] for s in who.said], caught)
            assert [rest for said, _, rest in who.said if said == caught] == [["SIGUSR1"]]
        assert neighbour.pid not in told_of_children(troupe, "stopped") | told_of_children(troupe, "continued")
        assert os.waitid(os.P_PID, troupe.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is None
