"""A look at everything in the dump folder: what lies there, whose it is, and what was left half done.

What one incident's folder says is read by `sidecar.dumps.kept`. What a child or another recorder left half done is
tidied up on the way, where it is ours and nobody is at it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sidecar.dumps.kept import (
    MOST_RECORD,
    RECORD,
    Seen,
    head_of,
    kept_of,
    look,
    pod_of,
    record_of,
    to_take_up,
    wall_of,
)
from sidecar.dumps.lock import LOCK, is_held
from sidecar.model import PodInfo
from sidecar.policy.retention import Kept, of_another_pod
from sidecar.policy.throttle import EXEMPT, Earlier
from sidecar.recorder import files

__all__ = [
    "LOCK", "MOST_RECORD", "RECORD", "REMOVING", "Survey", "head_of", "is_held", "pod_of", "record_of", "survey",
    "wall_of",
]  # fmt: skip

REMOVING = ".removing-"
_EXEMPT = tuple(reason.value for reason in EXEMPT)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is on the volume. Bytes are those allocated, as a quota and an eviction count them.

    `unfinished`: the guard's Incidents of those left open, as plain dicts. `held`: the ids that a live recorder writes.
    `earlier`: ours, as the throttle counts them.
    """

    dump_bytes: int
    free_bytes: int
    kept: tuple[Kept, ...]
    unfinished: tuple[dict[str, Any], ...]
    held: frozenset[str]
    earlier: tuple[Earlier, ...] = ()

    @property
    def incident_bytes(self) -> int:
        return sum(kept.bytes for kept in self.kept)


def survey(root: int, pod: PodInfo, hurried: Callable[[], bool] = lambda: False) -> Survey | None:
    """Look at every incident below the folder opened as `root`; `pod` is ours.

    None if `hurried` said so on the way: an incident must not wait for this. Raises `OSError`.
    """
    total = 0
    kept, unfinished, held, earlier = [], [], set(), []
    for name in sorted(os.listdir(root)):
        if hurried():
            return None
        if name.startswith(REMOVING):
            _remove(root, name)
        found = None
        try:
            wall = wall_of(name)
            found = _look(root, name, wall, pod)
        except (ValueError, OSError):  # something else, or removed meanwhile
            pass
        if found is None:
            total += files.allocated(root, name)
            continue
        total += found.kept.bytes
        kept.append(found.kept)
        if found.held:
            held.add(name)
        if found.guard is not None:
            unfinished.append(found.guard)
        if found.count is not None and not found.kept.others:
            earlier.append(Earlier(name, wall, found.count))
    room = os.fstatvfs(root)
    free = room.f_bavail * room.f_frsize
    return Survey(total, free, tuple(kept), tuple(unfinished), frozenset(held), tuple(earlier))


def _look(root: int, name: str, wall: float, pod: PodInfo) -> _Found:
    seen = look(root, name, wall)
    others = of_another_pod(seen.theirs, pod)
    if not others and (seen.stale or seen.untidy(others)):
        seen = _tidied(root, seen)
    counts = seen.head.get("reason") not in _EXEMPT and isinstance(seen.count, int) and bool(seen.head)
    guard = None if others else to_take_up(seen, pod)
    return _Found(kept_of(seen, pod), seen.held is True, guard, seen.count if counts else None)


def _tidied(root: int, seen: Seen) -> Seen:
    """Remove what nobody will finish, and the lock of one that is sealed."""
    folder = os.open(seen.name, files.FOLDER, dir_fd=root)
    try:
        if seen.stale:
            try:
                os.unlink(LOCK, dir_fd=folder)
                seen = replace(seen, locked=False, stale=False)
            except OSError:
                seen = replace(seen, stale=False)
        if seen.untidy(False):
            _clear(folder, seen)
            seen = replace(seen, size=files.measure(root, seen.name))
    finally:
        os.close(folder)
    return seen


def _clear(folder: int, seen: Seen) -> None:
    if seen.collapsed and seen.size.total > seen.size.top:
        try:
            files.remove_folders(folder)
        except OSError:
            pass  # as below
        return
    for path in seen.size.partials:
        kind, _, file = path.partition("/")
        inside = os.open(kind, files.FOLDER, dir_fd=folder)
        try:
            _remove(inside, file)
        finally:
            os.close(inside)


@dataclass(frozen=True, slots=True)
class _Found:
    """`guard`: it was left open and can be taken up, as this. `count`: for the throttle, None where it counts not."""

    kept: Kept
    held: bool
    guard: dict[str, Any] | None
    count: int | None


def _remove(folder: int, name: str) -> None:
    """On a volume that refuses, what was left half done stays, and its bytes count."""
    try:
        files.remove_tree(folder, name)
    except OSError:
        pass
