"""Two snapshots of every rank, in which order things are taken, and who gets how much of the volume."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from recorder_rig import ID, PROC, Ranks, Start, artifacts, incident, member, rank_process, state_of, wait_for
from test_recorder_limits import HANGS, REAL, fake_pyspy, gone

from sidecar.model import ArtifactStatus, Identity
from sidecar.policy.stacks import moved, spot_of
from sidecar.recorder.capture.base import Piece, Scene, Target
from sidecar.recorder.captures import Captures, Taken
from sidecar.recorder.motion import Motion
from sidecar.recorder.reactor import Reactor

# Stands in one function until its first stack was taken, then in another: it watches a file for the word to go on.
MOVES = """
import os, sys, time
def the_first_place():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
def the_second_place():
    while True:
        sum(range(1000))
print("ready", flush=True)
the_first_place()
the_second_place()
"""
# What a py-spy does that works once for each target, and hangs as HANGS does the second time.
SECOND_HANGS = """#!/bin/sh
for pid; do :; done
if [ ! -e "{folder}/$pid" ]; then : > "{folder}/$pid"; exec {real} "$@"; fi
""" + HANGS.removeprefix("#!/bin/sh\nfor pid; do :; done\n")


def test_what_moves_is_told_from_what_does_not(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    stands = ranks.start()
    go = tmp_path / "go"
    moves = ranks.start(str(go), code=MOVES)
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(stands, "TP0"), rank_process(moves, "TP1")], frozen=False, seconds=8, twice=True)
    seen = 0
    while seen < 6:  # both of the first snapshots, each with its three kinds of files
        seen += rig.receive()["type"] == "captured"
    go.touch()
    rig.until("captures_done")
    rig.seal(what)

    record = rig.record()
    found = artifacts(record)
    for kind in ("process", "process2", "pyspy_json", "pyspy_text", "pyspy2_json", "pyspy2_text"):
        for rank in ("TP0", "TP1"):
            assert found[kind, rank]["status"] == "captured", (kind, rank)
    assert "the_first_place" in rig.text("pyspy/TP1.txt")
    assert "the_second_place" in rig.text("pyspy2/TP1.txt")
    [note] = [note for note in record["notes"] if "snapshots" in note]
    assert note.startswith("between two snapshots ")
    assert note.endswith(" s apart: TP1 moved; TP0 did not")
    assert float(note.split()[3]) >= 2.0


def test_frozen_ranks_have_one_snapshot(start: Start, ranks: Ranks) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=True, twice=True)
    rig.until("captures_done")
    rig.seal(what)
    assert {a["kind"] for a in rig.record()["artifacts"]} == {"process", "pyspy_json", "pyspy_text"}


def test_a_py_spy_that_hangs_in_the_second_snapshot_leaves_nobody_stopped(
    start: Start, ranks: Ranks, tmp_path: Path
) -> None:
    log = tmp_path / "pids"
    folder = tmp_path / "seen"
    folder.mkdir()
    script = SECOND_HANGS.format(log=log, only_when_pausing="", folder=folder, real=REAL)
    python = fake_pyspy(tmp_path, script)
    watched = [ranks.start() for _ in range(3)]
    rig = start(python=python)
    what = incident()
    rig.begin(what, [rank_process(w, f"TP{n}") for n, w in enumerate(watched)], False, 3.0, twice=True)
    rig.until("captures_done")
    rig.seal(what)
    found = artifacts(rig.record())
    for rank in ("TP0", "TP1", "TP2"):
        assert found["pyspy_json", rank]["status"] == "captured"
        assert found["pyspy2_json", rank]["status"] == "timed_out"
    for identity in watched:
        wait_for(lambda identity=identity: state_of(identity.pid) == "S")
    for pid in (int(line) for line in log.read_text().split()):
        wait_for(lambda pid=pid: gone(pid))


@pytest.mark.parametrize("twice", [False, True])
def test_only_one_holds_a_process_at_a_time(start: Start, ranks: Ranks, tmp_path: Path, twice: bool) -> None:
    """Two that attach to the same process would make each other fail; and native stacks wait for both snapshots."""
    log = tmp_path / "log"
    script = f"""#!/bin/sh
for pid; do :; done
mkdir "{tmp_path}/held-$pid" || echo overlap >> "{log}"
echo "$*" >> "{log}"
{REAL} "$@"
status=$?
sleep 0.3
rmdir "{tmp_path}/held-$pid"
exit $status
"""
    watched = [ranks.start() for _ in range(3)]
    rig = start(python=fake_pyspy(tmp_path, script))
    what = incident(captures=("pyspy", "pyspy_native"))
    rig.begin(what, [rank_process(w, f"TP{n}") for n, w in enumerate(watched)], False, 20.0, twice=twice)
    rig.until("captures_done", 30)
    rig.seal(what)
    runs = log.read_text().splitlines()
    assert "overlap" not in runs
    assert ["--native" in run for run in runs] == [False] * (6 if twice else 3) + [True] * 3
    assert {a["status"] for a in rig.record()["artifacts"]} == {"captured"}


def test_what_belongs_to_the_engine_only_has_no_second_snapshot(start: Start, ranks: Ranks) -> None:
    rank, helper = ranks.start(), ranks.start()
    rig = start()
    what = incident(captures=("process",), members=(member(helper),))
    rig.begin(what, [rank_process(rank, "TP0")], frozen=False, seconds=2, twice=True)
    rig.until("captures_done")
    rig.seal(what)
    found = [(a["kind"], a["rank"]) for a in rig.record()["artifacts"]]
    assert sorted(found) == [("process", "TP0"), ("process", f"helper-{helper.pid}"), ("process2", "TP0")]


# -- what is said of two snapshots ------------------------------------------------------------------------------------


def taken(kind: str, rank: str, began: float, function: str) -> Taken:
    frame = {"name": function, "filename": "/srv/engine.py", "line": 7}
    data = json.dumps([{"os_thread_id": 5, "thread_id": 1, "active": True, "frames": [frame]}]).encode()
    target = Target(Identity(5, 1), "scheduler", rank, "", rank, is_rank=True)
    return Taken(target, (Piece(kind, ArtifactStatus.CAPTURED, "x/y.json", data),), 0.1, began)


def test_the_line_says_which_and_how_far_apart() -> None:
    motion = Motion()
    for rank, before, after in (("TP0", "a", "b"), ("TP1", "a", "a"), ("TP2", "b", "b")):
        motion.keep(taken("pyspy_json", rank, 10.0, before))
        motion.keep(taken("pyspy2_json", rank, 12.125, after))
    assert motion.line("sglang") == "between two snapshots 2.1 s apart: TP0 moved; TP1, TP2 did not"


def test_where_nothing_moves_the_line_says_so_alone() -> None:
    motion = Motion()
    for kind, at in (("pyspy_json", 1.0), ("pyspy2_json", 3.0)):
        motion.keep(taken(kind, "TP0", at, "a"))
    assert motion.line("vllm") == "between two snapshots 2.0 s apart: TP0 did not move"


def test_one_snapshot_or_garbage_says_nothing_false() -> None:
    motion = Motion()
    motion.keep(taken("pyspy_json", "TP0", 1.0, "a"))
    assert motion.line("sglang") == ""
    garbage = taken("pyspy2_json", "TP0", 3.0, "a")
    broken = Piece("pyspy2_json", ArtifactStatus.CAPTURED, "x", b"[[[")
    motion.keep(Taken(garbage.target, (broken,), 0.1, 3.0))
    assert motion.line("sglang") == "between two snapshots 2.0 s apart: TP0 cannot be told"
    assert moved(None, spot_of([], 5, "sglang")) is None


# -- the volume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "kept"), [(1 << 30, True), (100, False)])
def test_what_is_written_past_us_gets_no_more_than_the_room_there_is(
    ranks: Ranks, tmp_path: Path, room: int, kept: bool
) -> None:
    """And waits until there is a folder to write to."""
    environment = {"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(tmp_path / "p"), "RANK": "0"}
    code = """
import os
stem = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"]
os.mkfifo(stem + "0.pipe")
fd = os.open(stem + "0.pipe", os.O_RDWR)
print("ready", flush=True)
os.read(fd, 1)
with open(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + "0", "wb") as dump:
    dump.write(b"\\x80" + bytes(1000) + b".")
os.read(fd, 100)
os.read(fd, 100)
"""
    environment["TORCH_FR_DUMP_TEMP_FILE"] = str(tmp_path / "dump_")
    identity = ranks.start(code=code, env=environment)
    target = Target(identity, "scheduler", "TP0", "", "TP0", is_rank=True)
    reactor = Reactor()
    folder = tmp_path / ID
    folder.mkdir()
    scene = Scene(PROC, frozen=False, pyspy="", targets=(target,))
    captures = Captures(("flight_recorder",), scene, time.monotonic() + 20, reactor)
    assert captures.step() == []
    assert not os.path.exists(tmp_path / "dump_0"), "not triggered before there is a place for it"
    captures.volume(str(folder), room)
    pieces: list[Piece] = []
    while not captures.done:
        for one in captures.step():
            pieces += one.pieces
        reactor.wait(0.05)
    captures.abandon()
    [piece] = pieces
    assert bool(piece.file) is kept
    assert (folder / "flight_recorder" / "TP0.pickle").exists() is kept
    assert piece.status is (ArtifactStatus.CAPTURED if kept else ArtifactStatus.FAILED)
    if not kept:
        assert "larger than the 100 bytes" in piece.detail


def test_without_a_volume_there_is_a_word_and_no_wait(ranks: Ranks) -> None:
    target = Target(ranks.start(), "scheduler", "TP0", "", "TP0", is_rank=True)
    reactor = Reactor()
    scene = Scene(PROC, frozen=False, pyspy="", targets=(target,))
    captures = Captures(("flight_recorder",), scene, time.monotonic() + 0.4, reactor)
    pieces: list[Piece] = []
    while not captures.done:
        for one in captures.step():
            pieces += one.pieces
        reactor.wait(0.05)
    assert [(p.status, p.detail) for p in pieces] == [(ArtifactStatus.FAILED, "the volume was not ready in time")]
