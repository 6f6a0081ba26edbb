"""What retention would drop next, by its own plan: now, when one more incident comes, and with age. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from sidecar.policy.retention import Keeping, Kept, Limits, Step, limits_for, marked, plan, room_for

_SMALL = 1 << 20  # bytes that are written whether or not there is room


@dataclass(frozen=True, slots=True)
class Coming:
    """One step to come. `collapse`: its files go, its record stays. `bytes` is what that frees. `at` is when it is due,
    seconds since the epoch: not later than `now` for one that the next look takes, None for one that the next incident
    brings about."""

    id: str
    collapse: bool
    why: str
    bytes: int
    at: float | None


def outlook(
    incidents: Sequence[Kept],
    open_ids: Collection[str],
    keeping: Keeping,
    other_bytes: int,
    free_bytes: int,
    now: float,
    most: int,
) -> list[Coming]:
    """The first `most` steps. `open_ids` are being written, or are about to be taken up; `other_bytes` is what else
    lies in the folder. The incident that may come is taken to be as large as the last full one,
    where there is room for that."""
    standing_by = marked(incidents, open_ids, keeping.max_age, now, newest_too=True)
    size = sum(kept.bytes for kept in incidents)
    due = plan(standing_by, limits_for(keeping, size, other_bytes, free_bytes, now, keeping.headroom))
    coming = [
        _coming(step, kept, _due(kept, keeping) if step.why == "age" else now)
        for step, kept in _with(due[:most], incidents)
    ]

    left = _after(incidents, due)
    left_size = sum(kept.bytes for kept in left)
    full = (kept for kept in incidents if kept.full and not (kept.collapsed or kept.others))
    last = max(full, key=lambda kept: kept.wall, default=None)
    free_bytes += size - left_size
    room = max(_SMALL, room_for(keeping, left_size, other_bytes, free_bytes))
    another = Kept("", min(last.bytes, room) if last else 0, now, sealed=False)
    free_bytes -= another.bytes
    limits = limits_for(keeping, left_size + another.bytes, other_bytes, free_bytes, now, keeping.headroom)
    later = plan(marked([*left, another], {"", *open_ids}, keeping.max_age, now, newest_too=False), limits)
    coming += [_coming(step, kept, None) for step, kept in _with(later[:most], left)]

    left = _after(left, later)
    end = max([now, *(_due(kept, keeping) for kept in left)]) + 1.0
    aging = plan(marked(left, open_ids, None, end, newest_too=False), Limits(None, None, keeping.max_age, end))
    aged = sorted(((_due(kept, keeping), step, kept) for step, kept in _with(aging, left)), key=lambda row: row[0])
    coming += [_coming(step, kept, at) for at, step, kept in aged[:most]]
    return coming[:most]


def _due(kept: Kept, keeping: Keeping) -> float:
    """When it is old enough to go."""
    age = keeping.max_age or 0.0
    return kept.wall + (age if kept.sealed else max(age, Limits(None, None, None, 0.0).protect_unsealed_seconds))


def _coming(step: Step, kept: Kept, at: float | None) -> Coming:
    return Coming(step.id, bool(step.repeat_of), step.why, kept.bytes - (kept.core if step.repeat_of else 0), at)


def _with(steps: Iterable[Step], incidents: Sequence[Kept]) -> list[tuple[Step, Kept]]:
    by_id = {kept.id: kept for kept in incidents}
    return [(step, by_id[step.id]) for step in steps]


def _after(incidents: Sequence[Kept], steps: Sequence[Step]) -> list[Kept]:
    """What is left once the steps are done."""
    small = {step.id for step in steps if step.repeat_of}
    gone = {step.id for step in steps} - small
    return [
        replace(kept, bytes=kept.core, collapsed=True) if kept.id in small else kept
        for kept in incidents
        if kept.id not in gone
    ]
