"""The environment that a process was started with, although it may show nothing of it.

setproctitle, which SGLang and vLLM give their ranks names by, writes zeros over the process's environment in
/proc/PID/environ (seen; its SPT_NOENV=1 keeps it). What the process inherited still stands in those it descends from,
and mostly in others of its engine.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.system.proc import Proc

_MOST_ANCESTORS = 32


def inherited(proc: Proc, pid: int, names: Iterable[str], others: Iterable[int] = ()) -> dict[str, str]:
    """The variables of these names, all from one process: `pid`, its ancestors, or `others`, the first that has any."""
    wanted = frozenset(names)
    for source in (pid, *_ancestors(proc, pid), *others):
        found = {}
        for entry in (proc.environ(source) or b"").split(b"\0"):
            name, _, value = entry.decode("utf-8", "surrogateescape").partition("=")
            if name in wanted:
                found[name] = value
        if found:
            return found
    return {}


def command_lines(proc: Proc, pid: int, others: Iterable[int] = ()) -> list[list[str]]:
    """The command lines of the same processes, those that have one."""
    lines = (proc.cmdline(source).rstrip(b"\0") for source in (pid, *_ancestors(proc, pid), *others))
    return [[word.decode("utf-8", "surrogateescape") for word in line.split(b"\0")] for line in lines if line]


def _ancestors(proc: Proc, pid: int) -> list[int]:
    found: list[int] = []
    stat = proc.stat(pid)
    while stat is not None and stat.ppid > 0 and len(found) < _MOST_ANCESTORS:
        parent = proc.stat(stat.ppid)
        if parent is None or parent.start > stat.start:
            break
        found.append(parent.pid)
        stat = parent
    return found
