"""What a process's cgroup counts and allows: memory, CPU, processes. Under cgroup v1 and v2.

The files are reached below the target's own root, where a container sees its cgroup at /sys/fs/cgroup; a process that
shares our root is found by its path in /proc/PID/cgroup. That tree is the target's to mount over, so nothing is read
that a link leads to, or that could wait.
"""

from __future__ import annotations

import os
import stat

_MEMORY_1 = ("usage_in_bytes", "limit_in_bytes", "max_usage_in_bytes", "failcnt", "oom_control")
_V1 = {
    "memory": tuple(f"memory.{name}" for name in _MEMORY_1),
    "cpu": ("cpu.stat", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpuacct": ("cpuacct.usage",),
    "pids": ("pids.current", "pids.max"),
}
_V2 = (
    "memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.events", "memory.pressure",
    "cpu.stat", "cpu.max", "cpu.pressure", "pids.current", "pids.max",
)  # fmt: skip
_MOST = 4096  # bytes of one file


def cgroup_numbers(folder: int, cgroups: str) -> dict[str, str]:
    """The files' texts by their names, as far as they are there and may be read.

    `folder` is a descriptor of /proc/PID, `cgroups` the text of its `cgroup`.
    """
    found: dict[str, str] = {}
    for line in cgroups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            found |= _read(folder, ("",), path, _V2)
        for controller in controllers.split(","):
            if controller in _V1:
                found |= _read(folder, (controller, controllers), path, _V1[controller])
    return found


def _read(folder: int, mounts: tuple[str, ...], path: str, names: tuple[str, ...]) -> dict[str, str]:
    """From the first place that has any of them: the cgroup by its path, or the root of the mount, which is the same
    thing as a container sees it.
    """
    inner = [] if ".." in path.split("/") else [path.strip("/")]
    for mount in mounts:
        for below in (*inner, ""):
            place = "/".join(part for part in ("root/sys/fs/cgroup", mount, below) if part)
            found = {name: text for name in names if (text := _text(folder, f"{place}/{name}")) is not None}
            if found:
                return found
    return {}


def _text(folder: int, path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return os.read(fd, _MOST).decode("utf-8", "backslashreplace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)
