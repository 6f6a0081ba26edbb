"""How much memory is left to this process's own cgroup, the container's, before the kernel kills in it.

Under cgroup v2 the kubelet makes an OOM kill take every process of the container, so whoever starts children that may
eat memory looks here first, and while they run. Page cache is not counted: what a child writes to the volume fills it,
and the kernel takes it back before it kills. Files are held open: a look is a read or two, and opens nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sidecar.system.cgroup import OomCounter, memory_cgroup, memory_mount
from sidecar.system.proc import Proc

_NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63
_AMPLE = 4  # with a quarter of the limit never used, page cache or not, nobody asks what is page cache
_FILES = {
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    "v2": ("memory.max", "memory.current"),
}
# Of memory.stat. tmpfs and shared memory are not among these: they count as anonymous, and cannot be taken back.
_CACHE = {
    "v1": (b"total_inactive_file", b"total_active_file"),
    "v2": (b"inactive_file", b"active_file", b"slab_reclaimable"),
}


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes: what is left of `limit`."""

    left: int
    limit: int


@dataclass(slots=True)
class _Level:
    """One cgroup with a limit, or with a file that may one day hold one."""

    version: str
    limit_fd: int
    usage_fd: int
    stat_fd: int


class OwnMemory:
    """The cgroups that this process is in, from its own upward as far as they can be seen from here."""

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._levels = _levels(proc)
        self._kills = OomCounter(proc, os.getpid())

    def close(self) -> None:
        for level in self._levels:
            for fd in (level.limit_fd, level.usage_fd, level.stat_fd):
                if fd >= 0:
                    os.close(fd)
        self._levels = []
        self._kills.close()

    def room(self) -> Room | None:
        """The least that any of the cgroups has left; None where none has a limit, or none can be read."""
        rooms = [room for level in self._levels if (room := _room(level)) is not None]
        return min(rooms, key=lambda room: room.left, default=None)

    def kernel_killed(self) -> bool:
        """Whether the kernel has killed in our cgroup for memory, once for each kill since the last call."""
        return self._kills.take()

    def available(self) -> int | None:
        """What the whole machine has to give, or None where that cannot be known."""
        try:
            with open(f"{self._proc.root}/meminfo", "rb") as file:
                for line in file:
                    name, _, rest = line.partition(b":")
                    if name == b"MemAvailable":
                        return int(rest.split()[0]) << 10
        except (OSError, ValueError, IndexError):
            pass
        return None

    def held_by(self, pid: int) -> int:
        """Bytes of a process that count for its cgroup and that only its end gives back: its own, and shared memory
        that it has mapped. 0 for nobody.
        """
        total = 0
        try:
            with open(f"{self._proc.root}/{pid}/status", "rb") as file:
                text = file.read(16384)
        except OSError:
            return 0
        for name in (b"\nRssAnon:", b"\nRssShmem:", b"\nVmPTE:"):
            value = text.partition(name)[2].split(None, 1)
            if value and value[0].isdigit():
                total += int(value[0]) << 10
        return total

    def children_of(self, pid: int) -> list[int]:
        """The processes that a process has started; [] where the kernel does not say."""
        try:
            with open(f"{self._proc.root}/{pid}/task/{pid}/children", encoding="ascii") as file:
                return [int(word) for word in file.read(65536).split()]
        except (OSError, ValueError):
            return []


def data_size() -> int:
    """Bytes of this process that count for RLIMIT_DATA: what a fork of ours begins with."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _room(level: _Level) -> Room | None:
    limit = _number(level.limit_fd)
    usage = _number(level.usage_fd)
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    if limit - usage < limit // _AMPLE:
        usage -= _page_cache(level)
    return Room(limit - usage, limit)


def _number(fd: int) -> int | None:
    try:
        text = os.pread(fd, 64, 0).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is none


def _page_cache(level: _Level) -> int:
    if level.stat_fd < 0:
        return 0
    try:
        text = os.pread(level.stat_fd, 16384, 0)
    except OSError:
        return 0
    total = 0
    for line in text.splitlines():
        name, _, value = line.partition(b" ")
        if name in _CACHE[level.version] and value.isdigit():
            total += int(value)
    return total


def _levels(proc: Proc) -> list[_Level]:
    version, path = memory_cgroup(proc.cgroup(os.getpid()))
    try:
        with open(f"{proc.root}/self/mountinfo", encoding="utf-8", errors="backslashreplace") as mounts:
            point, root = memory_mount(mounts.read(), version)
    except OSError:
        return []
    if not point:
        return []
    inside = [] if "/.." in path else [p for p in path.removeprefix(root if root != "/" else "").split("/") if p]
    found = []
    for depth in range(len(inside), -1, -1):
        folder = "/".join((point, *inside[:depth]))
        limit_fd, usage_fd, stat_fd = (_open(f"{folder}/{name}") for name in (*_FILES[version], "memory.stat"))
        if limit_fd >= 0 and usage_fd >= 0:
            found.append(_Level(version, limit_fd, usage_fd, stat_fd))
        else:
            for fd in (limit_fd, usage_fd, stat_fd):
                if fd >= 0:
                    os.close(fd)
    return found


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
