"""`rankguard run -- CMD`: CMD's own status, stops that are passed on, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from life_parts import Wrapped, await_ended, stopped, wrapping
from sidecar_process import PROC, Sidecar, descendants, eventually, identity_of, kill_identity, running

from sidecar.guard.exits import Exits
from sidecar.model import Identity
from sidecar.settings import ENGINE_VARIABLE
from sidecar.system.features import probe
from sidecar.system.proc import Proc


def statuses(tmp_path: Path, commands: dict[str, Sequence[str]]) -> dict[str, int]:
    """The exit statuses of these commands, wrapped, all at the same time (most of a run is its start)."""
    runs = {
        name: subprocess.Popen(
            [*wrapping(tmp_path / f"dumps-{number}"), *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for number, (name, command) in enumerate(commands.items())
    }  # fmt: skip
    try:
        return {name: run.wait(60) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()
            run.wait()


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_exit_status(tmp_path: Path) -> None:
    """CMD's own status; 128 + N for signal N; 127 where there is none, 126 where it cannot be run, as a shell says."""
    (tmp_path / "no-program").write_bytes(b"\x7fELF\0no program")
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    (tmp_path / "no-program").chmod(0o755)
    found = statuses(
        tmp_path,
        {
            "0": sh("exit 0"),
            "3": sh("exit 3"),
            "killed": sh("kill -KILL $$"),
            "terminated by itself": sh("kill -TERM $$"),
            "not found": ["/nowhere/at/all"],
            "not executable": [str(tmp_path / "not-executable")],
            "no program": [str(tmp_path / "no-program")],
            # waitid in a loop takes each child, and nobody else's.
            "200 orphans": sh("for i in $(seq 200); do (true &) ; done; wait; exit 7"),
        },
    )
    assert found == {
        "0": 0, "3": 3, "killed": 137, "terminated by itself": 143, "not found": 127, "not executable": 126,
        "no program": 126, "200 orphans": 7,
    }  # fmt: skip
    assert list((tmp_path / "dumps-0").glob("*/incident.json")) == []


def test_a_command_that_ends_before_it_is_watched(tmp_path: Path) -> None:
    """The supervisor has reaped it by the time the guard comes to watch it: what the supervisor says then counts."""
    proc, epoll = Proc(), select.epoll()
    exits = Exits(proc, probe(()), epoll)
    child = subprocess.Popen(sh("exit 7"))
    try:
        stat = proc.stat(child.pid)
        assert stat is not None
        _, status = os.waitpid(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        exits.watch(stat.identity, 0.0)
        told = exits.was_reaped(stat.identity, status, 0.0)
        assert [observation.status.code for observation in told] == [7]
    finally:
        exits.forget(stat.identity)
        epoll.close()
        proc.close()


def test_a_command_that_ends_while_there_is_no_guard(tmp_path: Path) -> None:
    """The guard is dead when the command ends: the next one hears of it from the supervisor."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Sidecar(tmp_path / "dumps", command=sh(f"read line < {gate}; exit 3"), listen="none") as sidecar:
        sidecar.wait("recorder stands by")
        guard = identity_of(sidecar.worker("guard"))
        command = identity_of(sidecar.wait("command started")["pid"])
        kill_identity(guard, signal.SIGSTOP)
        gate.write_text("go\n")
        eventually(lambda: PROC.stat(command.pid) is None, "the command reaped")
        kill_identity(guard)
        assert sidecar.process.wait(30) == 3, sidecar.log()


def test_a_command_that_ends_among_many_orphans(tmp_path: Path) -> None:
    """More ends than the guard's socket holds, while the guard has no time: the command's own is not among the lost."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"read line < {gate}; for i in $(seq 600); do (true &) ; done; exit 7"
    with Sidecar(tmp_path / "dumps", command=sh(script), listen="none") as sidecar:
        sidecar.wait("recorder stands by")
        guard = identity_of(sidecar.worker("guard"))
        command = identity_of(sidecar.wait("command started")["pid"])
        kill_identity(guard, signal.SIGSTOP)
        gate.write_text("go\n")
        eventually(lambda: PROC.stat(command.pid) is None, "the command reaped")
        eventually(lambda: len(descendants(sidecar.pid)) == 3, "the orphans reaped")
        kill_identity(guard, signal.SIGCONT)
        assert sidecar.process.wait(30) == 7, sidecar.log()


def test_what_the_command_sees(tmp_path: Path) -> None:
    """A session of its own, stdin and stdout passed through, default signals, no setting of ours but the marker."""
    script = (
        "import os, signal, sys\n"
        "print(os.getsid(0) == os.getpid() == os.getpgid(0))\n"
        f"print([n for n in os.environ if n.startswith('RANKGUARD_') and n != {ENGINE_VARIABLE!r}])\n"
        f"print(len(os.environ[{ENGINE_VARIABLE!r}]) > 8)\n"
        "print(os.environ.get('KEPT'))\n"
        "print([s.name for s in signal.Signals if signal.getsignal(s) is signal.SIG_IGN and s != signal.SIGXFSZ"
        " and s != signal.SIGPIPE])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        "print(sys.stdin.read())\n"
        "print(sorted(os.listdir('/proc/self/fd')))\n"
    )
    environment = os.environ | {"RANKGUARD_DEATH_DEADLINE": "2", "KEPT": "yes"}
    run = subprocess.run(
        [*wrapping(tmp_path), sys.executable, "-c", script], input="from the terminal", capture_output=True, text=True,
        env=environment, timeout=60, start_new_session=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[:7] == ["True", "[]", "True", "yes", "[]", "set()", "from the terminal"]
    assert lines[7] == "['0', '1', '2', '3']"  # 3 is the listing's own: none of ours is left open in it


def test_a_stop_is_a_drain(tmp_path: Path) -> None:
    """Each of the four stops is passed on; the command ends as it likes, and that is the status; no incident."""
    with ExitStack() as stack:
        runs = {name: stack.enter_context(waiting(tmp_path / name, name)) for name in _STOPS}  # all at the same time
        for run in runs.values():
            assert run.process.stdout is not None
            assert run.process.stdout.readline() == b"ready\n"
        for name, run in runs.items():
            run.process.send_signal(signal.Signals[name])
        assert {name: run.process.wait(30) for name, run in runs.items()} == dict.fromkeys(_STOPS, 42)
        assert [run.incidents() for run in runs.values()] == [[]] * 4
        assert [run.events("rank died") for run in runs.values()] == [[]] * 4


_STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def waiting(dump_dir: Path, name: str) -> Sidecar:
    """A command that exits with 42 at this signal."""
    script = (
        f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])\n"
        f"print('ready', flush=True); signal.sigwait([signal.{name}]); raise SystemExit(42)"
    )
    return Sidecar(dump_dir, command=[sys.executable, "-S", "-c", script], listen="none")


def test_a_stop_of_a_whole_engine(tmp_path: Path) -> None:
    """SIGTERM to us goes to the server, which ends its ranks as it likes: no incident, the server's status."""
    with Wrapped(tmp_path / "dumps", exit_clean_on_term=True) as engine:
        engine.process.terminate()
        assert engine.wait_gone(20) == []
        assert engine.process.wait(30) == 0
        assert list(engine.dump_dir.glob("*/incident.json")) == []
        assert not engine.events("rank died")


def test_after_a_stop_no_status_is_a_failure(tmp_path: Path) -> None:
    """An engine that dies badly of its stop (a rank by SIGKILL, the server by SIGTERM) is still no incident."""
    with Wrapped(tmp_path / "dumps", "--exit-grace", "0.2") as engine:
        server = identity_of(engine.server)
        kill_identity(server, signal.SIGSTOP)  # so that it is still there when its rank dies
        eventually(lambda: stopped([server]), "the server stopped")
        engine.process.terminate()
        eventually(lambda: engine.events("draining"), "the drain")
        engine.kill("TP1")
        eventually(lambda: engine.events("exited in the drain"), "the rank's exit")
        kill_identity(server, signal.SIGCONT)
        assert engine.process.wait(30) == 143, engine.log()
        assert engine.wait_gone(20) == []
        assert list(engine.dump_dir.glob("*/incident.json")) == []


def test_a_stop_before_the_command_is_known(tmp_path: Path) -> None:
    """SIGTERM in the first moment, and one that the command dies of: 143, no incident, nothing left."""
    with Sidecar(tmp_path, command=["sleep", "60"], listen="none") as sidecar:
        started = sidecar.wait("command started")
        sleeper = identity_of(started["pid"])
        sidecar.process.terminate()
        assert sidecar.process.wait(30) == 143
        assert not running(sleeper)
        assert sidecar.incidents() == []


def workers(sidecar: Sidecar) -> list[int]:
    return [pid for kind in ("guard", "recorder", "web") for pid in sidecar.workers(kind)]


@pytest.mark.parametrize("escape", ["session", "daemon"])
def test_a_killed_rank_gives_the_status(tmp_path: Path, escape: str) -> None:
    """A rank is SIGKILLed and Rankguard ends the engine: 137, the rank's, whatever the server died of.

    Who left the engine's session goes with it: a child in one of its own, even a double-forked one, which is known by
    the variable in its environment alone.
    """
    with Wrapped(tmp_path / "dumps", escape=escape) as engine:
        escaped = engine.find("escaped").identity
        assert running(escaped)
        engine.kill("TP1")
        assert engine.wait_gone(20) == [], engine.log()
        assert engine.process.wait(30) == 137
        record = engine.record()
        assert [f["rank"] for f in record["failures"] if f["first"]] == ["TP1"]
        assert escaped.pid in {member["pid"] for member in record["termination"]["killed"]}


def test_a_daemon_that_nobody_saw_come(tmp_path: Path) -> None:
    """It had left session, group and parent before anybody looked: the variable in its environment is all that ties it
    to the command. It is killed with it, and a stranger beside it is not.
    """
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"read line < {gate}; (setsid sleep 60 & echo $!); exec sleep 61"
    with (
        subprocess.Popen(["sleep", "62"], start_new_session=True) as stranger,
        Sidecar(tmp_path / "dumps", "--captures", "none", command=sh(script), listen="none") as sidecar,
    ):
        sidecar.wait("recorder stands by")
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard, signal.SIGSTOP)
        gate.write_text("go\n")
        assert sidecar.process.stdout is not None
        daemon = identity_of(int(sidecar.process.stdout.readline()))
        eventually(lambda: parent_of(daemon) == sidecar.pid, "the daemon nobody's child but ours")
        kill_identity(guard, signal.SIGCONT)
        os.kill(sidecar.wait("command started")["pid"], signal.SIGKILL)
        assert sidecar.process.wait(30) == 137, sidecar.log()
        record = sidecar.incident()
        assert record["reason"] == "EngineExited"
        assert daemon.pid in {member["pid"] for member in record["termination"]["killed"]}
        assert not running(daemon)
        assert stranger.poll() is None
        stranger.kill()


def test_the_first_failed_rank_gives_the_status(tmp_path: Path) -> None:
    """A rank exits with 3: that is the status, not the 137 of those that we killed."""
    with Wrapped(tmp_path / "dumps", light=False) as engine:
        engine.tell("exit", "TP1", "3")
        assert engine.wait_gone(20) == [], engine.log()
        assert engine.process.wait(30) == 3


def test_an_exit_of_0_after_a_rank_died(tmp_path: Path) -> None:
    """vLLM's server exits 0 after one of its workers was killed. Only observed, it is still that worker's failure."""
    options = {"engine": "vllm", "server_behaviour": "vllm", "reaction": 0.1, "light": False}
    with Wrapped(tmp_path / "dumps", "--on-rank-death", "observe", **options) as engine:
        engine.kill("TP1")
        assert engine.wait_gone(20) == [], engine.log()
        assert engine.process.wait(30) == 137
        record = engine.record()
        assert [(f["rank"], f["signal"]) for f in record["failures"] if f["first"]] == [("TP1", 9)]
        assert record["termination"] is None


def test_orphans_are_reaped(tmp_path: Path) -> None:
    """What the command's children leave behind comes to us, and does not stay a zombie."""
    script = "(sleep 60 & echo $!); exec sleep 61"
    with Sidecar(tmp_path, command=sh(script), listen="none") as sidecar:
        assert sidecar.process.stdout is not None
        orphan = identity_of(int(sidecar.process.stdout.readline()))
        eventually(lambda: parent_of(orphan) == sidecar.pid, "the orphan is ours")
        os.kill(orphan.pid, signal.SIGKILL)
        eventually(lambda: PROC.stat(orphan.pid) is None, "the orphan reaped")


def parent_of(identity: Identity) -> int:
    stat = PROC.stat(identity.pid)
    return stat.ppid if stat is not None else 0


def test_what_a_clean_exit_leaves_is_ended(tmp_path: Path) -> None:
    """CMD ends with 0 and leaves a daemon: after the grace it is ended, as a container's runtime would; status 0."""
    script = "setsid sleep 60 & echo $!; exit 0"
    with Sidecar(tmp_path, "--exit-grace", "0.2", command=sh(script), listen="none") as sidecar:
        assert sidecar.process.stdout is not None
        left = identity_of(int(sidecar.process.stdout.readline()))
        assert sidecar.process.wait(30) == 0
        await_ended([left], "what it left")
        assert sidecar.incidents() == []


def test_what_ends_by_itself_in_the_grace_is_not_killed(tmp_path: Path) -> None:
    """What CMD leaves may finish its work within the grace."""
    done = tmp_path / "done"
    script = f"(trap '' HUP; read line < {tmp_path}/gate; echo yes > {done}) & exit 0"
    os.mkfifo(tmp_path / "gate")
    with Sidecar(tmp_path / "dumps", "--exit-grace", "60", command=sh(script), listen="none") as sidecar:
        sidecar.wait("recorder stands by")
        command = sidecar.wait("command started")["pid"]
        eventually(lambda: PROC.stat(command) is None, "the command reaped")
        guard, before = sidecar.worker("guard"), rounds(sidecar.worker("guard"))
        eventually(lambda: rounds(guard) >= before + 5, "the guard has looked several times")
        (tmp_path / "gate").write_text("go\n")  # waits for the one who reads
        assert sidecar.process.wait(30) == 0
        assert done.read_text() == "yes\n"


def rounds(pid: int) -> int:
    """How often a process has gone to wait for something."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_killed_supervisor_takes_nothing_of_ours_with_it_alive(tmp_path: Path) -> None:
    """SIGKILL to the root process in wrap mode: guard, recorder and web leave."""
    with Sidecar(tmp_path, command=["sleep", "60"], listen="none") as sidecar:
        sidecar.wait("recorder stands by")
        tree = descendants(sidecar.pid)
        ours = [identity for identity in tree if identity.pid in workers(sidecar)]
        assert len(ours) == 3
        sidecar.process.kill()
        await_ended(ours, "our processes ended")
        for identity in tree:
            if running(identity):
                os.kill(identity.pid, signal.SIGKILL)
