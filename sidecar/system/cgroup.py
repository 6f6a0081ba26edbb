"""Which container a process is in, and whether the kernel killed in its cgroup for memory.

Everything is opened at discovery: under cgroup v2 the kubelet makes an OOM kill take the whole container at once, and
nothing of the target is left to look through afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial

from sidecar.errors import RankguardError
from sidecar.model import Identity
from sidecar.system.inside import open_inside
from sidecar.system.proc import Proc

# A container runtime names a container's cgroup by its id of 64 hex digits: plain, or `cri-containerd-<id>.scope`.
_CONTAINER_ID = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)

_LIMIT_1 = "memory.limit_in_bytes"
_NO_LIMIT_1 = 1 << 60  # v1's "no limit" is near 2^63, rounded to pages


def container_id(cgroup_text: str) -> str:
    """The id of the innermost container in the text of /proc/PID/cgroup, or "" on a plain host."""
    found = _CONTAINER_ID.findall(cgroup_text)
    return found[-1] if found else ""


def memory_cgroup(cgroup_text: str) -> tuple[str, str]:
    """("v1" or "v2", path of the memory cgroup) from the text of /proc/PID/cgroup; ("", "") if there is none."""
    unified = ""
    for line in cgroup_text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return "v1", path
        if hierarchy == "0" and not controllers:
            unified = path
    return ("v2", unified) if unified else ("", "")


def memory_mount(mountinfo: str, version: str) -> tuple[str, str]:
    """(mount point, root of the mount within the hierarchy) of the memory controller in a mountinfo text (proc(5))."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if version == "v2" and kind[0] == "cgroup2":
            return fields[4], fields[3]
        if version == "v1" and kind[0] == "cgroup" and "memory" in kind[2].split(","):
            return fields[4], fields[3]
    return "", ""


class OomCounter:
    """The `oom_kill` counter of one cgroup, held open. `fd` is -1 where there is nothing to read.

    `seen` is how many kills have been given to deaths, or were there before; told by an earlier guard, or read now.
    `limit` is how many bytes the cgroup might have when it was opened, None where it had no limit of its own.
    """

    def __init__(self, proc: Proc, pid: int, seen: int | None = None) -> None:
        self.fd, self.limit = _open_events(proc, pid)
        count = self.count() or 0
        # A cgroup that was made anew under the same name counts from 0 again.
        self.seen = count if seen is None else min(seen, count)

    def take(self) -> bool:
        """True if a kill has happened that was not yet given to a death. Each rise explains one death."""
        count = self.count()
        if count is None or count <= self.seen:
            return False
        self.seen += 1
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def count(self) -> int | None:
        """The kills so far, None where they cannot be read."""
        if self.fd < 0:
            return None
        try:
            text = os.pread(self.fd, 4096, 0)
        except OSError:  # ENODEV: the cgroup was removed
            return None
        for line in text.splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill" and value.strip().isdigit():
                return int(value)
        return None


def _open_events(proc: Proc, pid: int) -> tuple[int, int | None]:
    version, path = memory_cgroup(proc.cgroup(pid))
    if not version:
        return -1, None
    events, limit = ("memory.events", "memory.max") if version == "v2" else ("memory.oom_control", _LIMIT_1)
    for opened in _openers(proc, pid, version, path):
        try:
            fd = opened(events)
        except (OSError, RankguardError):
            continue
        return fd, _limit(opened, limit)
    return -1, None


def _openers(proc: Proc, pid: int, version: str, path: str) -> Iterator[Callable[[str], int]]:
    """Ways to open a file of a process's memory cgroup by its name."""
    # On the same host view, the path of the cgroup leads there through our own mount.
    try:
        with open(f"{proc.root}/self/mountinfo", encoding="utf-8", errors="backslashreplace") as mounts:
            point, root = memory_mount(mounts.read(), version)
    except OSError:
        point = root = ""
    if point and "/.." not in path:
        inside = path.removeprefix(root) if root != "/" else path
        folder = f"{point}/{inside.strip('/')}"
        yield lambda name: os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    # From another container, the target's own root shows its own cgroup at the top of its mount.
    stat = proc.stat(pid)
    if stat is None:
        return
    for base in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        yield partial(_open_inside, proc, stat.identity, base)


def _open_inside(proc: Proc, identity: Identity, folder: str, name: str) -> int:
    return open_inside(proc, identity, f"{folder}/{name}", os.O_RDONLY)


def _limit(opened: Callable[[str], int], name: str) -> int | None:
    """The number in a cgroup's limit file. v2 says "max" for none, v1 a number that no machine has."""
    try:
        fd = opened(name)
    except (OSError, RankguardError):
        return None
    try:
        text = os.read(fd, 64).strip()
    except OSError:
        return None
    finally:
        os.close(fd)
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT_1 else None
