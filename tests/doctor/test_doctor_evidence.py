"""What the engine itself must offer: the driver's trigger pipe, PyTorch's, NCCL's port, an environment to read."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_rig import ROOT, USER, check, process, result, root_with, statuses, ways

HOLD = """
import os, sys
for path in sys.argv[2:]:
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)
if sys.argv[1]:
    import setproctitle
    setproctitle.setproctitle(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(*paths: Path, title: str = "", **environ: str) -> Iterator[int]:
    """A process that has these open for reading, with this environment."""
    started = subprocess.Popen(
        [sys.executable, "-c", HOLD, title, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environ},
    )  # fmt: skip
    assert started.stdin is not None
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == b"ready\n"
        yield started.pid
    finally:
        started.kill()
        started.wait(20)
        started.stdin.close()
        started.stdout.close()


@contextlib.contextmanager
def double(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver's stand-in, with its pipe made and read."""
    started = subprocess.Popen(
        [sys.executable, "-m", "sidecar.demo.cuda_double"], cwd=folder, stdout=subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1",
            "CUDA_COREDUMP_PIPE": str(folder / "pipe"), "CUDA_COREDUMP_FILE": str(folder / "dump"),
            "CUDA_COREDUMP_GENERATION_FLAGS": "skip_abort",
        },
    )  # fmt: skip
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == b"ready\n"
        yield started
    finally:
        started.kill()
        started.wait(20)
        started.stdout.close()


def test_a_trigger_pipe_that_is_read(tmp_path: Path) -> None:
    """Found and told, and not triggered by it: the first byte that comes is one of ours, later."""
    with double(tmp_path) as driver:
        found = check(tmp_path / "dumps", driver.pid)
        assert statuses(found, "coredump_pipe") == ["ok"]
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            pipe.write(b"12")
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"triggered 2\n"


def test_a_trigger_pipe_that_nobody_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    enabled = {"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1", "CUDA_COREDUMP_PIPE": str(tmp_path / "pipe")}
    with holding(**enabled) as target:
        found = check(tmp_path / "dumps", target)
    assert statuses(found, "coredump_pipe") == ["missing"]
    assert "nobody reads its pipe" in result(found, "coredump_pipe").seen
    assert not found.fails


def test_coredumps_that_are_enabled_and_have_no_pipe_yet(tmp_path: Path) -> None:
    """CUDA begins late: nothing is claimed before it has."""
    enabled = {"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1", "CUDA_COREDUMP_PIPE": str(tmp_path / "pipe")}
    with holding(**enabled) as target:
        assert statuses(check(tmp_path / "dumps", target), "coredump_pipe") == ["unknown"]


@pytest.mark.root
def test_coredumps_that_are_not_enabled(tmp_path: Path) -> None:
    """Missing where there is a GPU, with the engine's YAML; where there is none, not applicable."""
    device = Path(f"/dev/nvidia-rankguard-test-{os.getpid()}")
    device.touch()
    try:
        with holding(device) as target:
            found = check(tmp_path, target)
    finally:
        device.unlink()
    with holding() as target:
        without = check(tmp_path, target)
    asked = check(tmp_path, captures=("process",))
    assert statuses(found, "coredump_pipe", "flight_recorder") == ["missing"] * 2
    (coredump,), (flight,) = ways(result(found, "coredump_pipe")), ways(result(found, "flight_recorder"))
    assert {"name": "CUDA_ENABLE_USER_TRIGGERED_COREDUMP", "value": "1"} in coredump["env"]
    assert "TORCH_NCCL_DEBUG_INFO_PIPE_FILE" in [one["name"] for one in flight["env"]]
    assert statuses(without, "coredump_pipe", "flight_recorder") == ["not_applicable"] * 2
    assert statuses(asked, "coredump_pipe", "flight_recorder", "pyspy") == ["not_applicable"] * 3


@pytest.mark.root
def test_a_trigger_pipe_of_another_user(tmp_path: Path) -> None:
    """Its mode is 0600: root needs DAC_OVERRIDE to write to it, which is told before it is needed."""
    pipe = tmp_path / "corepipe"
    os.mkfifo(pipe, 0o600)
    os.chown(pipe, USER, USER)
    enabled = {"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1", "CUDA_COREDUMP_PIPE": str(pipe)}
    with holding(pipe, **enabled) as target:
        able = check(tmp_path, target, prefix=root_with("sys_ptrace", "kill", "dac_override"))
        unable = check(tmp_path, target, prefix=root_with("sys_ptrace", "kill"))
    assert statuses(able, "coredump_pipe") == ["ok"]
    assert statuses(unable, "coredump_pipe") == ["missing"]
    assert "no permission to write" in result(unable, "coredump_pipe").seen
    assert ways(result(unable, "coredump_pipe"))[-1]["securityContext"]["capabilities"]["add"][-1] == "DAC_OVERRIDE"


def test_the_flight_recorders_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fr0.pipe")
    stem = {"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(tmp_path / "fr")}
    with holding(tmp_path / "fr0.pipe", **stem) as target:
        there = check(tmp_path / "dumps", target)
    with holding(**stem) as target:
        not_yet = check(tmp_path / "dumps", target)
    assert statuses(there, "flight_recorder") == ["ok"]
    assert statuses(not_yet, "flight_recorder") == ["unknown"]


class Ras:
    """A port that greets like NCCL's RAS service, or takes connections and says nothing."""

    def __init__(self, greets: bool) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._greets = greets
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._socket.accept()
                self._held.append(connected)
                if self._greets:
                    connected.recv(64)
                    connected.sendall(b"SERVER PROTOCOL 2\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for connected in self._held:
            connected.close()


@pytest.mark.parametrize(("greets", "status"), [(True, "ok"), (False, "hung")])
def test_the_port_of_nccls_ras(tmp_path: Path, greets: bool, status: str) -> None:
    ras = Ras(greets)
    try:
        with holding(NCCL_RAS_ADDR=ras.address) as target:
            found = check(tmp_path, target, seconds=15.0)
    finally:
        ras.close()
    assert statuses(found, "nccl_ras") == [status]
    assert ras.address in result(found, "nccl_ras").seen


def test_an_environment_that_a_title_was_written_over(tmp_path: Path) -> None:
    """Empty is not denied: it is told apart, and is no loss of a right."""
    with holding(title="sglang::scheduler_TP0" + "x" * 4000, SOMETHING="else") as target:
        found = check(tmp_path, target)
    environment = result(found, "environment")
    assert environment.status.value == "ok"
    assert "a title was written over it" in environment.seen


def test_no_secret_is_told(tmp_path: Path) -> None:
    """Command lines are masked, and of an environment no value appears."""
    with process("sleep", "600", env={"PATH": os.environ["PATH"], "API_KEY": "pa55word"}) as target:
        found = check(tmp_path, target)
    with process(sys.executable, "-c", "import time; time.sleep(600)", "--api-key", "pa55word") as other:
        more = check(tmp_path, other)
    assert "pa55word" not in repr(found)
    assert "pa55word" not in repr(more)
