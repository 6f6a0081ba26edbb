"""What the kubelet is told of a kill: one line in the termination log of each of the engine's containers.

The files are on the node's disk, which may hang as well as a volume, so a thread of its own writes them, the first
thing that is done for an incident. Not a child: making one takes the captures 2 to 7 ms on a busy machine (seen), the
thread is done in a fraction of one. Where the disk hangs for good this process cannot end, as with a volume that hangs:
another one takes its place.
"""

from __future__ import annotations

import errno
import math
import os
import select
import time
from collections.abc import Sequence

from sidecar.masking import mask_text
from sidecar.model import Incident, TimelineEntry
from sidecar.recorder.reactor import Reactor
from sidecar.recorder.summary import summary
from sidecar.recorder.writer import Writer

TOLD = "told the kubelet"
NOT_TOLD = "kubelet not told"
_MOST = 1024  # bytes of the line; the kubelet shows 4096 of a container, and 12 KiB of a pod
_LONGEST_FOLDER = 200
_LIMIT = 2.0  # seconds that a disk has for it
_AT_ONCE = 2  # milliseconds that our main thread gives way: the two share one interpreter
_READ_BACK = 4096
_BEFORE = "already there"


def line_of(incident: Incident, dump_dir: str) -> bytes:
    """The line, with its end: what failed and why, what is done about it, and where the evidence is."""
    pod = incident.pod
    where = f"{pod.namespace}/{pod.name}".strip("/") or (dump_dir if len(dump_dir) <= _LONGEST_FOLDER else "")
    end = _printable(f" Incident {incident.id}{f' in {where}' if where else ''}.").encode()
    said = mask_text(_printable(f"Rankguard: {summary(incident, sealed=False)}")).encode()
    room = _MOST - len(end) - 1
    if len(said) > room:
        said = said[: max(0, room - len("…".encode()))].decode("utf-8", "ignore").encode() + "…".encode()
    return said + end + b"\n"


class LastWord:
    """The writing of one line. Call `step` whenever something was read or `wake_at` has come."""

    def __init__(self, logs: Sequence[int], line: bytes, mark: str, reactor: Reactor) -> None:
        """`logs` are descriptors of the termination logs, which are closed once they are written to. A log that has
        `mark`, the incident's id, at its end already is left as it is. Raises `OSError` or `RuntimeError` where there
        is nothing left to make a thread of; then they are not closed.
        """
        self._logs = tuple(logs)
        self._line = line
        self._mark = mark.encode("utf-8", "backslashreplace")
        self._outcomes: list[str] = []  # grows on the thread, one of each log
        self._limit_at = time.monotonic() + _LIMIT
        self._told = False
        writer = Writer()
        reactor.add(writer.fileno(), writer.collect)
        writer.submit(self._write, _nothing)
        poll = select.poll()
        poll.register(writer.fileno(), select.POLLIN)
        poll.poll(_AT_ONCE)

    def step(self) -> TimelineEntry | None:
        """What came of it, once: when all is written or its time is up. Never blocks."""
        outcomes = list(self._outcomes)
        missing = len(self._logs) - len(outcomes)
        if self._told or (missing and time.monotonic() < self._limit_at):
            return None
        self._told = True
        return told(outcomes + [f"no answer within {_LIMIT:g} s"] * missing)

    def wake_at(self) -> float:
        """Monotonic time at which `step` is due without anything being read; may be infinite."""
        return math.inf if self._told else self._limit_at

    def _write(self) -> None:
        for log in self._logs:
            self._outcomes.append(_append(log, self._line, self._mark))
            os.close(log)  # which waits for some file systems, so here too


def _nothing(_: object) -> None:
    """The thread's end wakes the main loop, and that is all."""


def told(outcomes: Sequence[str]) -> TimelineEntry:
    """The step of the timeline that tells of it."""
    refused = sorted({outcome for outcome in outcomes if outcome not in ("", _BEFORE)})
    failed = sum(outcome in refused for outcome in outcomes)
    count = len(outcomes) - failed
    words = []
    if count:
        before = ", before this recorder came" if _BEFORE in outcomes else ""
        words.append(f"in the termination log of {count} container{'s' if count > 1 else ''}{before}")
    if failed:
        words.append(f"{failed} termination log{'s' if failed > 1 else ''} not written: {', '.join(refused)}")
    return TimelineEntry(time.monotonic(), time.time(), TOLD if count else NOT_TOLD, "; ".join(words))


def _append(log: int, line: bytes, mark: bytes) -> str:
    """Add the line on a line of its own; what the engine itself has written there stays. "", or what came of it."""
    try:
        size = os.fstat(log).st_size
        end = _end_of(log, size) if size else b""
        if mark in end:
            return _BEFORE
        data = line if not size or end.endswith(b"\n") else b"\n" + line
        return "" if os.write(log, data) == len(data) else "written in part"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")


def _end_of(log: int, size: int) -> bytes:
    """The last bytes; b"" where they may not be read. The descriptor is for writing, so this takes one of its own."""
    try:
        fd = os.open(f"/proc/self/fd/{log}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, _READ_BACK, max(0, size - _READ_BACK))
    finally:
        os.close(fd)


def _printable(text: str) -> str:
    """One line of nothing but visible characters: titles and labels are the engine's to choose."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
