"""Bringing a coredump to the volume: moved or copied, whole or not, and never somebody else's file."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coredump_rig import GIB, Double, Run, collected, scene
from recorder_rig import wait_for

from sidecar.demo.cuda_double import dump
from sidecar.model import ArtifactStatus
from sidecar.recorder.coredump.take import NotTaken, Shelf
from sidecar.recorder.coredump.watch import Found

Begin = Callable[..., Double]
MIB = 1 << 20


@pytest.fixture
def begin() -> Iterator[Begin]:
    doubles: list[Double] = []

    def start(folder: Path, *arguments: str, **how: object) -> Double:
        doubles.append(Double(folder, *arguments, **how))
        return doubles[-1]

    try:
        yield start
    finally:
        for double in doubles:
            double.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on another volume than `tmp_path`."""
    folder = Path(tempfile.mkdtemp(prefix="rankguard-test-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    folders: list[Path] = []

    def at(*arguments: str) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        subprocess.run(["mount", *arguments, str(folder)], check=True)
        folders.append(folder)
        return folder

    try:
        yield at
    finally:
        for folder in reversed(folders):
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.fixture
def incident(tmp_path: Path) -> Path:
    folder = tmp_path / "incident"
    folder.mkdir()
    return folder


def opened(path: Path) -> Found:
    """What the watch gives for a file that is there."""
    fd = os.open(path, os.O_RDONLY)
    info = os.fstat(fd)
    version = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    folder = os.open(path.parent, os.O_RDONLY)
    return Found(fd, folder, path.name, str(path), version, 0.0, 0.0)


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def soon() -> float:
    return time.monotonic() + 30


def test_on_the_same_volume_it_is_moved(begin: Begin, tmp_path: Path, incident: Path) -> None:
    """One rename: the very same file, with no second copy of its bytes at any time."""
    double = begin(tmp_path / "engine", "--size", "200000")
    piece = collected(double, scene(incident))
    assert "moved from" in piece.detail
    assert piece.status is ArtifactStatus.CAPTURED
    assert double.dumps() == []


def test_from_another_volume_it_is_copied_whole(begin: Begin, memory: Path, incident: Path) -> None:
    """64 MiB, byte for byte, and the source is gone."""
    double = begin(memory / "engine", "--size", str(64 * MIB), "--delay", "0.1")
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.CAPTURED, piece.detail
    assert "copied from" in piece.detail
    data = (incident / piece.file).read_bytes()
    assert piece.written == (len(data), hashlib.sha256(data).hexdigest())
    assert len(data) >= 64 * MIB
    assert double.dumps() == []
    assert os.listdir(incident / "cuda_coredump") == ["TP0.core"]


def test_a_copy_is_the_source_byte_for_byte(memory: Path, incident: Path) -> None:
    dump(str(memory / "dump"), 9 * MIB + 17)
    wanted = (memory / "dump").read_bytes()
    taken = Shelf(str(incident), "TP0", GIB, GIB).take(opened(memory / "dump"), mountinfo(), True, soon())
    assert (incident / "cuda_coredump/TP0.core").read_bytes() == wanted
    assert taken.sha256 == hashlib.sha256(wanted).hexdigest()
    assert not (memory / "dump").exists()


@pytest.mark.root
def test_one_volume_in_two_mounts_is_still_one_rename(begin: Begin, mount: Callable[..., Path]) -> None:
    """As in a pod: the engine's container and the sidecar's have each a mount of the volume, and of a part of it."""
    ours = mount("-t", "tmpfs", "none")
    (ours / "pods" / "one").mkdir(parents=True)
    theirs = mount("--bind", str(ours / "pods"))
    (ours / "incident").mkdir()
    double = begin(theirs / "one" / "engine", "--size", "200000")
    piece = collected(double, scene(ours / "incident"))
    assert piece.status is ArtifactStatus.CAPTURED, piece.detail
    assert "moved from" in piece.detail


@pytest.mark.root
def test_a_full_volume_keeps_nothing_and_says_so(memory: Path, mount: Callable[..., Path]) -> None:
    """No part of the dump is left to take the last room, and the source stays where it is."""
    volume = mount("-t", "tmpfs", "-o", "size=1m", "none")
    dump(str(memory / "dump"), 3 * MIB)
    with pytest.raises(NotTaken, match="ENOSPC"):
        Shelf(str(volume), "TP0", GIB, GIB).take(opened(memory / "dump"), mountinfo(), True, soon())
    assert os.listdir(volume / "cuda_coredump") == []
    assert (memory / "dump").exists()


@pytest.mark.root
def test_a_read_only_volume_says_so(begin: Begin, mount: Callable[..., Path], tmp_path: Path) -> None:
    volume = mount("-t", "tmpfs", "none")
    subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
    double = begin(tmp_path / "engine")
    piece = collected(double, scene(volume))
    assert piece.status is ArtifactStatus.FAILED
    assert errno.errorcode[errno.EROFS] in piece.detail


def test_a_copy_that_the_deadline_cuts_is_partial(memory: Path, incident: Path) -> None:
    """What was copied is kept and its source stays. A deadline that has passed keeps nothing at all."""
    dump(str(memory / "dump"), 4 * MIB)
    shelf = Shelf(str(incident), "TP0", GIB, GIB)
    with pytest.raises(NotTaken, match="no time left"):
        shelf.take(opened(memory / "dump"), mountinfo(), True, time.monotonic() - 1)
    assert os.listdir(incident / "cuda_coredump") == []
    assert (memory / "dump").exists()


def test_a_kill_in_the_middle_leaves_no_half_dump_under_a_whole_ones_name(
    begin: Begin, memory: Path, incident: Path
) -> None:
    double = begin(memory / "engine", "--size", str(256 * MIB))
    run = Run(double.identity, scene(incident))
    run.until("taking")
    folder = incident / "cuda_coredump"
    wait_for(lambda: os.listdir(folder))
    run.kill()
    piece = run.piece()
    (name,) = os.listdir(folder)
    if piece.status is ArtifactStatus.TIMED_OUT:
        assert "while taking" in piece.detail
        assert name == "TP0.core.partial" or (folder / name).stat().st_size >= 256 * MIB
    else:
        assert (piece.status, name) == (ArtifactStatus.CAPTURED, "TP0.core")


def test_a_copy_cut_anywhere_is_a_beginning_of_the_dump(memory: Path, incident: Path) -> None:
    """Whenever the deadline comes: nothing, a beginning that is called partial, or all of it."""
    for number, seconds in enumerate((0.0001, 0.002, 0.01, 0.03, 10.0)):
        dump(str(memory / "dump"), 24 * MIB)
        wanted = (memory / "dump").read_bytes()
        shelf = Shelf(str(incident), f"TP{number}", GIB, GIB)
        try:
            taken = shelf.take(opened(memory / "dump"), mountinfo(), True, time.monotonic() + seconds)
        except NotTaken:
            continue
        got = (incident / shelf.path).read_bytes()
        assert got == wanted[: taken.bytes]
        assert taken.sha256 == hashlib.sha256(got).hexdigest()
        assert taken.whole == (taken.bytes == len(wanted)) == (not (memory / "dump").exists())
    assert taken.whole


def test_a_symbolic_link_is_no_dump(begin: Begin, tmp_path: Path, incident: Path) -> None:
    """The engine's folder is hostile ground: a link under the dump's name leads nowhere."""
    secret = tmp_path / "secret"
    dump(str(secret), 5000)
    double = begin(
        tmp_path / "engine", "--behaviour", "no-file", environ={"CUDA_COREDUMP_FILE": str(tmp_path / "engine/dump.%p")}
    )
    run = Run(double.identity, scene(incident), seconds=2.5)
    double.wait("triggered")
    (tmp_path / f"engine/dump.{double.identity.pid}").symlink_to(secret)
    piece = run.piece()
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert secret.exists()
    assert not (incident / "cuda_coredump/TP0.core").exists()


@pytest.mark.root
def test_a_file_of_another_user_is_no_dump(begin: Begin, tmp_path: Path, incident: Path) -> None:
    """CUDA_COREDUMP_FILE may name any file: only the process's own user's counts."""
    name = tmp_path / "engine" / "dump"
    double = begin(tmp_path / "engine", "--behaviour", "no-file", environ={"CUDA_COREDUMP_FILE": str(name)})
    run = Run(double.identity, scene(incident), seconds=6.0)
    double.wait("triggered")
    dump(f"{name}.new", 5000)
    os.chown(f"{name}.new", 12345, 12345)
    os.rename(f"{name}.new", name)
    piece = run.piece()
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert "not a file of the process's user" in piece.detail
    assert name.exists()


def test_an_older_dump_is_not_taken_for_the_new_one(begin: Begin, tmp_path: Path, incident: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    dump(str(engine / "dump"), 70_000)
    old = (engine / "dump").read_bytes()
    double = begin(engine, "--size", "90000", "--delay", "0.5", environ={"CUDA_COREDUMP_FILE": str(engine / "dump")})
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.CAPTURED
    assert len((incident / piece.file).read_bytes()) > len(old)


def test_a_file_that_is_exchanged_is_put_back(tmp_path: Path, incident: Path) -> None:
    """What stands under the name by now is not what was opened: it stays, and the opened one is copied."""
    dump(str(tmp_path / "dump"), 20_000)
    wanted = (tmp_path / "dump").read_bytes()
    found = opened(tmp_path / "dump")
    (tmp_path / "dump").unlink()
    (tmp_path / "dump").write_bytes(b"another")
    taken = Shelf(str(incident), "TP0", GIB, GIB).take(found, mountinfo(), True, soon())
    assert taken.how == "copied"
    assert "another file" in taken.lost
    assert (incident / "cuda_coredump/TP0.core").read_bytes() == wanted
    assert (tmp_path / "dump").read_bytes() == b"another"


def test_a_folder_of_the_incident_that_is_a_link_is_refused(tmp_path: Path, incident: Path) -> None:
    (incident / "cuda_coredump").symlink_to(tmp_path)
    with pytest.raises(NotTaken, match=r"ELOOP|ENOTDIR"):
        Shelf(str(incident), "TP0", GIB, GIB)
