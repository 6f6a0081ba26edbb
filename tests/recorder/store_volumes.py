"""File systems for the store's tests: small, with an error in them, read-only; and incidents to put there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorder_rig import incident

from sidecar.model import Artifact, ArtifactStatus, PodInfo, Reason
from sidecar.policy.throttle import Throttled
from sidecar.recorder.record import build, encode
from sidecar.recorder.store import Store
from sidecar.system.clock import id_stamp

MIB = 1 << 20
KIB64 = 64 << 10


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


@contextmanager
def tmpfs(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    call("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(where))
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=False)


@dataclass
class Disk:
    """An ext4 on a loop device."""

    folder: Path
    image: Path

    def lose_its_end(self) -> None:
        """Most of the disk is gone: what is written there is taken at first, and then is EIO."""
        with self.image.open("r+b") as file:
            file.truncate(8 * MIB)
        call("losetup", "--set-capacity", self._device())

    def _device(self) -> str:
        said = subprocess.run(["losetup", "--associated", str(self.image)], check=True, capture_output=True, text=True)
        return said.stdout.partition(":")[0]


@contextmanager
def disk(where: Path) -> Iterator[Disk]:
    folder, image = where / "volume", where / "image"
    folder.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    call("mkfs.ext4", "-q", "-b", "4096", "-N", "256", "-O", "^has_journal", "-E", "lazy_itable_init=0", str(image))
    call("mount", "-o", "loop,errors=continue", str(image), str(folder))
    try:
        yield Disk(folder, image)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(file: Path) -> None:
    """Take all the room that its file system has."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (KIB64, 4096, 1):
            try:
                while True:
                    os.write(fd, b"x" * size)
            except OSError:
                pass
    finally:
        os.close(fd)


def an_id(wall: float, reason: str = "rankdied-tp0") -> str:
    return f"{id_stamp(wall)}-{reason}"


def put(
    store: Store,
    wall: float,
    size: int = KIB64,
    signature: str = "rankdied-sigkill-x",
    throttled: Throttled | None = None,
    pod: PodInfo | None = None,
    reason: Reason = Reason.RANK_DIED,
    sealed: bool = True,
    prune: bool = False,
) -> str:
    """Write an incident with one file of `size` bytes (0: none), as a recorder does, and let go of it. Gives its id."""
    name = an_id(wall)
    what = incident(id=name, reason=reason, **({} if pod is None else {"pod": pod}))
    store.open(name, encode(build(what, ())))
    artifacts = []
    if size:
        store.survey()  # what is large is only written where it is known to fit
        written = store.write_artifact("process/TP0.json", os.urandom(size))
        artifacts = [Artifact("process", "TP0", ArtifactStatus.CAPTURED, "process/TP0.json", size, written.sha256)]
    artifacts.append(Artifact("nvml", "engine", ArtifactStatus.FAILED, detail="no driver"))
    record = encode(build(what, artifacts, sealed=sealed, signature=signature, throttled=throttled))
    if sealed:
        store.seal(record)
    else:
        store.write_record(record)
    if prune:
        store.tidy()
    store.close()
    return name


def record_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "incident.json").read_bytes())


def present(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
