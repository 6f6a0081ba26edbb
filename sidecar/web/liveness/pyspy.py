"""Stacks of a running process, taken without pausing it: `py-spy dump --nonblocking`, one child a process.

A child can hang (py-spy reads the target's memory, and a thread stuck in the kernel may hold its lock), so each has a
deadline, a session of its own and limits of memory: RLIMIT_DATA, which counts no shared memory, and a look at what it
holds every few milliseconds. One that does not even die of SIGKILL is left alone: it does not stop its target, and no
second one is sent after the same process.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time
from typing import Any

from sidecar.system.limits import go_before_us, limit_data
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
from sidecar.system.spawning import start_piped

_CAP = 4 << 20  # bytes of one answer; 60 threads of 40 frames each give about 0.5 MiB
_MEMORY = 64 << 20  # bytes of one child; the stacks of a big process take less than 16 MiB (seen)
_LEAST_MEMORY = 24 << 20  # with less left for it, none is sent
_RESERVE = 8  # an eighth of the container's memory is for our own processes
_DANGER = 16  # with a sixteenth of it left, a child is ended
_LOOK_EVERY = 0.02
_TRIES = 2  # a stack that changes while it is read comes out as an error
_AFTERWARDS = 0.25  # seconds after SIGKILL in which the end is still awaited
_POLL = 0.01  # seconds between two looks at a child without a pidfd
_LONGEST_POLL = 30.0
_CHUNK = 1 << 16
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class PySpy:
    """Runs `program`, "" where there is none. Used on one event loop; `close` ends what still runs."""

    def __init__(self, program: str, memory: OwnMemory | None = None) -> None:
        self.program = program
        self._memory = memory or _own_memory()
        self._children: dict[int, _Child] = {}  # those not reaped, by the pid that they look at

    async def stacks(self, pid: int, deadline: float) -> list[Any] | None:
        """The threads of a process as py-spy lists them, or None: it gave none until `deadline` (monotonic), or none
        that can be read. Raises for nothing that the target or py-spy does.
        """
        for _ in range(_TRIES):
            if not self.program or time.monotonic() >= deadline or self._busy(pid):
                return None
            share = self._share()
            if share < _LEAST_MEMORY:
                return None
            try:
                child = self._children[pid] = _Child(self.program, pid, share)
            except OSError:  # no more processes, memory or descriptors: nothing is learnt this time
                return None
            watching = asyncio.create_task(child.watch(self._memory))
            try:
                threads = _threads(await child.answer(deadline))
            finally:
                watching.cancel()
                self._collect(pid, child, _POLL)  # one that was given up has been killed, and is not yet reaped
            if threads is not None:
                return threads
        return None

    def close(self) -> None:
        """End every child, without waiting."""
        for target, child in list(self._children.items()):
            child.kill()
            self._busy(target)
        self._memory.close()

    def _collect(self, target: int, child: _Child, pause: float) -> None:
        """Reap it, now or as soon as that can be done; ever more seldom, since it may be stuck in the kernel."""
        if not child.reap():
            asyncio.get_running_loop().call_later(pause, self._collect, target, child, min(2 * pause, _LONGEST_POLL))
        elif self._children.get(target) is child:
            del self._children[target]

    def _share(self) -> int:
        """The bytes that one more child may have."""
        room = self._memory.room()
        if room is None:
            return _MEMORY
        running = sum(child.share for child in self._children.values() if not child.reaped)
        return min(_MEMORY, (room.left - room.limit // _RESERVE - running) // 2)

    def _busy(self, target: int) -> bool:
        """Whether the last one sent there has still not gone."""
        child = self._children.get(target)
        if child is not None and child.reap():
            del self._children[target]
        return target in self._children


class _Child:
    """One py-spy at work. Not reaped, its pid is nobody else's. Raises `OSError` where it cannot be started."""

    def __init__(self, program: str, target: int, share: int) -> None:
        self.share = share
        self._status: int | None = None  # as wait(2) gives it, once it is reaped
        command = (program, "dump", "--json", "--nonblocking", "--pid", str(target))
        self._pid, self._out = start_piped(command, _ENVIRONMENT, setsid=True)
        go_before_us(self._pid, 1.0)  # a stack is worth less than the engine next door
        limit_data(self._pid, share)
        _no_core(self._pid)
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:  # an old kernel, gVisor, or no descriptor left
            self._pidfd = -1

    @property
    def reaped(self) -> bool:
        return self._status is not None

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

    async def watch(self, memory: OwnMemory) -> None:
        """End it when it holds too much, or the container has too little left. Give it up by cancelling."""
        while self._status is None:
            held, room = memory.held_by(self._pid), memory.room()
            if held > self.share or (room is not None and room.left < room.limit // _DANGER):
                self.kill()
                return
            await asyncio.sleep(_LOOK_EVERY)

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


def _own_memory() -> OwnMemory:
    proc = Proc()
    try:
        return OwnMemory(proc)
    finally:
        proc.close()


def _no_core(pid: int) -> None:
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
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
