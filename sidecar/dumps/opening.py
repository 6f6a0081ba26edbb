"""Opening below a folder's descriptor, one step at a time, never through a symbolic link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TOP = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # the dump folder itself may be reached by a link: it was named to us
FOLDER = TOP | os.O_NOFOLLOW
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO put there must not hold us up


@contextmanager
def opened(name: str, flags: int, parent: int) -> Iterator[int | None]:
    """A descriptor, closed afterwards, or None where it cannot be opened that way."""
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def top(folder: str) -> Iterator[int]:
    """The dump folder itself. Raises `OSError` where it cannot be read."""
    fd = os.open(folder, TOP)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def down(parent: int, parts: Sequence[str]) -> Iterator[int]:
    """The folder at `parts` below an open one. Raises `OSError` where a step is a link, or no folder."""
    fd = os.dup(parent)
    try:
        for part in parts:
            below = os.open(part, FOLDER, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def regular(parent: int, name: str) -> int:
    """A descriptor of a regular file. Raises `OSError`, also where it is something else."""
    fd = os.open(name, FILE, dir_fd=parent)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise IsADirectoryError(f"{name} is no regular file")
    except OSError:
        os.close(fd)
        raise
    return fd


def contents(parent: int, name: str, most: int) -> bytes:
    """A regular file. Raises `OSError`, and `ValueError` where it has more than `most` bytes."""
    fd = regular(parent, name)
    with open(fd, "rb") as stream:
        size = os.fstat(fd).st_size
        data = stream.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise ValueError(f"{name} has {max(size, len(data))} bytes, more than {most}")
    return data


def lstat(parent: int, name: str) -> os.stat_result | None:
    """What is there, links not followed; None where nothing is."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return None


def is_link(parent: int, name: str) -> bool:
    found = lstat(parent, name)
    return found is not None and stat.S_ISLNK(found.st_mode)
