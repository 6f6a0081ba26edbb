"""Limits of a process: its descriptors, of which each watched rank costs a few, its memory, and its place in the order
in which the kernel ends processes when memory is short.
"""

from __future__ import annotations

import os
import resource

_ENOUGH = 65536


def raise_descriptor_limit() -> None:
    """Take what the hard limit allows, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int:
    """How many descriptors this process may hold."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def limit_data(pid: int, size: int) -> None:
    """Let a process of ours (0: this one) have at most so many bytes of its own. Not RLIMIT_AS, which
    `py-spy --native` breaks on with big libraries (seen). Where that is refused, or it has ended, nothing happens.
    """
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        most = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, hard if pid == 0 else most))
    except (OSError, ValueError):
        pass


def go_before_us(pid: int, share: float) -> None:
    """Let the kernel end that process (ours, or a child) before this one when memory is short: `share` of the way from
    our own score to 1000, the first of all. To raise a score takes no rights.
    """
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            own = int(file.read())
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return
    try:
        os.write(fd, str(own + round((1000 - own) * share)).encode())
    except OSError:
        pass
    finally:
        os.close(fd)
