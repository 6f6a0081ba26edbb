"""How long a process stands still, told by itself: a thread that wakes every 2 ms writes down each time it was late.

What it writes is a file that the bench maps too: the number of gaps, the time of the last tick, then a ring of
(begin, end) in monotonic seconds. A gap under way counts as well: it has begun with the last tick.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

TICK = 0.002  # s
LEAST = 0.008  # s: what is shorter is how the kernel shares a core, and no pause
_HEAD = struct.Struct("<Qd")
_GAP = struct.Struct("<dd")
_ROOM = 8192
_SIZE = _HEAD.size + _ROOM * _GAP.size


@dataclass(frozen=True, slots=True)
class Still:
    """Within some time, in seconds: the longest gap, and all gaps together."""

    longest: float
    total: float


class Writer:
    """In the process itself."""

    def __init__(self, path: str) -> None:
        with open(path, "w+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._gaps = 0
        self._last = 0.0

    def tick(self, now: float) -> None:
        if self._last and now - self._last > LEAST:
            _GAP.pack_into(self._map, _HEAD.size + self._gaps % _ROOM * _GAP.size, self._last, now)
            self._gaps += 1
        self._last = now
        _HEAD.pack_into(self._map, 0, self._gaps, now)


class Reader:
    """In the bench. Raises `OSError` where there is no such file."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)

    @property
    def ticking(self) -> bool:
        return bool(_HEAD.unpack_from(self._map)[1])

    def between(self, begin: float, end: float) -> Still:
        """Of the gaps that touch this time, the parts within it."""
        count, last = _HEAD.unpack_from(self._map)
        gaps = [_GAP.unpack_from(self._map, _HEAD.size + n * _GAP.size) for n in range(min(count, _ROOM))]
        gaps.append((last, end))
        parts = [min(until, end) - max(since, begin) for since, until in gaps]
        parts = [part for part in parts if part > LEAST]
        return Still(max(parts, default=0.0), sum(parts))
