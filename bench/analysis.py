"""The analysis of 1,024 ranks with 64 frames each: the merge alone, and the whole program that the recorder starts.

The stacks are made up, in the form of py-spy's; as the merge's cost could depend on how much ranks have in common,
they run the same code, part halfway, or have no function in common at all. CPU time, since that is what the node
pays; the program has two snapshots and two process states of each rank to read, from a warm cache.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.children import ROOT
from bench.report import Goal, Report, Row
from bench.scale import Scale
from sidecar.errors import RankguardError
from sidecar.recorder.analysis.stacks import Dump, merge
from sidecar.recorder.capture.base import _BOOT

NAME = "analysis"
SIZES = {Scale.FULL: (1024, 5), Scale.QUICK: (1024, 2), Scale.SMOKE: (32, 1)}  # ranks, rounds
DEPTH = 64
LIMIT = 1.0  # seconds, of the merge
KINDS = {"the same code": DEPTH, "they part halfway": DEPTH // 2, "nothing in common": 0}  # frames in common
_MODULE = "sidecar.recorder.analysis.program"


def run(scale: Scale) -> Report:
    number, rounds = SIZES[scale]
    rows = []
    for kind, common in KINDS.items():
        documents = {label_of(rank): document(rank, common) for rank in range(number)}
        merges = [_merge_seconds(documents) for _ in range(rounds)]
        with tempfile.TemporaryDirectory(prefix="rankguard-bench-") as folder:
            _write(Path(folder), documents)
            programs = [_program_seconds(folder, list(documents)) for _ in range(rounds)]
        worst = max(merges)
        rows.append(Row(
            kind,
            (f"{min(merges):.2f} / {worst:.2f}", f"{min(used for used, _ in programs):.2f}",
             f"{programs[0][1] / 2**20:.1f}"),
            (Goal("merge, the slowest round", worst, LIMIT, " s"),),
            {"merge": merges, "program": [used for used, _ in programs], "bytes": programs[0][1]},
        ))  # fmt: skip
    notes = (
        f"{number} ranks with {DEPTH} frames each, {rounds} rounds, seconds of CPU time. 'merge': from parsed JSON to "
        "the tree, best / worst. 'program': its start, two snapshots and two states of each rank read from files, and "
        "three files written, best. 'MiB': what it writes.",
    )
    return Report(NAME, f"Stacks of {number} ranks made one tree", ("merge", "program", "MiB"), tuple(rows), notes)


def label_of(rank: int) -> str:
    return f"DP{rank // 64}_PP{rank // 8 % 8}_TP{rank % 8}"


def document(rank: int, common: int) -> list[dict[str, Any]]:
    """As `py-spy dump --json` writes it: the innermost frame first, and a line that jitters."""
    frames = [
        {"name": f"Part{depth}.step" if depth < common else f"Part{depth}.step_{rank}",
         "filename": f"/usr/lib/python3/dist-packages/engine/managers/part{depth}.py", "module": None,
         "short_filename": f"part{depth}.py", "line": 10 * depth + rank % 9, "locals": None, "is_entry": False}
        for depth in reversed(range(DEPTH))
    ]  # fmt: skip
    return [{"pid": 1000 + rank, "thread_id": 1, "thread_name": "MainThread", "os_thread_id": 1000 + rank,
             "active": True, "owns_gil": False, "frames": frames}]  # fmt: skip


def _merge_seconds(documents: dict[str, Any]) -> float:
    dumps = [Dump(label, 1000 + rank, threads) for rank, (label, threads) in enumerate(documents.items())]
    gc.disable()  # as the program does
    began = time.process_time()
    merged = merge(dumps, "sglang")
    used = time.process_time() - began
    gc.enable()
    if merged.main.threads != len(dumps):
        raise RankguardError("the merge has lost a rank")
    return used


def _write(folder: Path, documents: dict[str, Any]) -> None:
    for kind in ("pyspy", "pyspy2", "process", "process2"):
        (folder / kind).mkdir()
    for rank, (label, threads) in enumerate(documents.items()):
        state = {"pid": 1000 + rank, "wchan": "", "stat": {"state": "R", "cpu_ticks": 5}, "status": {}, "threads": []}
        for kind, made in (("pyspy", threads), ("pyspy2", threads), ("process", state), ("process2", state)):
            (folder / kind / f"{label}.json").write_text(json.dumps(made))


def _program_seconds(folder: str, labels: list[str]) -> tuple[float, int]:
    """CPU seconds, and the bytes of its answer."""
    order = {"folder": folder, "seconds": 600, "engine": "sglang", "reason": "Manual", "failures": [], "because": [],
             "liveness": None, "frozen": False, "apart": 2.0,
             "ranks": [{"rank": label, "label": label, "role": "scheduler", "pid": 1000 + rank}
                       for rank, label in enumerate(labels)]}  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(ROOT), _MODULE, json.dumps(order)]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RankguardError(f"the analysis ended with {done.returncode}: {done.stderr[-300:]!r}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, len(done.stdout)
