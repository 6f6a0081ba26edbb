"""What was seen of one engine, for as long as it may matter, within bounds.

A judgement needs all that was seen since the last sign of progress, which is up to `--stall-limit`: an hour of looks at
64 ranks, if somebody sets it so. Above `MOST` of a kind every second of the older ones goes: what remains still spans
the whole time, only less densely.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from sidecar.policy.sightings import Answer, Look, ProbeResult, Scrape

MOST = 512
MOST_LOOKS = 128


class _Seen(Protocol):
    @property
    def at(self) -> float: ...


S = TypeVar("S", bound=_Seen)


class Series:
    """Oldest first, each kind by itself."""

    def __init__(self) -> None:
        self.probes: list[ProbeResult] = []
        self.scrapes: list[Scrape] = []
        self.looks: list[Look] = []

    def forget(self) -> None:
        """It is another engine."""
        for kind in (self.probes, self.scrapes, self.looks):
            kind.clear()

    def drop_looks(self, since: float) -> None:
        """Forget the looks taken from then on."""
        self.looks[:] = [look for look in self.looks if look.at < since]

    def keep_from(self, at: float) -> None:
        """Drop what is older than `at`, but the last before it of each kind, which says how it stood then; and of the
        health checks also the last that was passed.
        """
        passed = next((probe for probe in reversed(self.probes) if probe.answer is Answer.OK), None)
        _keep_from(self.probes, at, MOST)
        if passed is not None and passed not in self.probes:
            self.probes.insert(0, passed)
        _keep_from(self.scrapes, at, MOST)
        _keep_from(self.looks, at, MOST_LOOKS)

    def shown(self, now: float) -> dict[str, Any]:
        """The newest of each kind for people, in JSON's values; None where there is none."""
        probe = self.probes[-1] if self.probes else None
        numbers = self.scrapes[-1] if self.scrapes else None
        return {
            "last_probe": probe
            and {"answer": probe.answer.value, "detail": probe.detail, "seconds_ago": round(now - probe.at, 3)},
            "last_scrape": numbers
            and {
                "running": numbers.running,
                "waiting": numbers.waiting,
                "moved": numbers.moved,
                "seconds_ago": round(now - numbers.at, 3),
            },
            "closer_looks": sum(not look.quick for look in self.looks),
        }


def _keep_from(seen: list[S], at: float, most: int) -> None:
    older = sum(1 for one in seen if one.at < at)
    del seen[: max(0, older - 1)]
    if len(seen) > most:
        half = len(seen) // 2
        del seen[1:half:2]  # never the first, which says since when
