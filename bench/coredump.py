"""Bringing a CUDA coredump to another volume, beside `cp`: the collector's copy with its checksum, and the plain tool.

Both write to the same disk, in turns, from the same file in memory; neither syncs, since the recorder syncs when it
seals, after the kill. Before each round the disk is synced, so no round pays for the one before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Report, Row
from bench.scale import Scale
from bench.stats import percentile
from sidecar.demo.cuda_double import dump
from sidecar.errors import RankguardError
from sidecar.recorder.coredump.take import Shelf
from sidecar.recorder.coredump.watch import Found

NAME = "coredump"
MIB = 1 << 20
SIZES = {Scale.FULL: (2048 * MIB, 5), Scale.QUICK: (512 * MIB, 3), Scale.SMOKE: (16 * MIB, 1)}
_DISK = os.environ.get("TMPDIR") or "/var/tmp"  # by the rules of file systems it outlives a boot, so it is on a disk


def run(scale: Scale) -> Report:
    size, rounds = SIZES[scale]
    free = {where: shutil.disk_usage(where).free for where in ("/dev/shm", _DISK)}
    for where, least in (("/dev/shm", size), (_DISK, 2 * size)):
        if free[where] < least + 64 * MIB:
            raise RankguardError(f"{where} has {free[where] // MIB} MiB free and {least // MIB + 64} are needed")
    memory = Path(tempfile.mkdtemp(prefix="rankguard-bench-", dir="/dev/shm"))
    disk = Path(tempfile.mkdtemp(prefix="rankguard-bench-", dir=_DISK))
    try:
        if memory.stat().st_dev == disk.stat().st_dev:
            raise RankguardError(f"{_DISK} is in memory too: set TMPDIR to a folder on a disk")
        dump(str(memory / "dump"), size)
        ours, theirs, hashing = [], [], []
        for _ in range(rounds):
            theirs.append(_cp(memory / "dump", disk / "cp"))
            ours.append(_stream(memory / "dump", disk))
            hashing.append(_sha256(memory / "dump"))
        return _report(size, ours, theirs, hashing)
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


def _sha256(source: Path) -> float:
    """The checksum alone, which one core makes: no copy that has one is faster."""
    began = time.monotonic()
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return time.monotonic() - began


def _report(size: int, ours: Sequence[float], theirs: Sequence[float], hashing: Sequence[float]) -> Report:
    named = (("ours", ours), ("cp", theirs), ("sha256", hashing))
    speed = {name: size / MIB / percentile(seconds, 0.5) for name, seconds in named}
    share = speed["ours"] / speed["cp"]
    both = 1 / (1 / speed["cp"] + 1 / speed["sha256"])
    why = (
        f"cp and a sha256 one after the other would reach {both / speed['cp']:.2f} of it, side by side on two free "
        f"cores {min(1.0, speed['sha256'] / speed['cp']):.2f}: the checksum is CPU, and waits where the cores are busy"
    )
    rows = (
        Row("collector, with sha256", (f"{speed['ours']:.0f}", f"{max(ours):.2f}"), (),
            {"seconds": list(ours), "share": share}),
        Row("cp", (f"{speed['cp']:.0f}", f"{max(theirs):.2f}"), (), {"seconds": list(theirs)}),
        Row("sha256 alone, nothing written", (f"{speed['sha256']:.0f}", f"{max(hashing):.2f}"), (),
            {"seconds": list(hashing)}),
    )  # fmt: skip
    notes = (
        f"{size // MIB} MiB from memory to disk, {len(ours)} rounds in turns, medians; neither is synced.",
        f"the collector reaches {share:.2f} of cp's throughput; {why}.",
    )
    return Report(NAME, "Streaming a CUDA coredump to the volume", ("MiB/s", "slowest s"), rows, notes)
