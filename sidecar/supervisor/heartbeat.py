"""Telling a process that hangs from one that is idle: it writes the monotonic time into memory that we share."""

from __future__ import annotations

import mmap
import os
import struct

from sidecar.system import clock

_BEAT = struct.Struct("d")


class Heartbeat:
    """`fd` is the memory, for the process: the time is its first 8 bytes. `limit`: how many seconds old it may be."""

    def __init__(self, name: str, limit: float) -> None:
        self.fd = os.memfd_create(f"rankguard-heartbeat-{name}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self._limit = limit
        self._stale = 0

    def begin(self, grace: float = 0.0) -> None:
        """A process has been started, and may take `grace` seconds more to its first beat."""
        self._stale = 0
        self._memory[:8] = _BEAT.pack(clock.monotonic() + grace)

    def look(self) -> int:
        """How many looks in a row, this one included, have found it too old. One proves nothing: we may both have been
        stopped together.
        """
        (beat,) = _BEAT.unpack(self._memory[:8])
        self._stale = self._stale + 1 if clock.monotonic() - beat > self._limit else 0
        return self._stale

    @property
    def stale(self) -> bool:
        """The last look has found it too old."""
        return self._stale > 0
