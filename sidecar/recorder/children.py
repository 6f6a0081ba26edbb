"""Children that collect evidence: started fast, read without blocking, ended at their limit, always reaped.

A program starts by posix_spawn (0.3 ms; a Python in between would cost 15), a function of ours in a fork. The fork is
of a process with a second thread, the writer: the child touches nothing that thread could hold (no lock, no import, no
buffered file), writes to one pipe and leaves by `_exit`. RLIMIT_CORE comes from the recorder itself; each child gets
an RLIMIT_DATA and a session of its own, so that what it starts goes with it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

from sidecar.recorder.capture.base import Attempt, Ended
from sidecar.recorder.reactor import Reactor
from sidecar.system.limits import go_before_us, limit_data
from sidecar.system.memory import data_size
from sidecar.system.spawning import DEFAULTS

_ERR_CAP = 4096
_CHUNK = 1 << 18
_MOST_DESCRIPTORS = 1024  # more than two for each child that runs at once
_OUT_OF_MEMORY = 71  # the exit status of a function of ours that got no more memory
# What a program says last that got none: Rust's allocator, Python, whoever prints ENOMEM.
_SAID = (b"memory allocation of", b"MemoryError", b"annot allocate memory")
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class Child:
    """One child at work. Ask `ended` until it has; to end it early, `kill`, then `reap` until that is True."""

    def __init__(self, attempt: Attempt, limit: float, reactor: Reactor, memory: int, cap: int) -> None:
        """Start it. `limit` is seconds from now, `memory` the bytes that it may take beside what a fork has of ours,
        `cap` the bytes of output that are kept. Raises `OSError`: no such program, no more processes, no memory.
        """
        self.attempt = attempt
        self.began = time.monotonic()
        self.limit_at = self.began + limit
        self.cut = False
        self._reactor = reactor
        self._pipes: dict[int, list[bytes]] = {}
        self._room: dict[int, int] = {}
        self._wait_status: int | None = None
        self._out: list[bytes] = []
        self._err: list[bytes] = []
        self._cap = cap
        self.inherited = data_size() if callable(attempt.work) else 0
        self._data = memory + self.inherited
        if callable(attempt.work):
            self.pid = self._fork(attempt.work)
        else:
            self.pid = self._spawn(attempt.work)
        self._pidfd = self._open_pidfd()

    @property
    def wakes(self) -> bool:
        """Its end wakes the reactor. Without pidfds, look now and then once it is silent."""
        return self._pidfd >= 0

    @property
    def silent(self) -> bool:
        """All its output has been read: it has ended, or is about to."""
        return not self._pipes

    def ended(self) -> Ended | None:
        """What it left, once it has ended by itself; None while it runs."""
        if self._pipes or not self.reap():
            return None
        return self._left(self._wait_status)

    @property
    def ran_out(self) -> bool:
        """It has ended, and says that it got no more memory."""
        status = self._wait_status
        if not status:
            return False
        if callable(self.attempt.work):
            return os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OUT_OF_MEMORY
        said = b"".join(self._err)
        return any(words in said for words in _SAID)

    @property
    def killed(self) -> bool:
        """It has ended by SIGKILL, and not by ours."""
        return self._wait_status is not None and self._wait_status & 0x7F == signal.SIGKILL

    def kill(self) -> Ended:
        """End it and all it started, without waiting. Gives what it had written by then."""
        for fd in list(self._pipes):
            self._read(fd)  # what is in the pipe already
        for fd in list(self._pipes):
            self._close(fd)
        if self._wait_status is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)  # our child and not reaped, so the number is still its own
            except ProcessLookupError:  # a fork that has not yet come to setsid
                os.kill(self.pid, signal.SIGKILL)
        return self._left(None)

    def reap(self) -> bool:
        """True once it is reaped. Never blocks."""
        if self._wait_status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._wait_status = status
                if self._pidfd >= 0:
                    self._reactor.remove(self._pidfd)
                    os.close(self._pidfd)
                    self._pidfd = -1
        return self._wait_status is not None

    def _open_pidfd(self) -> int:
        """A pidfd that wakes the reactor; -1 on an old kernel, under gVisor, or with no descriptor left."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return -1
        self._reactor.add(fd, _nothing)  # whoever waits looks at all children anyway
        return fd

    def _left(self, wait_status: int | None) -> Ended:
        seconds = time.monotonic() - self.began
        return Ended(wait_status, b"".join(self._out), b"".join(self._err), self.cut, seconds)

    def _spawn(self, command: tuple[str, ...]) -> int:
        out, out_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.set_blocking(out_end, True)
            os.set_blocking(err_end, True)
            pid = os.posix_spawn(
                command[0],
                command,
                _ENVIRONMENT,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out_end, 1),
                    (os.POSIX_SPAWN_DUP2, err_end, 2),
                ),
                setsid=True,
                setsigdef=DEFAULTS,
            )
        except OSError:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        go_before_us(pid, 1.0)  # evidence is worth less than whoever else is short of memory
        limit_data(pid, self._data)
        self._watch(out, self._out, self._cap)
        self._watch(err, self._err, _ERR_CAP)
        return pid

    def _fork(self, work: Callable[[int], None]) -> int:
        out, out_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(out_end, True)
        try:
            pid = os.fork()
        except OSError:
            os.close(out)
            os.close(out_end)
            raise
        if pid == 0:
            _in_child(work, out_end, self._data)
        os.close(out_end)
        self._watch(out, self._out, self._cap)
        return pid

    def _watch(self, fd: int, chunks: list[bytes], cap: int) -> None:
        self._pipes[fd] = chunks
        self._room[fd] = cap
        self._reactor.add(fd, lambda: self._read(fd))

    def _read(self, fd: int) -> None:
        while True:
            try:
                chunk = os.read(fd, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                self._close(fd)
                return
            kept = chunk[: self._room[fd]]
            self._room[fd] -= len(kept)
            self._pipes[fd].append(kept)
            if len(kept) < len(chunk) and self._pipes[fd] is self._out:
                self.cut = True
                self._close(fd)  # it gets SIGPIPE, and what it has to say is too long anyway
                return

    def _close(self, fd: int) -> None:
        self._reactor.remove(fd)
        os.close(fd)
        del self._pipes[fd]


def _nothing() -> None:
    pass


def _in_child(work: Callable[[int], None], fd: int, data: int) -> None:
    code = 70
    try:
        os.setsid()
        # Above all the channel to the guard and the incident's lock: both must end with the recorder, not with us.
        os.closerange(3, fd)
        os.closerange(fd + 1, _MOST_DESCRIPTORS)
        go_before_us(os.getpid(), 1.0)
        limit_data(0, data)
        work(fd)
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    finally:
        os._exit(code)


def refusal(error: OSError) -> str:
    """Why a child did not begin, for the record."""
    return f"not started: {errno.errorcode.get(error.errno or 0, '?')} ({error.strerror})"
