"""Processes and descriptors run out, or nobody reads the log: deaths are seen, and the kill happens all the same."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from life_parts import (
    SMALL,
    ask,
    assert_killed_once,
    await_frozen,
    hanging_pyspy,
    new_worker,
    port_of,
    watched,
)
from process_cgroup import entering, process_limit
from sidecar_process import (
    PROC,
    descendants,
    eventually,
    identity_of,
    kill_identity,
    load,
    running,
)

from sidecar.demo.standin import StandIn


def freeze_limit(cgroup: Path) -> None:
    """As many processes and threads as there are, and not one more."""
    (cgroup / "pids.max").write_text((cgroup / "pids.current").read_text())


@pytest.mark.root
def test_no_more_processes(tmp_path: Path) -> None:
    """No collector can be started: the record says so for each, and the kill is not delayed."""
    with (
        process_limit() as cgroup,
        watched(tmp_path / "dumps", python=entering(cgroup, tmp_path / "start")) as (
            engine,
            sidecar,
        ),
    ):
        freeze_limit(cgroup)
        engine.kill("TP1")
        assert engine.wait_gone(20) == [], sidecar.log()
        record = sidecar.incident()
        details = {a["detail"] for a in record["artifacts"] if a["rank"] == "TP0"}
        assert any("EAGAIN" in detail for detail in details), details
        (cgroup / "pids.max").write_text("max")
        assert_killed_once(engine, sidecar)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["guard", "web", "recorder"])
def test_killed_with_no_more_processes(tmp_path: Path, kind: str) -> None:
    """Whoever ends is started again in the one place that it has left, and the next death is seen."""
    with (
        process_limit() as cgroup,
        watched(tmp_path / "dumps", "--captures", "process", python=entering(cgroup, tmp_path / "start")) as (
            engine,
            sidecar,
        ),
    ):
        old = identity_of(sidecar.worker(kind))
        ask(port_of(sidecar), "/healthz")
        before = int((cgroup / "pids.current").read_text())
        (cgroup / "pids.max").write_text("1")  # nobody can be started
        kill_identity(old)
        sidecar.wait("cannot start", what=kind)
        (cgroup / "pids.max").write_text(str(before))  # it can, and all that it has started so far
        new_worker(sidecar, kind, old)
        engine.kill("TP1")
        assert engine.wait_gone(20) == [], sidecar.log()
        (cgroup / "pids.max").write_text("max")
        assert_killed_once(engine, sidecar)


def test_no_descriptor_left(tmp_path: Path) -> None:
    """The supervisor has none left when the guard ends over a frozen engine: the switch kills all of it, and when there
    are descriptors again the next guard finishes the record.
    """
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", "--death-deadline", "60", python=python) as (engine, sidecar),
    ):
        guard = identity_of(sidecar.worker("guard"))
        engine.kill("TP1")
        sidecar.wait("frozen")
        await_frozen(engine)
        limits = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        try:
            used = {int(name) for name in os.listdir(f"/proc/{sidecar.pid}/fd")}
            lowest = next(number for number in range(len(used) + 1) if number not in used)
            resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
            kill_identity(guard)
            sidecar.wait("dead man's switch fired", signal="SIGKILL")
            sidecar.wait("cannot start", what="guard")
            assert engine.wait_gone(20) == [], sidecar.log()
        finally:
            resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, limits)
        assert_killed_once(engine, sidecar)


@pytest.mark.parametrize("how", ["full", "closed"])
def test_a_log_that_nobody_reads(tmp_path: Path, how: str) -> None:
    """A pipe that is full, or has no reader: no process waits or ends over it, in a whole incident."""
    dumps = tmp_path / "dumps"
    read, write = os.pipe()
    argv = [
        sys.executable, "-m", "sidecar", "run", "--log-format", "json", "--dump-dir", str(dumps), "--listen",
        "127.0.0.1:0", "--api-listen", "none",
    ]  # fmt: skip
    with StandIn(**SMALL) as engine:
        engine.wait_ready()
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(write, True)
        if how == "closed":
            os.close(read)
        process = subprocess.Popen(
            [*argv, "--root-pid", str(engine.process.pid)], stdin=subprocess.DEVNULL, stdout=write, stderr=write
        )
        try:
            supervisor = identity_of(process.pid)

            def standing_by() -> bool:
                """All of ours are there, and the recorder and the guard have opened what they open."""
                kinds = ("guard", "web", "recorder")
                lines = [b" ".join(PROC.cmdline(i.pid).split(b"\0")) for i in descendants(process.pid)]
                return all(any(f"sidecar.{kind}.__main__".encode() in line for line in lines) for kind in kinds)

            eventually(standing_by, "all of ours up")
            ours = descendants(process.pid)
            guard = next(i for i in ours if b"sidecar.guard.__main__" in PROC.cmdline(i.pid))
            held = [rank.identity for rank in engine.ranks]
            eventually(
                lambda: sum("pidfd" in link for link in links_of(guard.pid)) >= len(held),
                "the ranks watched by the guard",
            )
            engine.kill("TP1")
            assert engine.wait_gone(20) == []
            found = eventually(lambda: list(dumps.glob("*/incident.json")), "an incident")
            eventually(lambda: load(found[0].parent)["sealed"], "the incident sealed")
            assert running(supervisor)
            assert running(guard)
            assert json.loads(found[0].read_text())["failures"][0]["rank"] == "TP1"
            process.terminate()
            assert process.wait(30) == 0
        finally:
            for identity in descendants(process.pid) if process.poll() is None else []:
                kill_identity(identity)
            if process.poll() is None:
                process.kill()
                process.wait(20)
            os.close(write)
            if how == "full":
                os.close(read)


def links_of(pid: int) -> list[str]:
    """What a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(folder / name))
        except OSError:
            continue
    return found


@pytest.mark.root
def test_nothing_can_be_written_but_the_dump_folder(tmp_path: Path) -> None:
    """A read-only root, /tmp and /dev/shm, as a hardened pod has them: the same incident, complete."""
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    program = tmp_path / "start"
    program.write_text(
        "#!/bin/sh\nexec unshare -m /bin/sh -c '\n"
        f"set -e; mount --make-rprivate /; mount --bind {dumps} {dumps}\n"
        "mount --bind /dev/shm /dev/shm; mount -o remount,ro,bind /dev/shm\n"
        "mount -o remount,ro,bind /\n"
        f'exec {sys.executable} "$@"\' sh "$@"\n'
    )
    program.chmod(0o755)
    if subprocess.run([program, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("no mounts can be made here")
    probe = f"open({str(tmp_path / 'probe')!r}, 'w')"
    assert subprocess.run([program, "-c", probe], check=False, capture_output=True).returncode, "it is read-only"
    with watched(dumps, python=str(program)) as (engine, sidecar):
        engine.kill("TP1")
        record = assert_killed_once(engine, sidecar)
        stacks = {a["rank"]: a["status"] for a in record["artifacts"] if a["kind"] == "pyspy_text"}
        assert stacks["TP0"] == stacks["server"] == "captured", record["artifacts"]
        assert sidecar.events("process ended") == []
