"""Stacks of a running process, taken without pausing it: `py-spy dump --nonblocking`, one child a process.

A child can hang (py-spy reads the target's memory, and a thread stuck in the kernel may hold its lock), so each has a
deadline, a session of its own and a limit of memory. One that does not even die of SIGKILL is left alone: it does not
stop its target, and no second one is sent after the same process.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time
from typing import Any

_CAP = 4 << 20  # bytes of one answer; 60 threads of 40 frames each give about 0.5 MiB
_DATA_LIMIT = 512 << 20  # not RLIMIT_AS, which py-spy breaks on with big libraries (seen)
_TRIES = 2  # a stack that changes while it is read comes out as an error
_AFTERWARDS = 0.25  # seconds after SIGKILL in which the end is still awaited
_POLL = 0.01  # seconds between two looks at a child without a pidfd
_CHUNK = 1 << 16
_DEFAULTS = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class PySpy:
    """Runs `program`, "" where there is none. Used on one event loop; `close` ends what still runs."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._children: dict[int, _Child] = {}  # those not reaped, by the pid that they look at

    async def stacks(self, pid: int, deadline: float) -> list[Any] | None:
        """The threads of a process as py-spy lists them, or None: it gave none until `deadline` (monotonic), or none
        that can be read. Raises for nothing that the target or py-spy does.
        """
        for _ in range(_TRIES):
            if not self.program or time.monotonic() >= deadline or self._busy(pid):
                return None
            try:
                child = self._children[pid] = _Child(self.program, pid)
            except OSError:  # no more processes, memory or descriptors: nothing is learnt this time
                return None
            threads = _threads(await child.answer(deadline))
            if threads is not None:
                return threads
        return None

    def close(self) -> None:
        """End every child, without waiting."""
        for target, child in list(self._children.items()):
            child.kill()
            self._busy(target)

    def _busy(self, target: int) -> bool:
        """Whether the last one sent there has still not gone."""
        child = self._children.get(target)
        if child is not None and child.reap():
            del self._children[target]
        return target in self._children


class _Child:
    """One py-spy at work. Not reaped, its pid is nobody else's. Raises `OSError` where it cannot be started."""

    def __init__(self, program: str, target: int) -> None:
        self._status: int | None = None  # as wait(2) gives it, once it is reaped
        self._out, out_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.set_blocking(out_end, True)
            self._pid = os.posix_spawn(
                program,
                (program, "dump", "--json", "--nonblocking", "--pid", str(target)),
                _ENVIRONMENT,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out_end, 1),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                ),
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULTS,
            )
        except OSError:
            os.close(self._out)
            raise
        finally:
            os.close(out_end)
        _limit(self._pid)
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:  # an old kernel, gVisor, or no descriptor left
            self._pidfd = -1

    async def answer(self, deadline: float) -> bytes:
        """What it wrote, b"" unless it ended well before `deadline`. It is ended in any case, also if we are."""
        out = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                chunk = b"-"
                while chunk and len(out) <= _CAP:
                    await _readable(self._out)
                    chunk = os.read(self._out, _CHUNK)
                    out += chunk
                if not chunk:
                    await self._end()
        except TimeoutError:
            pass
        finally:
            os.close(self._out)
            self.kill()
        if self._status is None:
            try:
                async with asyncio.timeout(_AFTERWARDS):
                    await self._end()
            except TimeoutError:
                pass
            return b""
        return bytes(out) if self._status == 0 else b""

    def kill(self) -> None:
        """End it and what it started, unless it has ended."""
        if not self.reap():
            try:
                os.killpg(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def reap(self) -> bool:
        """True once it is reaped. Never blocks."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
                if self._pidfd >= 0:
                    os.close(self._pidfd)
        return self._status is not None

    async def _end(self) -> None:
        while not self.reap():
            if self._pidfd >= 0:
                await _readable(self._pidfd)
            else:
                await asyncio.sleep(_POLL)


def _limit(pid: int) -> None:
    """The first to go when memory is short, and small: a stack is worth less than the engine next door."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        data = _DATA_LIMIT if hard == resource.RLIM_INFINITY else min(_DATA_LIMIT, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (data, data))
    except OSError:  # it has ended, or this place does not let us
        pass


async def _readable(fd: int) -> None:
    """Wait until `fd` has something, its end included."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def _threads(answer: bytes) -> list[Any] | None:
    try:
        threads = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return threads if isinstance(threads, list) else None
