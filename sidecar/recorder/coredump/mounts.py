"""The same folder by another way: a volume that is mounted in two containers is one volume, but two mounts.

rename(2) refuses to go from one mount to the other (EXDEV) although nothing would have to be copied, and all that is
reached through /proc/PID/root is on the target's mounts. So the folder is looked for below the mount that we write to:
/proc/PID/mountinfo (proc(5)) says which part of its file system each mount shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Mount:
    """`device` is major:minor, `shows` the path within the file system that stands at `point`."""

    number: int
    device: str
    shows: str
    point: str


def parse(mountinfo: str) -> Iterator[Mount]:
    """Lines that are none of mountinfo's are passed over."""
    for line in mountinfo.splitlines():
        words = line.split(" ")
        if len(words) > 5 and words[0].isdecimal():
            yield Mount(int(words[0]), words[2], _plain(words[3]), _plain(words[4]))


def seen_from_here(folder: int, path: str, target_mounts: str, beside: int) -> int:
    """The folder open at `folder`, in which the target calls a file `path`, opened on the mount that the folder open at
    `beside` is on; -1 where that mount does not show it. It is the same folder: compared by device and inode.
    """
    info = os.fstat(folder)
    device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
    below = _longest(target_mounts, device, os.path.dirname(path))
    number = _mount_of(beside)
    mount = next((mount for mount in parse(_text("/proc/self/mountinfo")) if mount.number == number), None)
    rest = _inside(below, mount.shows) if mount is not None and below is not None else None
    if mount is None or rest is None:
        return -1
    try:
        fd = os.open(os.path.join(mount.point, rest), _FOLDER)
    except OSError:
        return -1
    there = os.fstat(fd)
    if (there.st_dev, there.st_ino) == (info.st_dev, info.st_ino):
        return fd
    os.close(fd)
    return -1


def _mount_of(fd: int) -> int:
    for line in _text(f"/proc/self/fdinfo/{fd}").splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    return -1


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _longest(mountinfo: str, device: str, folder: str) -> str | None:
    """Where a folder of the target's lies within its file system."""
    best: tuple[int, str] | None = None
    for mount in parse(mountinfo):
        rest = _inside(folder, mount.point)
        if mount.device == device and rest is not None and (best is None or len(mount.point) >= best[0]):
            best = len(mount.point), os.path.join(mount.shows, rest) if rest else mount.shows
    return best[1] if best else None


def _inside(path: str, folder: str) -> str | None:
    """`path` as seen from `folder`, None where it is not below it."""
    if path == folder:
        return ""
    prefix = folder.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _plain(word: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), word)
