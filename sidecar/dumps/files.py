"""The files of one incident: which there are, and reading one, wherever a reader begins."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from sidecar.dumps.folder import DEPTH_LIMIT
from sidecar.dumps.names import above_and_id
from sidecar.dumps.opening import FOLDER, down, lstat, opened, regular

MOST_FILES = 10_000  # of one incident that are named; 1,024 ranks with eight files each are below it


@dataclass(frozen=True, slots=True)
class File:
    """`path` is relative to the incident's folder."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Files:
    """`left_out`: things that are there and are not named, since there are too many, too deep, or are no files."""

    named: tuple[File, ...]
    left_out: int


class Reading:
    """An open file. `tag` is another one whenever the file may be."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        info = os.fstat(fd)
        self.size = info.st_size
        self.tag = f"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}"

    def read(self, offset: int, most: int) -> bytes:
        return os.pread(self._fd, most, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()  # an answer whose client left before it began


def files_of(root: int, path: str) -> Files:
    """The regular files of the incident at `path`, sorted. Raises `OSError`, or `ValueError` where `path` is none's."""
    above, name = above_and_id(path)
    found: list[File] = []
    with down(root, [*above, name]) as fd:
        left_out = _look(fd, "", DEPTH_LIMIT, found)
    return Files(tuple(sorted(found, key=lambda file: file.path)), left_out)


def open_file(root: int, path: str, file: str) -> Reading:
    """One file of the incident at `path`. Raises `OSError` where there is none, or `ValueError` where there can be
    none of this name."""
    above, name = above_and_id(path)
    *folders, last = file.split("/")
    if len(folders) > DEPTH_LIMIT or not all(map(_sound, (*folders, last))):
        raise ValueError("not a file's path")
    with down(root, [*above, name, *folders]) as fd:
        return Reading(regular(fd, last))


def _sound(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= 255


def _look(fd: int, above: str, depth: int, found: list[File]) -> int:
    left_out = 0
    for name in os.listdir(fd):
        info = lstat(fd, name)
        if info is None:
            continue
        if stat.S_ISREG(info.st_mode) and len(found) < MOST_FILES:
            found.append(File(above + name, info.st_size))
        elif stat.S_ISDIR(info.st_mode) and depth > 0:
            with opened(name, FOLDER, fd) as below:
                left_out += 1 if below is None else _look(below, f"{above}{name}/", depth - 1, found)
        else:
            left_out += 1
    return left_out
