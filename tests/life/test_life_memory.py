"""Collectors that eat memory in a container with a small limit: the kernel has nobody to kill."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from life_parts import assert_killed_once, watched
from memory_cgroup import interpreter_beside, memory_cgroup_of
from sidecar_process import PROC, identity_of, running

LIMIT = 192 << 20  # as in our manifests
REAL = Path(sys.executable).parent / "py-spy"
EATERS = {
    # As a program mostly does: RLIMIT_DATA ends it.
    "its own": "held = []\nwhile True:\n    held.append(bytearray(b'x' * (1 << 20)))\n",
    # What RLIMIT_DATA does not count.
    "shared": """
import mmap
held = []
while True:
    held.append(mmap.mmap(-1, 1 << 20))
    held[-1].write(b'x' * (1 << 20))
""",
    # Each of them within its limit.
    "with children": """
import mmap, os, signal
while True:
    ready, tell = os.pipe()
    if os.fork() == 0:
        held = bytearray(b'x' * (4 << 20))
        os.write(tell, b'.')
        signal.pause()
    os.read(ready, 1)
""",
}
PYSPY = """#!/bin/sh
for pid; do :; done
if grep -qx "$pid" '{victims}'; then exec '{python}' -I -c "{eater}"; fi
exec '{real}' "$@"
"""


@pytest.mark.root
@pytest.mark.parametrize("how", EATERS)
def test_collectors_that_eat_memory(tmp_path: Path, how: str) -> None:
    """No process is killed by the kernel; the record says what happened and has all other evidence; the kill comes."""
    victims = tmp_path / "victims"
    victims.write_text("")
    eater = EATERS[how].strip()
    script = PYSPY.format(victims=victims, python=Path(sys.executable).resolve(), eater=eater, real=REAL)
    python = interpreter_beside(tmp_path / "home", script)
    with (
        memory_cgroup_of(LIMIT) as cgroup,
        watched(
            tmp_path / "dumps", "--death-deadline", "10", python=cgroup.interpreter(python, tmp_path / "start"), tp=4
        ) as (engine, sidecar),
    ):
        ours = [identity_of(sidecar.pid), *(identity_of(sidecar.worker(kind)) for kind in ("guard", "web"))]
        assert f"{os.path.basename(cgroup.folder)}\n" in PROC.cgroup(sidecar.worker("recorder"))
        pids = {rank.label: rank.identity.pid for rank in engine.ranks}
        victims.write_text(f"{pids['TP0']}\n{pids['TP2']}\n")
        engine.kill("TP1")
        record = assert_killed_once(engine, sidecar)
        assert cgroup.kills() == 0, sidecar.log()
        assert all(running(identity) for identity in ours), sidecar.log()
        assert not sidecar.events("recorder lost")
        stacks = {a["rank"]: a for a in record["artifacts"] if a["kind"] == "pyspy_text"}
        for label in ("TP0", "TP2"):
            assert stacks[label]["status"] == "failed", stacks
            assert "memory" in stacks[label]["detail"], stacks
            assert "MiB" in stacks[label]["detail"], stacks
        assert {stacks[label]["status"] for label in ("TP3", "server")} == {"captured"}, stacks
        assert {a["status"] for a in record["artifacts"] if a["kind"] == "process" and a["rank"] in ("TP0", "TP2")} == {
            "captured"
        }


@pytest.mark.root
def test_collectors_that_hang_keep_no_memory_from_the_others(tmp_path: Path) -> None:
    """More hang than could begin at once: what they do not hold is given to the next, the others' stacks are there."""
    victims = tmp_path / "victims"
    victims.write_text("")
    script = PYSPY.format(
        victims=victims, python=Path(sys.executable).resolve(), eater="import time; time.sleep(600)", real=REAL
    )
    python = interpreter_beside(tmp_path / "home", script)
    with (
        memory_cgroup_of(LIMIT) as cgroup,
        watched(
            tmp_path / "dumps", "--death-deadline", "6", python=cgroup.interpreter(python, tmp_path / "start"), tp=8
        ) as (engine, sidecar),
    ):
        pids = {rank.label: rank.identity.pid for rank in engine.ranks}
        hanging = ("server", "TP0", "TP2", "TP3", "TP4")
        victims.write_text("".join(f"{engine.server if label == 'server' else pids[label]}\n" for label in hanging))
        engine.kill("TP1")
        record = assert_killed_once(engine, sidecar)
        assert cgroup.kills() == 0
        stacks = {a["rank"]: a["status"] for a in record["artifacts"] if a["kind"] == "pyspy_text"}
        # On a busy machine the last of them may have had no time left to begin.
        assert {stacks[label] for label in hanging} <= {"timed_out", "skipped"}, stacks
        assert {stacks[label] for label in ("TP5", "TP6", "TP7")} == {"captured"}, stacks


def test_whom_the_kernel_ends_first(tmp_path: Path) -> None:
    """Who the kill needs least goes first: recorder, web, guard, and the supervisor last, which is left as it came."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with watched(tmp_path / "dumps") as (_, sidecar):
        scores = [score(sidecar.pid), *(score(sidecar.worker(kind)) for kind in ("guard", "web", "recorder"))]
        assert scores[0] == score(os.getpid())
        assert scores == sorted(set(scores)), scores
