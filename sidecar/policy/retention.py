"""What to give up so that the dump folder stays within its limits. Pure: time is an argument.

Incidents of one signature are one failure again and again. The first of them that was captured in full is kept
longest, and every other is a *repeat*. What goes, and in which order:

1. Whatever is older than the age.
2. For bytes, repeats are collapsed to summaries: their files go, their records stay. Not the newest of a signature.
3. For bytes and number, repeats are removed, then firsts.

Within each step the oldest go first, and no more than needed. An incident without a signature is its own first. An
unsealed incident younger than `protect_unsealed_seconds` may still be written to: it never goes, but its bytes and its
place count. The same holds for one that a person has pinned, whatever its age. Another pod's incident goes by its age
alone; its bytes count, its place does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from sidecar.model import PodInfo

PINNED = ".pinned"  # a file of this name in an incident's folder: a person wants it kept
VOLUME_SHARE = 0.8  # of an emptyDir's sizeLimit: going over the limit evicts the engine's pod (seen)


@dataclass(frozen=True, slots=True)
class Kept:
    """One incident on the volume. `id` is whatever tells it from the others; `wall` is when it began, seconds since
    the epoch; `bytes` is what removing it would free.

    `signature` is "" where there is none. `full`: not a throttled one. `core` is what stays of it once it is collapsed,
    in bytes. `others`: another pod's. `protected`: not to be touched, whatever the limits say.
    """

    id: str
    bytes: int
    wall: float
    sealed: bool
    signature: str = ""
    full: bool = True
    collapsed: bool = False
    core: int = 0
    others: bool = False
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a pod's settings say. `volume_limit`: the volume's own, of which a share is used. `headroom`: bytes that
    should be free for large files before there is an incident; repeats are collapsed for it."""

    max_count: int | None
    max_bytes: int | None
    max_age: float | None = None
    volume_limit: int | None = None
    free_floor: int = 0
    headroom: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """None means no such limit. `max_age` and `protect_unsealed_seconds` are seconds, `now` seconds since the epoch.

    `wanted` is how many bytes should be freed although no limit asks for it: only collapsing serves that.
    """

    max_count: int | None
    max_bytes: int | None
    max_age: float | None
    now: float
    protect_unsealed_seconds: float = 3600.0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Remove the incident `id`; or, where `repeat_of` names the first of its signature, collapse it. `why` is the limit
    that asks for it: `age`, `bytes` or `number`."""

    id: str
    repeat_of: str = ""
    why: str = field(default="", compare=False)


def plan(incidents: Sequence[Kept], limits: Limits) -> list[Step]:
    """What to do, in this order. The order of `incidents` does not matter; equal times go by id."""
    ordered = sorted(incidents, key=lambda kept: (kept.wall, kept.id))
    aged = [kept for kept in ordered if _over_age(kept, limits) and not _protected(kept, limits)]
    steps = [Step(kept.id, why="age") for kept in aged]
    gone = {kept.id for kept in aged}
    left = [kept for kept in ordered if kept.id not in gone]
    firsts = _firsts(left)
    collapsing = _collapsing(left, firsts, limits)
    steps += [Step(kept.id, firsts[kept.signature].id, "bytes") for kept in collapsing]
    small = {kept.id for kept in collapsing}
    sizes = {kept.id: kept.core if kept.id in small else kept.bytes for kept in left}
    count, size = sum(not kept.others for kept in left), sum(sizes.values())
    removed: dict[str, Step] = {}
    for kept in sorted(left, key=lambda kept: _is_first(kept, firsts)):  # stable: the oldest first among either
        if _within(count, limits.max_count) and _within(size, limits.max_bytes):
            break
        if kept.others or _protected(kept, limits):
            continue
        removed[kept.id] = Step(kept.id, why="bytes" if _within(count, limits.max_count) else "number")
        count -= 1
        size -= sizes[kept.id]
    # Nothing is rewritten that goes altogether.
    return [step for step in steps if step.id not in removed] + list(removed.values())


def choose(incidents: Sequence[Kept], limits: Limits) -> list[str]:
    """The ids to remove, in `plan`'s order."""
    return [step.id for step in plan(incidents, limits) if not step.repeat_of]


def quota(max_bytes: int | None, volume_limit: int | None, other_bytes: int = 0) -> int | None:
    """Bytes that all incidents together may take. `other_bytes`: what else lies in the folder; only the volume's limit,
    an emptyDir's sizeLimit, counts that."""
    if volume_limit is None:
        return max_bytes
    share = max(0, int(volume_limit * VOLUME_SHARE) - other_bytes)
    return share if max_bytes is None else min(max_bytes, share)


def room_for(keeping: Keeping, incident_bytes: int, other_bytes: int, free_bytes: int) -> int:
    """Bytes that large files may still take, all together. `free_bytes` are free on the volume."""
    free = free_bytes - keeping.free_floor
    most = quota(keeping.max_bytes, keeping.volume_limit, other_bytes)
    return max(0, free if most is None else min(free, most - incident_bytes))


def limits_for(
    keeping: Keeping, incident_bytes: int, other_bytes: int, free_bytes: int, now: float, wanted: int
) -> Limits:
    """The limits for one look at the folder, where `wanted` bytes should be free if collapsing repeats can do it."""
    most = quota(keeping.max_bytes, keeping.volume_limit)
    if most is not None:
        wanted = min(wanted, most // 2)  # not all that is there is given up for what may come
    lacking = wanted - room_for(keeping, incident_bytes, other_bytes, free_bytes)
    return Limits(
        keeping.max_count, quota(keeping.max_bytes, keeping.volume_limit, other_bytes), keeping.max_age, now,
        wanted=max(0, keeping.free_floor - free_bytes, lacking),
    )  # fmt: skip


def marked(
    incidents: Sequence[Kept], open_ids: Collection[str], max_age: float | None, now: float, newest_too: bool
) -> list[Kept]:
    """Each incident, with what must not be touched marked so: those that somebody writes or is about to take up, and
    with `newest_too` (no incident is ours) the newest, which another recorder may just have sealed."""
    fixed = set(open_ids)
    if newest_too:
        newest = max((kept for kept in incidents if not kept.others), key=lambda kept: kept.wall, default=None)
        if newest is not None and (max_age is None or now - newest.wall <= max_age):
            fixed.add(newest.id)
    return [replace(kept, protected=True) if kept.id in fixed else kept for kept in incidents]


def of_another_pod(theirs: PodInfo, ours: PodInfo) -> bool:
    """Whether a record is another pod's. One that had our name is not: a volume's folder passes on to the next.

    A record without a uid is ours, and so is every one where we do not know our own.
    """
    if not ours.uid or not theirs.uid or theirs.uid == ours.uid:
        return False
    return not ours.name or (theirs.namespace, theirs.name) != (ours.namespace, ours.name)


def _firsts(ordered: Sequence[Kept]) -> dict[str, Kept]:
    """By signature, the first that was captured in full."""
    firsts: dict[str, Kept] = {}
    for kept in ordered:
        if kept.signature and kept.full and not kept.collapsed and not kept.others:
            firsts.setdefault(kept.signature, kept)
    return firsts


def _is_first(kept: Kept, firsts: dict[str, Kept]) -> bool:
    first = firsts.get(kept.signature)
    return first is kept or (first is None and kept.full and not kept.collapsed)


def _collapsing(ordered: Sequence[Kept], firsts: dict[str, Kept], limits: Limits) -> list[Kept]:
    newest = {kept.signature: kept for kept in ordered if kept.full and not kept.others}
    size = sum(kept.bytes for kept in ordered)
    freed, chosen = 0, []
    for kept in ordered:
        if _within(size - freed, limits.max_bytes) and freed >= limits.wanted:
            break
        whole = kept.full and kept.sealed and not kept.collapsed and kept.bytes > kept.core
        if not whole or kept.others or kept.protected or kept.signature not in firsts:
            continue
        if kept is firsts[kept.signature] or kept is newest[kept.signature]:
            continue
        chosen.append(kept)
        freed += kept.bytes - kept.core
    return chosen


def _within(value: int, limit: int | None) -> bool:
    return limit is None or value <= limit


def _over_age(kept: Kept, limits: Limits) -> bool:
    return limits.max_age is not None and limits.now - kept.wall > limits.max_age


def _protected(kept: Kept, limits: Limits) -> bool:
    # Near in either direction: a clock that was set back must not expose what is being written now, and one that ran
    # years ahead must not make an abandoned record immortal.
    young = abs(limits.now - kept.wall) < limits.protect_unsealed_seconds
    return kept.protected or (not kept.sealed and young)
