"""Small engines of our own, for what the stand-in engine does not do: a process that forks without end, one in a vfork
wait, one that eats memory, one that stands outside the engine's tree.

A troupe is one leader in a session of its own, and what it forks. What each does is Python given by the test, after
this prelude: `say(label)` announces a process, `rank(title, act)` forks one that bears a title and does `act`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from sidecar_process import PROC, eventually, kill_identity

from sidecar.model import Identity

# Nothing outlives its test by much, whatever becomes of the test: alarm(2) ends each process.
PRELUDE = """
import os, signal, sys, threading, time
from setproctitle import setproctitle

LIFE = 60
signal.alarm(LIFE)

def say(label, *more):
    os.write(1, (" ".join(map(str, (label, os.getpid(), *more))) + "\\n").encode())

def wait():
    while True:
        signal.pause()

def fork(act, label="", title="", session=False, group=False):
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(LIFE)
        if session:
            os.setsid()
        if group:
            os.setpgid(0, 0)
        setproctitle(title or label or "helper")
        if label:
            say(label)
        act()
    finally:
        os._exit(0)

def rank(label, act=wait, **more):
    return fork(act, label, f"sglang::scheduler_{label}", **more)

def order():
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    return line.split()

def witness(label):
    '''Says every signal that it is given. SIGSTOP cannot be caught, but the SIGCONT after it can.'''
    def caught(number, frame):
        say(f"{label}-caught", signal.Signals(number).name)
    for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGALRM, signal.SIGCHLD}:
        signal.signal(number, caught)
    say(label)
    wait()

def tell_of_children():
    '''Says what the kernel tells a parent of its children: stopped, continued, ended.'''
    words = {os.CLD_STOPPED: "stopped", os.CLD_CONTINUED: "continued"}
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED)
        except ChildProcessError:
            wait()
        say(words.get(info.si_code, "ended"), info.si_pid)
"""


class Troupe:
    """A running leader. `code` runs in it after the prelude; `said` holds what was announced: (label, pid, the rest).

    with Troupe("rank('TP0'); rank('TP1'); wait()") as troupe:
        troupe.await_labels("TP0", "TP1")
        troupe.kill("TP1")
    """

    def __init__(self, code: str, *, title: str = "sglang::http_server") -> None:
        self.said: list[tuple[str, int, list[str]]] = []
        self.identities: dict[str, Identity] = {}
        self._buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{PRELUDE}\nsetproctitle({title!r})\nsay('server')\n{code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._pipe = f"pipe:[{os.fstat(self.process.stdout.fileno()).st_ino}]"

    def __enter__(self) -> Troupe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    def pid_of(self, label: str) -> int:
        return self.identities[label].pid

    def order(self, *words: str) -> None:
        """A line for whoever reads `order()`."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(words) + "\n").encode())
        self.process.stdin.flush()

    def hear(self, seconds: float) -> bool:
        """Take what was said, after at most `seconds`. False at the end of it."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if not select.select([fd], [], [], max(0.0, seconds))[0]:
            return True
        chunk = os.read(fd, 65536)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            label, pid, *rest = line.decode().split()
            self.said.append((label, int(pid), rest))
            stat = PROC.stat(int(pid))
            if stat is not None:
                self.identities[label] = stat.identity
        return bool(chunk)

    def await_labels(self, *labels: str, timeout: float = 20.0) -> Troupe:
        """Wait until these were announced. Raises `AssertionError`."""
        end = time.monotonic() + timeout
        while missing := set(labels) - {label for label, _, _ in self.said}:
            assert time.monotonic() < end, f"not announced: {missing}"
            assert self.hear(end - time.monotonic()), f"the leader has ended without {missing}"
        return self

    def kill(self, label: str, number: int = signal.SIGKILL) -> None:
        kill_identity(self.identities[label], number)

    def left(self) -> list[Identity]:
        """What still runs: everything that has the leader's stdout, in whatever session, announced or not; and what was
        announced and is a zombie leader with live threads, of which no descriptor is to be seen.
        """
        found = []
        announced = set(self.identities.values())
        for pid in PROC.pids():
            stat = PROC.stat(pid)
            if stat is not None and (
                PROC.link(f"{pid}/fd/1") == self._pipe or (stat.identity in announced and stat.holds_resources)
            ):
                found.append(stat.identity)
        return found

    def wait_gone(self, timeout: float = 15.0) -> None:
        """Wait until nobody holds the leader's stdout: only then does the kernel say that it has ended."""
        end = time.monotonic() + timeout
        while self.hear(end - time.monotonic()):
            assert time.monotonic() < end, f"still there: {self.left()}"
        self.process.wait(timeout)

    def kill_all(self) -> None:
        """SIGKILL whatever is left, by identity, until nothing is, and hear what it had said. May be called again."""

        def ended() -> bool:
            left = self.left()
            for identity in left:
                kill_identity(identity)
            return not left and self.process.poll() is not None

        eventually(ended, "everything ended")
        self.wait_gone()

    def end(self) -> None:
        """Leave nothing behind."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.kill_all()
        finally:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()


def killed_pids(record: dict[str, object]) -> set[int]:
    """The pids of everything that the record says was killed."""
    termination = record["termination"]
    assert isinstance(termination, dict)
    return {member["pid"] for member in termination["killed"]}


def labels_of(failures: Sequence[dict[str, object]]) -> list[object]:
    return [failure["rank"] for failure in failures]
