"""What is left to our own cgroup: in real cgroups, with real processes that fill them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from memory_cgroup import memory_cgroup_of
from sidecar_process import PROC
from system_processes import Script

from sidecar.system.memory import OwnMemory

MIB = 1 << 20
LOOK = """
import os
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
open({procs!r}, "w").write(str(os.getpid()))
memory = OwnMemory(Proc())
def told():
    room = memory.room()
    say(str(room.left) + " " + str(room.limit))
told()
held = bytearray(os.urandom(1 << 20)) * 40
told()
del held
with open({file!r}, "wb") as file:
    for _ in range(120):
        file.write(bytes(1 << 20))
told()
hear()
"""

SHARED = "import mmap\nsay('a')\nhear()\nm = mmap.mmap(-1, 32 << 20)\nm.write(bytes(32 << 20))\nsay('b')\nhear()"


@pytest.mark.root
def test_what_is_left(tmp_path: Path) -> None:
    """Memory of processes counts, page cache (of a file that fills the cgroup) does not."""
    with memory_cgroup_of(96 * MIB) as group:
        text = LOOK.format(procs=str(group.folder / "cgroup.procs"), file=str(tmp_path / "file"))
        with Script(text) as script:
            first, holding, written = ([int(word) for word in script.heard().split()] for _ in range(3))
            assert [limit for _, limit in (first, holding, written)] == [96 * MIB] * 3
            assert 50 * MIB < first[0] < 96 * MIB
            assert 30 * MIB < first[0] - holding[0] < 60 * MIB
            kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True)
            if kind.stdout.strip() != "tmpfs":  # which cannot be taken back, and does count
                assert written[0] > holding[0] + 20 * MIB
            assert group.kills() == 0


def test_where_there_is_no_limit() -> None:
    """No limit, or none to be read, is None; a process that is gone holds nothing; and all is closed again."""
    before = len(os.listdir("/proc/self/fd"))
    memory = OwnMemory(PROC)
    room = memory.room()
    assert room is None or 0 < room.limit < 1 << 60
    assert memory.held_by(2**22 + 1) == 0
    assert memory.held_by(os.getpid()) > MIB
    assert memory.children_of(2**22 + 1) == []
    assert (memory.available() or 0) > MIB
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_shared_memory_counts() -> None:
    """What another process shares with nobody but holds as shared memory is seen: no RLIMIT counts that."""
    memory = OwnMemory(PROC)
    try:
        with Script(SHARED) as script:
            script.heard()
            before = memory.held_by(script.pid)
            script.tell()
            script.heard()
            assert memory.held_by(script.pid) >= before + 31 * MIB
    finally:
        memory.close()


EARLIER_KILLS = """
import subprocess
from sidecar.recorder.allowance import Allowance
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
open(sys.argv[1], "w").write(str(os.getpid()))
memory = OwnMemory(Proc())
eats = "open('/proc/self/oom_score_adj', 'w').write('1000'); held = bytearray(os.urandom(1 << 20)) * 200"
ended = [subprocess.run([sys.executable, "-S", "-c", "import os; " + eats]).returncode for _ in range(2)]
allowance = Allowance(memory, 1)
say(ended, repr(allowance.kernel_killed()))
hear()
"""


@pytest.mark.root
def test_kills_for_memory_before_the_incident_explain_nothing_in_it() -> None:
    """Two of others' are as good as none: a child that somebody kills later was not the kernel's."""
    with memory_cgroup_of(64 * MIB) as group, Script(EARLIER_KILLS, str(group.folder / "cgroup.procs")) as script:
        assert script.heard() == "[-9, -9] ''"
        assert group.kills() == 2
