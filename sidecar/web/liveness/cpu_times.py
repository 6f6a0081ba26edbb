"""The CPU time of each rank, beside the engine's metrics: `rankguard_rank_cpu_seconds{rank="TP0"} 12.34`.

Told for people, who see afterwards which rank began to spin or to rest and when. They are read in each period anyway.
"""

from __future__ import annotations

import time
from typing import Protocol

from sidecar import history
from sidecar.policy.sightings import Look

_SHARE = history.SIZE // 4  # bytes for the last minutes: half of the room; the rest is the engine's own metrics'
_ALMOST = 0.8  # of a period: a closer look may come a little before the tick


class History(Protocol):
    """Where scraped lines are kept for an incident: see `sidecar.history`."""

    def add(self, wall: float, monotonic_at: float, lines: bytes) -> object: ...


class CpuTimes:
    """Keeps one look a period, and of many ranks one as seldom as it takes to have room for the last minutes."""

    def __init__(self, kept: History | None, period: float) -> None:
        self._kept = kept
        self._period = period
        self._next = 0.0

    def add(self, look: Look) -> None:
        """Every look, in their order."""
        if self._kept is None or not look.ranks or look.at < self._next:
            return
        lines = "".join(f'{history.CPU_SECONDS}{{rank="{_label(one.rank or one.role)}"}} {one.cpu:.2f}\n'
                        for one in look.ranks).encode()  # fmt: skip
        record = len(lines) + 6 * len(look.ranks)  # in JSON
        self._next = look.at + max(_ALMOST * self._period, history.SECONDS * record / _SHARE)
        self._kept.add(time.time() - (time.monotonic() - look.at), look.at, lines)


def _label(name: str) -> str:
    return name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
