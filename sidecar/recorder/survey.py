"""A look at everything in the dump folder: what lies there, whose it is, and what was left half done.

Of each record only the head is read: `record.encode` writes a key a line, the short ones first. A folder without a
`.lock` is sealed; one whose `.lock` nobody holds was left open. What a child or another recorder left half done is
tidied up on the way, where it is ours and nobody is at it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.model import PodInfo, incident_from
from sidecar.policy.retention import PINNED, Kept, of_another_pod
from sidecar.policy.throttle import EXEMPT, Earlier
from sidecar.recorder import files

RECORD = "incident.json"
LOCK = ".lock"
REMOVING = ".removing-"
MOST_RECORD = 64 << 20
_MOST_HEAD = 16 << 10
_EXEMPT = tuple(reason.value for reason in EXEMPT)

_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z-[a-z0-9]+(?:[-_.][A-Za-z0-9_.]+)*")


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


def wall_of(incident_id: str) -> float:
    """When an incident began, seconds since the epoch, by its id. Raises `ValueError` where that is no id."""
    found = _ID.fullmatch(incident_id)
    if found is None or len(incident_id) > 128:
        raise ValueError("not an incident's id")
    year, month, day, hour, minute, second, milli = (int(group) for group in found.groups())
    # Days since the epoch in the Gregorian calendar, counted from March; `calendar` would import half the library.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return days * 86400 + hour * 3600 + minute * 60 + second + milli / 1000


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


def pod_of(head: dict[str, Any]) -> PodInfo:
    """The pod that a record names, with "" for what it does not say."""
    pod = head.get("pod")
    words = {key: value for key, value in pod.items() if isinstance(value, str)} if isinstance(pod, dict) else {}
    return PodInfo(words.get("namespace", ""), words.get("name", ""), words.get("uid", ""), words.get("node", ""))


def head_of(folder: int) -> dict[str, Any]:
    """The first keys of the record in an open incident folder, up to the first list that is not empty; {} if it cannot
    be read."""
    try:
        text = files.read(folder, RECORD, _MOST_HEAD).decode("utf-8", "replace")
    except OSError:
        return {}
    head: dict[str, Any] = {}
    for line in text.split("\n")[1:]:
        try:
            head.update(json.loads("{" + line.strip().removesuffix(",") + "}"))
        except (ValueError, RecursionError):
            break
    return head


def record_of(folder: int) -> dict[str, Any]:
    """The whole record. Raises `OSError`, or `ValueError` where it is no incident's record."""
    try:
        record = json.loads(files.read(folder, RECORD, MOST_RECORD))
    except (RecursionError, MemoryError) as error:
        raise ValueError("not an incident's record") from error
    if not isinstance(record, dict) or not isinstance(record.get("artifacts", []), list):
        raise ValueError("not an incident's record")
    return record


def is_held(folder: int) -> bool | None:
    """Whether a live process holds the incident's lock; None where this file system has no locks."""
    try:
        fd = os.open(LOCK, files.READ, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(fd)
    return False


@dataclass(frozen=True, slots=True)
class _Found:
    """`guard`: it was left open and can be taken up, as this. `count`: for the throttle, None where it counts not."""

    kept: Kept
    held: bool
    guard: dict[str, Any] | None
    count: int | None


def _look(root: int, name: str, wall: float, pod: PodInfo) -> _Found:
    folder = os.open(name, files.FOLDER, dir_fd=root)
    try:
        size = files.measure(root, name)
        head = head_of(folder)
        theirs = pod_of(head)
        others = of_another_pod(theirs, pod)
        locked = files.has(folder, LOCK)
        held = is_held(folder) if locked else False
        guard = None
        if locked and held is not True:
            locked, guard = _left_open(folder, name, others)
            if guard is not None and pod.uid and theirs.uid and theirs.uid != pod.uid:
                guard = None  # of a former pod of our name: none of its processes is in our namespace
        sealed = not locked and files.has(folder, RECORD)  # without either, its recorder has only just made it
        collapsed = head.get("collapsed") is True
        pinned = files.has(folder, PINNED)
        if not others and (sealed or (locked and held is False)):
            size = _tidied(root, name, folder, size, collapsed)
    finally:
        os.close(folder)
    throttled = head.get("throttled")
    count = throttled.get("count") if isinstance(throttled, dict) else 0
    signature = head.get("signature")
    kept = Kept(
        name, size.total, wall, sealed, signature if isinstance(signature, str) else "", full=count == 0,
        collapsed=collapsed, core=size.top, others=others, protected=pinned,
    )  # fmt: skip
    counts = head.get("reason") not in _EXEMPT and isinstance(count, int) and bool(head)
    return _Found(kept, held is True, guard, count if counts else None)


def _left_open(folder: int, name: str, others: bool) -> tuple[bool, dict[str, Any] | None]:
    """(is it still open, as what it can be taken up) of an incident with a lock that nobody holds."""
    if others:
        return True, None
    try:
        record = record_of(folder)
        if record.get("sealed") is True:  # its recorder died between its last two steps
            os.unlink(LOCK, dir_fd=folder)
            return False, None
        if incident_from(record["guard"]).id != name:
            return True, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True, None  # nothing in it that could be taken up again
    return True, record["guard"]


def _tidied(root: int, name: str, folder: int, size: files.Size, collapsed: bool) -> files.Size:
    """Remove what nobody will finish: files that a child was writing, and those of an incident half collapsed."""
    if collapsed and size.total > size.top:
        try:
            files.remove_folders(folder)
        except OSError:
            pass  # as below
    elif size.partials:
        for path in size.partials:
            kind, _, file = path.partition("/")
            inside = os.open(kind, files.FOLDER, dir_fd=folder)
            try:
                _remove(inside, file)
            finally:
                os.close(inside)
    else:
        return size
    return files.measure(root, name)


def _remove(folder: int, name: str) -> None:
    """On a volume that refuses, what was left half done stays, and its bytes count."""
    try:
        files.remove_tree(folder, name)
    except OSError:
        pass
