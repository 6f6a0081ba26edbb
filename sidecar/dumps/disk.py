"""What files and folders take of a disk: the blocks, as a quota and an eviction count them. Below a folder's
descriptor, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.dumps.opening import FILE, FOLDER

PARTIAL = ".partial"  # how the name of a file ends that a child is still writing
_CHUNK = 1 << 20
_DEEPEST = 8  # levels of folders that are looked at; an incident has two


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of disk that a folder takes: with all below it, and (`top`) with the files in it alone. `partials` are the
    paths below it of files that a child has not finished; they take `partial` bytes."""

    total: int
    top: int
    partials: tuple[str, ...]
    partial: int = 0


def has(folder: int, path: str) -> bool:
    try:
        lstat(folder, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def lstat(folder: int, path: str) -> os.stat_result:
    return os.stat(path, dir_fd=folder, follow_symlinks=False)


def read(folder: int, path: str, most: int) -> bytes:
    fd = os.open(path, FILE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        chunks = []
        while most > 0 and (chunk := os.read(fd, min(most, _CHUNK))):
            most -= len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def names(folder: int, name: str) -> list[str]:
    fd = os.open(name, FOLDER, dir_fd=folder)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _no_hurry() -> None:
    """Nobody waits for the result."""


def allocated(folder: int, name: str, depth: int = 0, check: Callable[[], None] = _no_hurry) -> int:
    """Bytes of disk that a file or folder takes; one that goes meanwhile takes none, and of a folder that may not
    be looked into only its own are known. `check` is called at each, and may raise."""
    check()
    try:
        info = lstat(folder, name)
        total = info.st_blocks * 512
        if stat.S_ISDIR(info.st_mode) and depth < _DEEPEST:
            try:
                fd = os.open(name, FOLDER, dir_fd=folder)
            except PermissionError:
                return total
            try:
                total += sum(allocated(fd, inner, depth + 1, check) for inner in os.listdir(fd))
            finally:
                os.close(fd)
    except FileNotFoundError:
        return 0
    return total


def measure(folder: int, name: str, check: Callable[[], None] = _no_hurry) -> Size:
    """What a folder takes, and what in it was left half written. Raises `OSError` where it is none, or is gone."""
    fd = os.open(name, FOLDER, dir_fd=folder)
    try:
        total = top = os.fstat(fd).st_blocks * 512
        partials: list[str] = []
        for inner in os.listdir(fd):
            size = allocated(fd, inner, 0, check)
            total += size
            if not is_folder(fd, inner):
                top += size
                continue
            partials += [f"{inner}/{file}" for file in names(fd, inner) if file.endswith(PARTIAL)]
        return Size(total, top, tuple(partials), sum(allocated(fd, path) for path in partials))
    finally:
        os.close(fd)


def is_folder(folder: int, name: str) -> bool:
    """Whether it is a folder; False where it is gone."""
    try:
        return stat.S_ISDIR(lstat(folder, name).st_mode)
    except FileNotFoundError:
        return False
