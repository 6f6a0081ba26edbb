"""Running checks beside each other, each in a fork of its own and each with a deadline.

What they touch can block for ever: a volume that is gone, the memory of a process that the kernel holds. So nobody
waits for a check: at its deadline it is sent SIGKILL and left behind, and what it was at is what is told. A fork and
not a thread, since a thread that hangs could not be left.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from sidecar.doctor.scene import Step

_MOST = 1 << 20  # bytes of one answer

Work = Callable[[Step], Any]


class Fork:
    """One piece of work. `answer` is what it gave, as JSON has it; None until then."""

    def __init__(self, work: Work) -> None:
        self.answer: Any = None
        self.step = ""
        self.failure = ""
        self.ended = False
        self._heard = b""
        self.fd, out = os.pipe()
        try:
            self.pid = os.fork()
        except OSError as error:
            os.close(self.fd)
            os.close(out)
            self.pid, self.fd, self.ended, self.failure = 0, -1, True, f"no process for it: {error.strerror}"
            return
        if self.pid == 0:
            _in_fork(work, self.fd, out)
        os.close(out)

    def read(self) -> None:
        """Take what it has said. Blocks unless there is something."""
        chunk = os.read(self.fd, 65536)
        self._heard += chunk
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            said = json.loads(line)
            self.step = said.get("step", self.step)
            self.failure = said.get("failure", self.failure)
            if "answer" in said:
                self.answer = said["answer"]
        if not chunk and self.answer is None:
            self.failure = self.failure or "the check ended without an answer"
        if not chunk or len(self._heard) > _MOST:
            self.end()

    def end(self) -> None:
        """Take its end, or end it. It is left unreaped where the kernel holds it; it goes when it is let go."""
        if self.ended:
            return
        self.ended = True
        os.close(self.fd)
        if self.answer is None:
            os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped: the pid is its own
            os.waitpid(self.pid, os.WNOHANG)
        else:
            os.waitpid(self.pid, 0)  # it has said all, and is on its way out


def run(works: Sequence[Work], seconds: float) -> list[Fork]:
    """Start them all, and give them up after `seconds`. Every one of them has ended, or is not waited for."""
    forks = [Fork(work) for work in works]
    deadline = time.monotonic() + seconds
    poll = select.poll()
    by_fd = {fork.fd: fork for fork in forks if not fork.ended}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while by_fd and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            by_fd[fd].read()
            if by_fd[fd].ended:
                poll.unregister(fd)
                del by_fd[fd]
    for fork in by_fd.values():
        fork.end()
    return forks


def _in_fork(work: Work, theirs: int, out: int) -> None:
    """Runs in the child, and never returns."""
    try:
        os.close(theirs)
        # Whoever reads what we write waits for its end, which one that hangs would hold back.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

        def say(**said: Any) -> None:
            view = memoryview(json.dumps(said).encode() + b"\n")
            while view:
                view = view[os.write(out, view) :]

        try:
            say(answer=work(lambda words: say(step=words)))
        except Exception as error:  # noqa: BLE001 - the fork's outermost place: a check that fails says so
            say(failure=f"the check failed: {type(error).__name__}: {error}")
    finally:
        os._exit(0)
