"""Which incidents to remove so that the dump folder stays within its limits. Pure: time is an argument.

Every limit takes the oldest first, so what goes is always a run of the oldest incidents that may go at all, and the
choice is the shortest such run that satisfies all the limits. An unsealed incident younger than
`protect_unsealed_seconds` may still be written to: it never goes, but its bytes and its place count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """One incident on the volume. `id` is whatever tells it from the others; `wall` is when it began, seconds since
    the epoch; `bytes` is what removing it would free."""

    id: str
    bytes: int
    wall: float
    sealed: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """None means no such limit. `max_age` and `protect_unsealed_seconds` are seconds, `now` seconds since the epoch."""

    max_count: int | None
    max_bytes: int | None
    max_age: float | None
    now: float
    protect_unsealed_seconds: float = 3600.0


def choose(incidents: Sequence[Kept], limits: Limits) -> list[str]:
    """The ids to remove, oldest first. The order of `incidents` does not matter; equal times go by id."""
    count = len(incidents)
    size = sum(incident.bytes for incident in incidents)
    gone = []
    for incident in sorted(incidents, key=lambda kept: (kept.wall, kept.id)):
        within_count = limits.max_count is None or count <= limits.max_count
        within_bytes = limits.max_bytes is None or size <= limits.max_bytes
        within_age = limits.max_age is None or limits.now - incident.wall <= limits.max_age
        if within_count and within_bytes and within_age:
            break  # whatever follows is younger, so it is within the age too
        if _protected(incident, limits):
            continue
        gone.append(incident.id)
        count -= 1
        size -= incident.bytes
    return gone


def _protected(incident: Kept, limits: Limits) -> bool:
    # Near in either direction: a clock that was set back must not expose what is being written now, and one that ran
    # years ahead must not make an abandoned record immortal.
    return not incident.sealed and abs(limits.now - incident.wall) < limits.protect_unsealed_seconds
