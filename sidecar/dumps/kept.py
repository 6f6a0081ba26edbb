"""One incident as retention takes it: the recorder before it gives something up, and whoever only wants to know what
would go. Nothing is changed here.

Of each record only the head is read: `record.encode` writes a key a line, the short ones first. A folder without a
`.lock` is sealed; one whose `.lock` nobody holds was left open.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sidecar.dumps import disk
from sidecar.dumps.lock import LOCK, is_held
from sidecar.dumps.opening import FOLDER
from sidecar.model import PodInfo, incident_from
from sidecar.policy.retention import PINNED, Kept, of_another_pod

RECORD = "incident.json"  # `names` has it too, and imports more than a recorder that stands by can spare
MOST_RECORD = 64 << 20
_MOST_LEFT_OPEN = 16 << 20
_MOST_HEAD = 16 << 10

_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z-[a-z0-9]+(?:[-_.][A-Za-z0-9_.]+)*")


@dataclass(frozen=True, slots=True)
class Seen:
    """One incident's folder as it lies there. `theirs`: whose it is, by its record. `count`: of a throttled one, None
    where the record says nonsense. `held`: a live process writes it; None where this file system has no locks. `stale`:
    the lock of one that is sealed. `guard`: the guard's Incident, of one that could be taken up again."""

    name: str
    wall: float
    size: disk.Size
    head: dict[str, Any]
    theirs: PodInfo
    signature: str
    count: int | None
    collapsed: bool
    pinned: bool
    recorded: bool
    locked: bool
    held: bool | None
    stale: bool
    guard: dict[str, Any] | None

    def left_open(self, others: bool) -> bool:
        """Whether it has a lock that means something. Another pod's record is not read."""
        return self.locked and (others or not self.stale)

    def untidy(self, others: bool) -> bool:
        """Whether there is something in it that nobody will finish, and that its own recorder removes."""
        idle = not self.left_open(others) and self.recorded
        mine = not others and (idle or (self.locked and self.held is False))
        return mine and self.tidied() != self.size

    def tidied(self) -> disk.Size:
        """What it takes without that: files that a child was writing, and those of one that was half collapsed."""
        if self.collapsed and self.size.total > self.size.top:
            return disk.Size(self.size.top, self.size.top, ())
        if self.size.partials:
            return disk.Size(self.size.total - self.size.partial, self.size.top, ())
        return self.size


def look(
    root: int, name: str, wall: float, check: Callable[[], None] = lambda: None, most: int = _MOST_LEFT_OPEN
) -> Seen:
    """The incident `name` in the folder opened as `root`. A record of more than `most` bytes is not taken up again.
    Raises `OSError` where it is no folder, or is gone, and what `check` raises, which is called at each file."""
    folder = os.open(name, FOLDER, dir_fd=root)
    try:
        size = disk.measure(root, name, check)
        head = head_of(folder)
        locked = disk.has(folder, LOCK)
        held = is_held(folder) if locked else False
        stale, guard = _left_open(folder, name, most) if locked and held is not True else (False, None)
        pinned = disk.has(folder, PINNED)
        recorded = disk.has(folder, RECORD)
    finally:
        os.close(folder)
    throttled, signature = head.get("throttled"), head.get("signature")
    return Seen(
        name, wall, size, head, pod_of(head), signature if isinstance(signature, str) else "",
        throttled.get("count") if isinstance(throttled, dict) else 0,
        head.get("collapsed") is True, pinned, recorded, locked, held, stale, guard,
    )  # fmt: skip


def kept_of(seen: Seen, ours: PodInfo) -> Kept:
    """The incident to the retention of the pod `ours`."""
    others = of_another_pod(seen.theirs, ours)
    sealed = not seen.left_open(others) and seen.recorded  # without either, its recorder has only just made it
    return Kept(
        seen.name, seen.size.total, seen.wall, sealed, seen.signature, full=seen.count == 0, collapsed=seen.collapsed,
        core=seen.size.top, others=others, protected=seen.pinned,
    )  # fmt: skip


def as_tidied(seen: Seen, ours: PodInfo) -> Seen:
    """The incident as it will be once a recorder of the pod `ours` has removed what is untidy in it."""
    return replace(seen, size=seen.tidied()) if seen.untidy(of_another_pod(seen.theirs, ours)) else seen


def to_take_up(seen: Seen, ours: PodInfo) -> dict[str, Any] | None:
    """The guard's Incident, where a recorder of the pod `ours` would take it up again."""
    if ours.uid and seen.theirs.uid and seen.theirs.uid != ours.uid:
        return None  # another pod's, or of a former one of our name: none of its processes is in our namespace
    return seen.guard


def wall_of(incident_id: str) -> float:
    """When an incident began, seconds since the epoch, by its id. Raises `ValueError` where that is no id of ours."""
    found = _ID.fullmatch(incident_id)
    if found is None or len(incident_id) > 128:
        raise ValueError("not an incident's id")
    year, month, day, hour, minute, second, milli = (int(group) for group in found.groups())
    # Days since the epoch in the Gregorian calendar, counted from March; `calendar` would import half the library.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return days * 86400 + hour * 3600 + minute * 60 + second + milli / 1000


def pod_of(head: dict[str, Any]) -> PodInfo:
    """The pod that a record names, with "" for what it does not say."""
    pod = head.get("pod")
    words = {key: value for key, value in pod.items() if isinstance(value, str)} if isinstance(pod, dict) else {}
    return PodInfo(words.get("namespace", ""), words.get("name", ""), words.get("uid", ""), words.get("node", ""))


def head_of(folder: int) -> dict[str, Any]:
    """The first keys of the record in an open incident folder, up to the first list that is not empty; {} if it cannot
    be read."""
    try:
        text = disk.read(folder, RECORD, _MOST_HEAD).decode("utf-8", "replace")
    except OSError:
        return {}
    head: dict[str, Any] = {}
    for line in text.split("\n")[1:]:
        try:
            head.update(json.loads("{" + line.strip().removesuffix(",") + "}"))
        except (ValueError, RecursionError):
            break
    return head


def record_of(folder: int, most: int = MOST_RECORD) -> dict[str, Any]:
    """The whole record. Raises `OSError`, or `ValueError` where it is no incident's record."""
    data = disk.read(folder, RECORD, most)
    if data.count(b",") + data.count(b"[") + data.count(b"{") > most // 32:
        raise ValueError("not an incident's record")  # a few MiB of empty lists would take a gigabyte of memory
    try:
        record = json.loads(data)
    except (RecursionError, MemoryError) as error:
        raise ValueError("not an incident's record") from error
    if not isinstance(record, dict) or not isinstance(record.get("artifacts", []), list):
        raise ValueError("not an incident's record")
    return record


def _left_open(folder: int, name: str, most: int) -> tuple[bool, dict[str, Any] | None]:
    """(is it sealed all the same, as what it can be taken up) of an incident with a lock that nobody holds."""
    try:
        record = record_of(folder, most)
        if record.get("sealed") is True:  # its recorder died between its last two steps
            return True, None
        if incident_from(record["guard"]).id != name:
            return False, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False, None  # nothing in it that could be taken up again
    return False, record["guard"]
