"""The kernel's out-of-memory killer, by a real memory cgroup."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard_troupe import Troupe, labels_of
from guard_watch import beside
from sidecar_process import PROC, eventually, kill_identity, running

from sidecar.system.cgroup import OomCounter, memory_cgroup, memory_mount

LIMIT = 96 * 2**20
HOG = """
def eat():
    from sidecar.demo.seat import touched
    signal.signal(signal.SIGUSR1, lambda *_: touched(2**28))
    say("hungry")
    wait()
rank("TP0")
rank("TP1", eat)
wait()
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup with a limit (v1 or v2), empty, and gone after the test."""
    version, _ = memory_cgroup(PROC.cgroup(os.getpid()))
    point, _ = memory_mount(Path("/proc/self/mountinfo").read_text(), version) if version else ("", "")
    if not point:
        pytest.skip("there is no memory cgroup here")
    folder = Path(point, f"rankguard-test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / ("memory.max" if version == "v2" else "memory.limit_in_bytes")).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield folder
    finally:
        eventually(lambda: (folder / "cgroup.procs").read_text() == "", "the cgroup empty")
        folder.rmdir()


def enter(cgroup: Path, troupe: Troupe) -> None:
    for label in ("server", "TP0", "TP1"):
        (cgroup / "cgroup.procs").write_text(str(troupe.pid_of(label)))


@pytest.mark.root
def test_a_rank_that_the_kernel_killed_for_memory(cgroup: Path, tmp_path: Path) -> None:
    """SIGKILL by the kernel in the rank's own cgroup is oom_killed, and not just any SIGKILL; the limit is told."""
    with Troupe(HOG) as troupe:
        troupe.await_labels("TP0", "TP1", "hungry")
        enter(cgroup, troupe)
        with beside(tmp_path, troupe.pid, "--expected-ranks", "2") as sidecar:
            sidecar.wait_serving()
            troupe.kill("TP1", signal.SIGUSR1)
            record = sidecar.incident()
            failure = record["failures"][0]
            assert (failure["rank"], failure["signal"], failure["cause"]) == ("TP1", 9, "oom_killed")
            assert failure["detail"] == "cgroup limit 96 MiB"
            assert record["summary"].startswith("TP1 was killed by the kernel for memory (cgroup limit 96 MiB) while")
            troupe.wait_gone()


@pytest.mark.root
def test_a_kill_in_a_cgroup_where_the_kernel_killed_before(cgroup: Path, tmp_path: Path) -> None:
    """What the kernel did before the rank was found explains nothing: this one is a plain SIGKILL."""
    with Troupe(HOG) as earlier:
        earlier.await_labels("TP0", "TP1", "hungry")
        enter(cgroup, earlier)
        counter = OomCounter(PROC, earlier.pid_of("TP0"))
        try:
            earlier.kill("TP1", signal.SIGUSR1)
            eventually(lambda: not running(earlier.identities["TP1"]), "killed for memory")
            assert counter.take(), "the kernel did count it"
            assert not counter.take(), "and it explains one death only"
        finally:
            counter.close()
    with Troupe(HOG) as troupe:
        troupe.await_labels("TP0", "TP1", "hungry")
        enter(cgroup, troupe)
        with beside(tmp_path, troupe.pid, "--expected-ranks", "2") as sidecar:
            sidecar.wait_serving()
            kill_identity(troupe.identities["TP1"])
            record = sidecar.incident()
            assert labels_of(record["failures"]) == ["TP1"]
            assert record["failures"][0]["cause"] == "sigkill"
