"""The volume hangs, is full, is gone or refuses: the kill happens all the same, and no loss goes untold."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from life_parts import Ranks, await_ended, await_metric, metric, watched
from sidecar_process import Sidecar, eventually, load

from sidecar.model import Identity


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


@contextmanager
def tmpfs(where: Path, size: str) -> Iterator[Path]:
    """A small volume of its own, unmounted at the end even if something still uses it."""
    where.mkdir()
    call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where))
    try:
        yield where
    finally:
        call("umount", "--lazy", str(where))


@contextmanager
def ext4(folder: Path) -> Iterator[Path]:
    """A real file system on a loop device, which can be frozen."""
    image, where = folder / "image", folder / "volume"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
    call("mount", "-o", "loop", str(image), str(where))
    try:
        yield where
    finally:
        call("umount", "--lazy", str(where))


@contextmanager
def hanging(volume: Path) -> Iterator[None]:
    """Every write to the volume waits, as on a network volume that is gone, until the end of this."""
    call("fsfreeze", "--freeze", str(volume))
    try:
        yield
    finally:
        call("fsfreeze", "--unfreeze", str(volume))


def kill_one(engine: Ranks, ranks: list[Identity], rank: int = 1) -> None:
    """SIGKILL to one rank; the whole engine ends."""
    engine.kill(rank)
    assert engine.collect() == [-9, -9]
    await_ended(ranks, "the engine gone")


def told(sidecar: Sidecar) -> None:
    """Wait for the record, or for word of its loss in the log, which is then in /metrics too."""
    eventually(
        lambda: sidecar.events("lost") or any(line["process"] == "guard" for line in sidecar.events("sealed")),
        f"the record, or word of its loss\n{sidecar.log()}",
    )
    if sidecar.events("lost"):
        eventually(lambda: metric(sidecar, "records_lost_total") > 0, "the loss counted")


@pytest.mark.root
def test_it_hangs_from_before_the_death_until_after_the_kill(tmp_path: Path) -> None:
    """The engine is gone while the volume still hangs; once it answers, the record is written, or its loss is told."""
    with ext4(tmp_path) as volume, Ranks() as engine:
        ranks = engine.start()
        with Sidecar(volume / "dumps", "--captures", "process", "--death-deadline", "1", *engine.flags) as sidecar:
            sidecar.wait_serving()
            with hanging(volume):
                kill_one(engine, ranks)
                sidecar.wait("gone")
                assert sidecar.incidents() == []
            told(sidecar)
            next_incident_is_recorded(engine, sidecar)


@pytest.mark.root
def test_it_hangs_with_the_evidence_in_hand(tmp_path: Path) -> None:
    """It hangs between the opening record and the seal: what was captured waits in memory and is written later."""
    with ext4(tmp_path) as volume:
        dumps = volume / "dumps"
        with watched(dumps, "--captures", "process", "--death-deadline", "60") as (engine, sidecar):
            with hanging(volume):
                engine.kill("TP1")
                assert engine.wait_gone(20) == []
                sidecar.wait("gone")
            record = sidecar.incident()
            captured = [a for a in record["artifacts"] if a["status"] == "captured"]
            assert captured
            assert all((sidecar.incidents()[0] / a["path"]).stat().st_size == a["bytes"] for a in captured)


def test_the_folder_is_removed(tmp_path: Path) -> None:
    """Somebody deletes the dump folder while we watch: it is made again, or the loss is told; the kill happens."""
    dumps = tmp_path / "dumps"
    with watched(dumps, "--captures", "process") as (engine, sidecar):
        shutil.rmtree(dumps)
        engine.kill("TP1")
        assert engine.wait_gone(20) == []
        record = sidecar.incident()
        assert record["failures"][0]["rank"] == "TP1"
        await_metric(sidecar, 1, "terminations_total")


@pytest.mark.root
def test_it_is_full(tmp_path: Path) -> None:
    """The kill happens; the record itself still fits, where its reserve was; what did not fit is logged and counted."""
    with tmpfs(tmp_path / "volume", "256k") as volume:
        dumps = volume / "dumps"
        with watched(dumps, "--captures", "process") as (engine, sidecar):
            eventually(lambda: (dumps / ".reserve").exists(), "the reserve")
            fill(volume)
            engine.kill("TP1")
            assert engine.wait_gone(20) == []
            sidecar.wait("gone")
            told(sidecar)
            record = sidecar.incident()
            assert record["failures"][0]["cause"] == "sigkill"


@pytest.mark.root
def test_it_has_no_room_at_all(tmp_path: Path) -> None:
    """A volume of 64 KiB that was full from the start: no reserve, no record; the loss is logged and counted."""
    with tmpfs(tmp_path / "volume", "64k") as volume, Ranks() as engine:
        dumps = volume / "dumps"
        dumps.mkdir()
        ranks = engine.start()
        with Sidecar(dumps, "--captures", "process", *engine.flags) as sidecar:
            sidecar.wait_serving()
            filler = fill(volume)
            kill_one(engine, ranks)
            sidecar.wait("lost")
            eventually(lambda: metric(sidecar, "records_lost_total") > 0, "the loss counted")
            assert metric(sidecar, "rank_deaths_total") == 1
            filler.unlink()
            next_incident_is_recorded(engine, sidecar)


@pytest.mark.root
def test_it_becomes_read_only(tmp_path: Path) -> None:
    """As ext4 does after an error: the kill happens, the loss is logged and counted; after the repair all is well."""
    with tmpfs(tmp_path / "volume", "4m") as volume, Ranks() as engine:
        dumps = volume / "dumps"
        ranks = engine.start()
        with Sidecar(dumps, "--captures", "process", *engine.flags) as sidecar:
            sidecar.wait_serving()
            eventually(lambda: (dumps / ".reserve").exists(), "the first look at the volume")
            remount(volume, "ro")
            kill_one(engine, ranks)
            sidecar.wait("lost")
            eventually(lambda: metric(sidecar, "records_lost_total") > 0, "the loss counted")
            remount(volume, "rw")
            next_incident_is_recorded(engine, sidecar)


def next_incident_is_recorded(engine: Ranks, sidecar: Sidecar) -> None:
    """After the repair, a death in the next generation gives a sealed record."""
    eventually(lambda: sidecar.worker("recorder"), "a recorder")
    seen = len(sidecar.lines)
    ranks = engine.start()
    sidecar.wait("watching", state="serving", after=seen)
    kill_one(engine, ranks, 0)
    eventually(
        lambda: any(load(f)["sealed"] and f.name.endswith("tp0") for f in sidecar.incidents()),
        f"the second record\n{sidecar.log()}",
    )
    await_metric(sidecar, 2, "incidents_total")
    await_metric(sidecar, 1, "rank_deaths_by_rank_total", rank="TP0")


def fill(volume: Path) -> Path:
    """Take all the room there is."""
    filler = volume / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (65536, 4096, 1):
            while True:
                try:
                    os.write(fd, b"x" * size)
                except OSError:
                    break
    finally:
        os.close(fd)
    return filler


def remount(volume: Path, mode: str) -> None:
    """As soon as nobody has a file open for writing there, which is a moment's matter."""
    eventually(
        lambda: subprocess.run(["mount", "-o", f"remount,{mode}", str(volume)], capture_output=True).returncode == 0,
        f"remounted {mode}",
    )
