"""Shared memory that a killed engine leaves behind: its resource tracker dies with it, and in a pod /dev/shm outlives
a container's restart, so each crash would cost some more memory until the node has none.

Only names that were mapped or open in a process which was then killed are candidates; the rest is never looked at.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable

from sidecar.system import clock
from sidecar.system.proc import Proc

_FOLDER = "/dev/shm/"  # noqa: S108
# The kernel's fixed inode numbers of the initial namespaces (include/linux/proc_ns.h).
_INITIAL_PID_NS = "pid:[4026531836]"
_INITIAL_IPC_NS = "ipc:[4026531839]"


def names_in_maps(maps: bytes, linked: dict[int, set[str]] | None = None) -> set[str]:
    """The names under /dev/shm that a maps text shows, without those already unlinked.

    `linked`: the names that stand there now, by inode. A semaphore is made under a name of its own, linked to
    `sem.mp-…`, and then unlinked under the first (glibc's sem_open): its maker's maps call it deleted.
    """
    names = set()
    for line in maps.splitlines():
        fields = line.split(None, 5)  # a path elsewhere may hold " /dev/shm/" too
        path = fields[5] if len(fields) == 6 else b""
        if not path.startswith(_FOLDER.encode()):
            continue
        if path.endswith(b" (deleted)"):
            names |= (linked or {}).get(int(fields[4]), set())
            continue
        name = os.fsdecode(path[len(_FOLDER) :])
        if name and "/" not in name and "\\" not in name:
            names.add(name)
    return names


def names_held(proc: Proc, pid: int) -> set[str] | None:
    """The names under /dev/shm that a process maps or has open; None where that may not be known."""
    maps = proc.maps(pid)
    if maps is None:
        return None
    linked: dict[int, set[str]] = {}
    try:
        with os.scandir(f"{proc.root}/{pid}/root{_FOLDER}") as entries:
            for entry in entries:
                linked.setdefault(entry.inode(), set()).add(entry.name)
    except OSError:
        pass
    names = names_in_maps(maps, linked)
    try:
        fds = os.listdir(f"{proc.root}/{pid}/fd")
    except FileNotFoundError:
        return names
    except OSError:
        return None
    for fd in fds:
        target = proc.link(f"{pid}/fd/{fd}")
        if target and target.startswith(_FOLDER) and not target.endswith(" (deleted)"):
            name = target[len(_FOLDER) :]
            if "/" not in name and "\\" not in name and "\n" not in name:  # maps would not show those plainly
                names.add(name)
    return names


def may_remove(proc: Proc, in_pod: bool) -> str:
    """ "" if removing is safe here, else why it is not: somebody we cannot see could be using the same names."""
    pid_ns, ipc_ns = proc.link("self/ns/pid"), proc.link("self/ns/ipc")
    if in_pod and ipc_ns == _INITIAL_IPC_NS:
        return "the pod uses the host's shared memory (hostIPC)"
    if not in_pod and pid_ns != _INITIAL_PID_NS:
        return "not every process that shares /dev/shm can be seen from this PID namespace"
    return ""


def remove_leftovers(
    proc: Proc, candidates: Iterable[str], patterns: tuple[str, ...], folder_fd: int, deadline: float = float("inf")
) -> tuple[list[str], list[str], str]:
    """Remove what nobody alive holds. Returns (removed, kept, why kept).

    `folder_fd` is the /dev/shm of the engine, opened while it lived; `deadline` is monotonic, and when it has passed
    nothing is removed.
    """
    wanted = {name for name in candidates if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    if not wanted:
        return [], [], ""
    in_use: set[str] = set()
    for pid in proc.pids():
        if clock.monotonic() > deadline:
            return [], sorted(wanted), "not every process could be looked at in time"
        stat = proc.stat(pid)
        if stat is None or not stat.holds_resources or stat.kernel_thread:
            continue
        held = names_held(proc, pid) if stat.state not in ("D", "Z") else None
        if held is None:
            if proc.stat(pid) is None:
                continue
            return [], sorted(wanted), f"the memory maps of process {pid} cannot be read"
        in_use |= held & wanted
    removed = []
    for name in sorted(wanted - in_use):
        try:
            os.unlink(name, dir_fd=folder_fd)
        except OSError:
            continue
        removed.append(name)
    kept = sorted(in_use)
    return removed, kept, "still in use by a living process" if kept else ""
