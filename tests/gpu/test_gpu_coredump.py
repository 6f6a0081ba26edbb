"""The coredump collector on a kernel that hangs, under the real driver. Answers what its documents leave open.

Each test prints what it saw (`pytest -m gpu -s tests/gpu`), so that docs/coredumps.md can say it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.model import ArtifactStatus, Identity
from sidecar.recorder.coredump import elf
from sidecar.recorder.coredump.pipe import find
from sidecar.recorder.coredump.program import Answer, Order, answer_to
from sidecar.recorder.coredump.target import TargetProcess
from sidecar.recorder.coredump.template import expand, names
from sidecar.system.proc import Proc

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
HERE = Path(__file__).resolve().parent
LIGHT = "skip_nonrelocated_elf_images,skip_global_memory,skip_shared_memory,skip_local_memory"
GIB = 1 << 30
Spin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spin(tmp_path: Path) -> Iterator[Spin]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(flags: str = LIGHT + ",skip_abort", **environ: str) -> subprocess.Popen[bytes]:
        (tmp_path / "engine").mkdir(exist_ok=True)
        settings = {
            "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1",
            "CUDA_COREDUMP_PIPE": str(tmp_path / "engine/pipe.%h.%p"),
            "CUDA_COREDUMP_FILE": str(tmp_path / "engine/dump.%h.%p.%t"),
            "CUDA_COREDUMP_SHOW_PROGRESS": "1",
            "CUDA_COREDUMP_GENERATION_FLAGS": flags,
        }
        merged = {name: value for name, value in {**settings, **environ}.items() if value}
        process = subprocess.Popen(
            [sys.executable, str(HERE / "spinning_kernel.py")], stdout=subprocess.PIPE, cwd=tmp_path / "engine",
            env={**os.environ, **merged},
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 120)[0], "the kernel did not start within 120 s"
        said = process.stdout.readline().decode().strip()
        if said != "ready":
            if process.wait(30) == 77:
                pytest.skip(f"no GPU to test on: {said}")
            raise AssertionError(f"the kernel did not start: {said!r}")
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


def identity(process: subprocess.Popen[bytes]) -> Identity:
    stat = Proc().stat(process.pid)
    assert stat is not None
    return stat.identity


def dumped(process: subprocess.Popen[bytes], folder: Path, seconds: float = 60.0) -> Answer:
    folder.mkdir(exist_ok=True)
    who = identity(process)
    began = time.monotonic()
    order = Order("/proc", who.pid, who.start, (), str(folder), "TP0", 8 * GIB, 8 * GIB, began + seconds, True)
    answer = answer_to(order)
    print(f"\n{answer}\nin {time.monotonic() - began:.2f} s; the process then: {process.poll()}")
    return answer


def test_a_hanging_kernel_is_dumped(spin: Spin, tmp_path: Path) -> None:
    """By the collector, as in production; says with how many bytes the driver was content."""
    process = spin()
    answer = dumped(process, tmp_path / "incident")
    assert answer.status is ArtifactStatus.CAPTURED, answer.detail
    fd = os.open(tmp_path / "incident" / answer.file, os.O_RDONLY)
    assert elf.shortfall(fd) == ""
    header = os.pread(fd, 20, 0)
    os.close(fd)
    assert header[7] == elf.OSABI_CUDA


def test_one_byte_is_enough(spin: Spin, tmp_path: Path) -> None:
    process = spin()
    answer = dumped(process, tmp_path / "incident")
    assert "triggered with 1 byte;" in answer.detail + ";"


def test_skip_abort_keeps_the_process_alive(spin: Spin, tmp_path: Path) -> None:
    process = spin()
    assert dumped(process, tmp_path / "incident").status is ArtifactStatus.CAPTURED
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)  # it must not end by itself: there is nothing to wait for


def test_what_becomes_of_the_process_without_skip_abort(spin: Spin, tmp_path: Path) -> None:
    """Documented for exceptions, not for a user's trigger: whatever it is, the dump is whole."""
    process = spin(flags=LIGHT)
    assert dumped(process, tmp_path / "incident").status is ArtifactStatus.CAPTURED
    try:
        print(f"without skip_abort the process ended with {process.wait(20)}")
    except subprocess.TimeoutExpired:
        print("without skip_abort the process goes on")


def test_the_drivers_own_names(spin: Spin, tmp_path: Path) -> None:
    """With no names set: which the driver gives to its pipe and its file, and that both are found."""
    process = spin(CUDA_COREDUMP_PIPE="", CUDA_COREDUMP_FILE="")
    target = TargetProcess("/proc", identity(process))
    target.enter()
    pipe = find(target, tuple(expand(name, target.host(), process.pid) for name in names({}).pipes))
    print(f"\nthe driver's pipe: {pipe.path}")
    answer = dumped(process, tmp_path / "incident")
    assert answer.status is ArtifactStatus.CAPTURED, answer.detail
