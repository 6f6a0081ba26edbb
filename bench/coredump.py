"""Bringing a CUDA coredump to another volume, beside `cp`: the collector's copy with its checksum, and the plain tool.

Both write to the same disk, in turns, from the same file in memory; neither syncs, since the recorder syncs when it
seals, after the kill. Before each round the disk is synced, so no round pays for the one before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.stats import percentile
from sidecar.demo.cuda_double import dump
from sidecar.errors import RankguardError
from sidecar.recorder.coredump.take import Shelf
from sidecar.recorder.coredump.watch import Found

NAME = "coredump"
MIB = 1 << 20
SIZES = {Scale.FULL: (2048 * MIB, 5), Scale.QUICK: (512 * MIB, 3), Scale.SMOKE: (16 * MIB, 1)}
_AT_LEAST = 0.5  # of cp's throughput: cp makes no checksum


def run(scale: Scale) -> Report:
    size, rounds = SIZES[scale]
    memory = Path(tempfile.mkdtemp(prefix="rankguard-bench-", dir="/dev/shm"))
    disk = Path(tempfile.mkdtemp(prefix="rankguard-bench-"))
    try:
        if memory.stat().st_dev == disk.stat().st_dev:
            raise RankguardError("the folder for temporary files is in memory too: set TMPDIR to a disk's")
        dump(str(memory / "dump"), size)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(_cp(memory / "dump", disk / "cp"))
            ours.append(_stream(memory / "dump", disk))
        return _report(size, ours, theirs)
    finally:
        shutil.rmtree(memory)
        shutil.rmtree(disk)


def _cp(source: Path, target: Path) -> float:
    os.sync()
    began = time.monotonic()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    took = time.monotonic() - began
    target.unlink()
    return took


def _stream(source: Path, disk: Path) -> float:
    """Seconds from the open dump to the whole file under its name. The dump is linked, since a taken one is removed."""
    folder = source.parent / "engine"
    folder.mkdir()
    os.rename(source, folder / "dump")
    fd = os.open(folder / "dump", os.O_RDONLY)
    holder = os.open(folder, os.O_RDONLY)
    os.link(folder / "dump", source)
    try:
        info = os.fstat(fd)
        version = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        found = Found(fd, holder, "dump", str(folder / "dump"), version, 0.0, 0.0)
        os.sync()
        began = time.monotonic()
        taken = Shelf(str(disk), "TP0", 1 << 62, 1 << 62).take(found, "", True, began + 600)
        took = time.monotonic() - began
        if not taken.whole or taken.bytes != info.st_size:
            raise RankguardError(f"the copy is not whole: {taken}")
    finally:
        os.close(fd)
        os.close(holder)
        shutil.rmtree(folder)
    (disk / "cuda_coredump" / "TP0.core").unlink()
    return took


def _report(size: int, ours: Sequence[float], theirs: Sequence[float]) -> Report:
    speed = {name: size / MIB / percentile(seconds, 0.5) for name, seconds in (("ours", ours), ("cp", theirs))}
    share = speed["ours"] / speed["cp"]
    rows = (
        Row("collector, with sha256", (f"{speed['ours']:.0f}", f"{max(ours):.2f}"),
            (Goal("of cp's throughput", share, _AT_LEAST, at_least=True),), {"seconds": list(ours)}),
        Row("cp", (f"{speed['cp']:.0f}", f"{max(theirs):.2f}"), (), {"seconds": list(theirs)}),
    )  # fmt: skip
    notes = (f"{size // MIB} MiB from memory to disk, {len(ours)} rounds in turns, medians; neither is synced.",)
    return Report(NAME, "Streaming a CUDA coredump to the volume", ("MiB/s", "slowest s"), rows, notes)
