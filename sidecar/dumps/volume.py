"""The state of a volume: what is used and free, by pod, and what each pod's retention drops next.

A look takes a bounded time: what was read once is kept as long as a `stat` says the same, so a look that was not
finished (`complete` false) goes further when it is made again. What a pod's retention would do is asked of
`sidecar.policy` with what its sidecar said of itself; where that is not known, or nobody lives who would do it,
nothing is foretold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sidecar.dumps import disk
from sidecar.dumps.catalog import Catalog, Stamp, stamped
from sidecar.dumps.folder import Home, homes
from sidecar.dumps.kept import Seen, as_tidied, kept_of, look, to_take_up, wall_of
from sidecar.dumps.opening import lstat, top
from sidecar.dumps.owners import Owner, Owners
from sidecar.dumps.query import place_of
from sidecar.dumps.record import RECORD_LIMIT
from sidecar.model import PodInfo
from sidecar.policy.outlook import outlook
from sidecar.policy.retention import Keeping, of_another_pod, quota
from sidecar.system.clock import stamp

BUDGET = 1.0  # seconds that one look may take to read; then it says how far it came
MOST_PODS = 2_000
MOST_NEXT = 20  # steps of one pod
_MOST_KEPT = 50_000  # incidents, half a KiB each
_LONGEST = 256  # characters of a word that is kept; none of ours is longer

Pod = tuple[str, str]  # namespace and name, "" where they are not known


class _TimeIsUp(Exception):
    pass


@dataclass(slots=True)
class _Share:
    """What one pod has of the volume."""

    incidents: int = 0
    unreadable: int = 0
    pinned: int = 0
    bytes: int = 0
    newest: float = 0.0
    owner: Owner | None = None
    limits: dict[str, Any] | None = None
    next: list[dict[str, Any]] = field(default_factory=list)


class Volume:
    """`own` is the pod whose folder it is and what it keeps, where that is known beforehand; `record_limit` the bytes
    that a record may have. Any thread may look."""

    def __init__(
        self,
        folder: str,
        catalog: Catalog,
        own: tuple[PodInfo, Keeping] | None = None,
        record_limit: int = RECORD_LIMIT,
    ) -> None:
        self._folder = folder
        self._record_limit = record_limit
        self._catalog = catalog
        self._own = [] if own is None else [Owner(*own, alive=True)]
        self._owners = Owners()
        self._seen: dict[str, tuple[Stamp, Seen]] = {}

    def look(self, budget: float = BUDGET, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
        """The state as JSON values. Raises `OSError` where the dump folder itself cannot be read."""
        end = clock() + budget

        def check() -> None:
            if clock() > end:
                raise _TimeIsUp

        shares: dict[Pod, _Share] = {}
        closed: list[str] = []
        complete = True
        with top(self._folder) as root:
            room = os.fstatvfs(root)
            free = room.f_bavail * room.f_frsize
            there: set[str] = set()
            try:
                for home in homes(root, closed):
                    self._look_at(home, shares, there, free, check)
            except _TimeIsUp:
                complete = False
        if complete:
            for path in [path for path in list(self._seen) if path not in there]:
                self._seen.pop(path, None)
        rows = sorted(shares.items(), key=lambda row: (-row[1].bytes, row[0]))
        return {
            "at": stamp(time.time()),
            "folder": self._folder,
            "size_bytes": room.f_blocks * room.f_frsize,
            "used_bytes": (room.f_blocks - room.f_bfree) * room.f_frsize,
            "free_bytes": free,
            "bytes": sum(share.bytes for share in shares.values()),
            "incidents": sum(share.incidents for share in shares.values()),
            "unreadable": sum(share.unreadable for share in shares.values()),
            "pinned": sum(share.pinned for share in shares.values()),
            "pods": [_row(*pod, share) for pod, share in rows[:MOST_PODS]],
            "pods_left_out": max(0, len(rows) - MOST_PODS),
            "closed": sorted(closed),
            "complete": complete,
        }

    def _look_at(
        self, home: Home, shares: dict[Pod, _Share], there: set[str], free: int, check: Callable[[], None]
    ) -> None:
        owners = self._own if self._own and not home.above else self._owners.of(home.fd)
        known = [owner for owner in owners if owner.keeping is not None]
        if home.above:
            known = known[:1]
        for owner in known or (owners[:1] if home.above else ()):  # one of an older version lives, whatever it keeps
            shares.setdefault(_place(home, owner.pod), _Share()).owner = owner
        found = []
        for wall, path in self._catalog.incidents(home):
            check()
            there.add(path)
            info = lstat(home.fd, path.rpartition("/")[2])
            row = None if info is None else self._catalog.row(home.fd, path, info)
            if info is None or row is None:
                continue  # gone meanwhile
            seen = self._seen_at(home.fd, path, info, check)
            share = shares.setdefault(_owner_of(home, seen, place_of(row), known), _Share())
            share.incidents += 1
            share.unreadable += bool(row["unreadable"])
            share.pinned += bool(row["pinned"])
            share.newest = max(share.newest, wall)
            if seen is not None:
                share.bytes += seen.size.total
                found.append(seen)
        for owner in known:
            self._foretell(home, owner, shares[_place(home, owner.pod)], found, free, check)

    def _seen_at(self, parent: int, path: str, info: os.stat_result, check: Callable[[], None]) -> Seen | None:
        """None where it is nothing that retention looks at: a link, a file, a name that no recorder gives."""
        name = path.rpartition("/")[2]
        state, settled = stamped(info)
        kept = self._seen.get(path)
        if kept is not None and kept[0] == state:
            return kept[1]
        try:
            seen = _slim(look(parent, name, wall_of(name), check, self._record_limit))
        except (OSError, ValueError):
            return None
        if settled and not seen.locked and len(self._seen) < _MOST_KEPT:
            self._seen[path] = state, seen
        return seen

    def _foretell(
        self, home: Home, owner: Owner, share: _Share, found: list[Seen], free: int, check: Callable[[], None]
    ) -> None:
        keeping, pod = owner.keeping, owner.pod
        if keeping is None:
            return
        ours = {seen.name for seen in found}
        # What else lies there counts only where the volume itself has a limit.
        others = 0 if keeping.volume_limit is None else _others(home, ours, check)
        share.limits = {
            "max_incidents": keeping.max_count,
            "max_bytes": quota(keeping.max_bytes, keeping.volume_limit, others),
            "max_age_seconds": keeping.max_age,
        }
        if not owner.alive:
            return
        kept = [kept_of(as_tidied(seen, pod), pod) for seen in found]
        open_ids = {
            seen.name
            for seen in found
            if seen.held or (not of_another_pod(seen.theirs, pod) and to_take_up(seen, pod) is not None)
        }
        share.next = [
            {
                "path": "/".join((*home.above, step.id)),
                "action": "collapse" if step.collapse else "remove",
                "why": step.why,
                "bytes": step.bytes,
                "at": None if step.at is None else stamp(step.at),
            }
            for step in outlook(kept, open_ids, keeping, others, free, time.time(), MOST_NEXT)
        ]


def _slim(seen: Seen) -> Seen:
    """What is asked of it here, of bounded size whatever its record says."""
    pod = seen.theirs
    return replace(
        seen,
        head={},
        theirs=PodInfo(pod.namespace[:_LONGEST], pod.name[:_LONGEST], pod.uid[:_LONGEST], ""),
        signature=seen.signature[:_LONGEST],
        count=seen.count if type(seen.count) is int else None,
        size=replace(seen.size, partials=seen.size.partials[:1]),
    )


def _place(home: Home, pod: PodInfo) -> Pod:
    return (home.above[0], home.above[1]) if home.above else (pod.namespace, pod.name)


def _owner_of(home: Home, seen: Seen | None, place: Pod, known: Iterable[Owner]) -> Pod:
    """A folder of one pod is that pod's, whoever had its name before; in one that several share, the record says it."""
    pods = [owner.pod for owner in known]
    if not home.above and len(pods) == 1 and not (seen and of_another_pod(seen.theirs, pods[0])):
        return _place(home, pods[0])
    return place


def _others(home: Home, incidents: set[str], check: Callable[[], None]) -> int:
    return sum(disk.allocated(home.fd, name, 0, check) for name in os.listdir(home.fd) if name not in incidents)


def _row(namespace: str, pod: str, share: _Share) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "pod": pod,
        "incidents": share.incidents,
        "unreadable": share.unreadable,
        "pinned": share.pinned,
        "bytes": share.bytes,
        "newest": stamp(share.newest) if share.incidents else None,
        "alive": None if share.owner is None else share.owner.alive,
        "limits": share.limits,
        "next": share.next,
    }
