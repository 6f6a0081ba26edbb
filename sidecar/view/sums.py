"""Sums over a volume's counters that never fall while the viewer lives, and, for folders that `prune` removed, beyond.

A pod's file can go at any time: pruned (then its counts are in the totals), or by somebody's hand. What was seen of it
once goes on counting here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sidecar.dumps.counters import Counted, Sums, Totals, add


@dataclass(slots=True)
class _Life:
    """One pod's file: `base` is what it had counted before it began at 0 again."""

    key: str
    sums: Sums
    base: Sums = field(default_factory=dict)


class VolumeSums:
    """Only one thread uses it."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._totals = Totals()

    def take(self, found: Iterable[Counted], totals: Totals | None) -> Sums:
        """The sums after one look at the volume. `totals` was read after `found`; None: it could not be read."""
        self._totals = totals or self._totals
        for pod in found:
            life = self._lives.get(pod.path)
            if life is None:
                self._lives[pod.path] = _Life(pod.key, pod.sums)
                continue
            if any(pod.sums.get(series, 0) < value for series, value in life.sums.items()):
                add(life.base, life.sums)
            life.key, life.sums = pod.key, pod.sums
        for path in [path for path, life in self._lives.items() if life.key in self._totals.folded]:
            del self._lives[path]
        sums = dict(self._totals.sums)
        for life in self._lives.values():
            add(sums, life.sums)
            add(sums, life.base)
        return sums
