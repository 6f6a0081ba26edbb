"""Processes that Python itself starts around an engine's ranks, and the command line as the kernel hands it out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sidecar.engines.command_line import CODE, program

# CPython writes these programs, word for word (multiprocessing's spawn.py, resource_tracker.py, forkserver.py). The
# newest forkserver (3.13.x, 3.14.x, 3.15) sets sys.argv first.
_SPAWN = re.compile(r"from multiprocessing\.spawn import spawn_main; ?spawn_main\(")
_TRACKER = re.compile(r"from multiprocessing\.(?:resource|semaphore)_tracker import main; ?main\(")
_FORKSERVER = re.compile(
    r"(?:import sys; sys\.argv = .*; )?from multiprocessing\.forkserver import main; ?main\(", re.S
)


def clean_argv(cmdline: bytes) -> tuple[str, ...]:
    """`/proc/PID/cmdline` as arguments; bytes that are no UTF-8 become `\\xNN`.

    A title written over the arguments leaves empty ones behind it: those at the end are dropped. A title is one
    argument, whatever spaces it holds. The line of a zombie or of a kernel thread is empty: ().
    """
    stripped = cmdline.rstrip(b"\0")
    if not stripped:
        return ()
    return tuple(stripped.decode("utf-8", "backslashreplace").split("\0"))


def is_spawned_child(argv: Sequence[str]) -> bool:
    """A child of multiprocessing's `spawn` that has no title yet.

    A forkserver's child is not among them: it has the very command line of the forkserver (see `is_forkserver`).
    """
    if len(argv) < 2:
        return False
    if argv[1] == "--multiprocessing-fork":
        return True  # a frozen program starts itself again, with no `-c`
    return argv[-1] == "--multiprocessing-fork" and bool(_SPAWN.match(_code(argv)))


def is_resource_tracker(argv: Sequence[str]) -> bool:
    """One of multiprocessing's own helpers, which is no rank: the resource tracker, or the forkserver.

    True for an untitled child of the forkserver too, since nothing in its command line tells it apart.
    """
    return bool(_TRACKER.match(code := _code(argv)) or _FORKSERVER.match(code))


def is_forkserver(argv: Sequence[str]) -> bool:
    """The forkserver, or a child of it that has no title yet: the one whose parent is a forkserver is the child."""
    return bool(_FORKSERVER.match(_code(argv)))


def _code(argv: Sequence[str]) -> str:
    running = program(argv)
    return running.name if running is not None and running.kind == CODE else ""
