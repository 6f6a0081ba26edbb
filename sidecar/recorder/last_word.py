"""What the kubelet is told of a kill: one line in the termination log of each of the engine's containers.

The files are on the node's disk, which may hang as well as a volume. So a child writes them: it holds up neither the
captures nor the record nor our own end, whatever it waits for. It is the first thing that is done for an incident.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Sequence

from sidecar.masking import mask_text
from sidecar.model import Incident, TimelineEntry
from sidecar.recorder.capture.base import Attempt, Ended
from sidecar.recorder.children import Child, refusal
from sidecar.recorder.reactor import Reactor
from sidecar.recorder.summary import summary

TOLD = "told the kubelet"
NOT_TOLD = "kubelet not told"
_MOST = 1024  # bytes of the line; the kubelet shows 4096 of a container, and 12 KiB of a pod
_LONGEST_FOLDER = 200
_LIMIT = 2.0  # seconds that a disk has for it
_REAP_EVERY = 0.01
_READ_BACK = 4096
_BEFORE = b"already there"


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
    """One child that writes. Call `step` whenever something was read or `wake_at` has come."""

    def __init__(self, logs: Sequence[int], line: bytes, mark: str, reactor: Reactor) -> None:
        """`logs` are descriptors of the termination logs, not needed any more once this is made. A log that has `mark`,
        the incident's id, at its end already is left as it is. Raises `OSError` where no child can be started.
        """
        self._count = len(logs)
        work = _writing(tuple(logs), line, mark.encode("utf-8", "backslashreplace"))
        attempt = Attempt(work, lambda _: (), _LIMIT, keeps=tuple(logs))
        self._child = Child(attempt, _LIMIT, reactor)
        self._over = False

    def step(self) -> TimelineEntry | None:
        """What came of it, once: when it has ended or its time is up. Never blocks."""
        if self._over:
            self._child.reap()  # one that was killed while its disk hung ends when the disk answers
            return None
        ended = self._child.ended()
        if ended is None and time.monotonic() >= self._child.limit_at:
            ended = self._child.kill()
        self._over = ended is not None
        return told(self._outcomes(ended)) if ended is not None else None

    def wake_at(self) -> float:
        """Monotonic time at which `step` is due without anything being read; may be infinite."""
        if self._over:
            return math.inf
        if self._child.silent and not self._child.wakes:
            return time.monotonic() + _REAP_EVERY
        return self._child.limit_at

    def _outcomes(self, ended: Ended) -> list[str]:
        """Of each log "", what came of it where it was not written now, or why it was not."""
        said = ended.out.decode("utf-8", "replace").splitlines()
        late = f"no answer within {_LIMIT:g} s" if ended.wait_status is None else "the writing ended early"
        return said[: self._count] + [late] * (self._count - len(said))


def told(outcomes: Sequence[str]) -> TimelineEntry:
    """The step of the timeline that tells of it."""
    refused = sorted({outcome for outcome in outcomes if outcome not in ("", _BEFORE.decode())})
    failed = sum(outcome in refused for outcome in outcomes)
    count = len(outcomes) - failed
    words = []
    if count:
        before = ", before this recorder came" if _BEFORE.decode() in outcomes else ""
        words.append(f"in the termination log of {count} container{'s' if count > 1 else ''}{before}")
    if failed:
        words.append(f"{failed} termination log{'s' if failed > 1 else ''} not written: {', '.join(refused)}")
    return TimelineEntry(time.monotonic(), time.time(), TOLD if count else NOT_TOLD, "; ".join(words))


def not_started(error: OSError) -> TimelineEntry:
    """The same where there is no child."""
    return TimelineEntry(time.monotonic(), time.time(), NOT_TOLD, refusal(error))


def _writing(logs: tuple[int, ...], line: bytes, mark: bytes) -> Callable[[int], None]:
    def work(out: int) -> None:
        for log in logs:
            os.write(out, _append(log, line, mark) + b"\n")

    return work


def _append(log: int, line: bytes, mark: bytes) -> bytes:
    """Add the line on a line of its own. Runs in the child; what the engine itself has written there stays."""
    try:
        size = os.fstat(log).st_size
        end = _end_of(log, size) if size else b""
        if mark in end:
            return _BEFORE
        data = line if not size or end.endswith(b"\n") else b"\n" + line
        return b"" if os.write(log, data) == len(data) else b"written in part"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?").encode()


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
