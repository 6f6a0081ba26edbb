"""Whether a process does anything, by files of /proc that take no lock of its memory and so cannot block (proc(5)).

`stat` and `status` may be read by everybody; `wchan` (`Proc.wchan`) needs ptrace rights.
"""

from __future__ import annotations

import errno
import os

from sidecar.system.proc import Proc, translated

TICKS = os.sysconf("SC_CLK_TCK")  # of `Stat.cpu_ticks`, a second
MOST_THREADS = 1024  # of one process whose switches are counted; an engine's has up to some hundred
_PYSPY = "py-spy"
_GENERATIONS = 16  # how far up a tracer's parents are followed


def tracer(proc: Proc, pid: int) -> int | None:
    """The pid of who has this process under ptrace, 0 for nobody (or somebody outside of our PID namespace), None
    where that cannot be read. Raises `OutOfDescriptors`.
    """
    return _number(_status(proc, f"{pid}/status"), b"TracerPid:")


def is_own_pyspy(proc: Proc, pid: int, supervisor: int) -> bool:
    """Whether this is a py-spy that a process of ours started: it pauses its target for a moment, and is no debugger.

    `supervisor` is the pid of Rankguard's root process, whose descendants are ours. Raises `OutOfDescriptors`.
    """
    stat = proc.stat(pid)
    if stat is None or stat.comm != _PYSPY:
        return False
    for _ in range(_GENERATIONS):
        if stat is None or stat.ppid <= 1:
            return False
        if stat.ppid == supervisor:
            return True
        stat = proc.stat(stat.ppid)
    return False


def switches(proc: Proc, pid: int) -> int | None:
    """How often the threads of a process have gone to sleep so far, or None where that cannot be read.

    Of a process that has more than `MOST_THREADS`, its oldest ones. Raises `OutOfDescriptors`.
    """
    total = None
    for tid in proc.threads(pid)[:MOST_THREADS]:
        number = _number(_status(proc, f"{pid}/task/{tid}/status"), b"voluntary_ctxt_switches:")
        if number is not None:
            total = (total or 0) + number
    return total


def _status(proc: Proc, path: str) -> bytes:
    try:
        fd = os.open(f"{proc.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise translated(error, 0) from error
        return b""
    try:
        return os.read(fd, 8192)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _number(status: bytes, key: bytes) -> int | None:
    at = status.find(b"\n" + key)
    if at < 0:
        return None
    words = status[at + 1 + len(key) : at + 1 + len(key) + 40].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else None
