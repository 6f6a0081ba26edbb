"""One look at a whole volume, for its metrics: made on a thread, since it may take long or hang."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field

from sidecar.dumps.catalog import Catalog
from sidecar.dumps.counters import Sums, counted, read_totals
from sidecar.dumps.names import wall_of
from sidecar.dumps.opening import top
from sidecar.dumps.query import place_of
from sidecar.dumps.values import text
from sidecar.model import Reason
from sidecar.view.sums import VolumeSums

_REASONS = frozenset(reason.value for reason in Reason)
_MOST_NAMESPACES = 2_000  # told apart; more are told as one
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Survey:
    """`incidents` by (namespace, reason); `bytes`, `pods` and `newest` by namespace. `at` is when the look was over,
    seconds since the epoch, `seconds` how long it took. `broken` counters files could not be read."""

    at: float
    seconds: float
    incidents: dict[tuple[str, str], int]
    unreadable: dict[str, int]
    pinned: int
    bytes: dict[str, int]
    pods: dict[str, int]
    newest: dict[str, float]
    free_bytes: int
    size_bytes: int
    broken: int
    sums: Sums = field(default_factory=dict)


def survey(catalog: Catalog, folder: str, sums: VolumeSums) -> Survey:
    """Raises `OSError` where the dump folder cannot be read."""
    began = time.monotonic()
    incidents: Counter[tuple[str, str]] = Counter()
    unreadable: Counter[str] = Counter()
    size: Counter[str] = Counter()
    pods: dict[str, set[str]] = {}
    newest: dict[str, float] = {}
    pinned = 0
    known: set[str] = set()
    for row in catalog.rows():
        namespace, pod = place_of(row)
        known.add(namespace)
        if len(known) > _MOST_NAMESPACES:
            known.discard(namespace)
            namespace = OTHER
        reason = text(row, "reason")
        if row["unreadable"]:
            unreadable[namespace] += 1
        else:
            incidents[namespace, reason if reason in _REASONS else OTHER] += 1
        size[namespace] += int(row["bytes"])
        pods.setdefault(namespace, set()).add(pod)
        newest.setdefault(namespace, wall_of(str(row["id"])) or 0.0)
        pinned += bool(row["pinned"])
    broken: list[str] = []
    with top(folder) as root:
        # Files first, totals after: what was pruned between the two is then in one of them.
        found = list(counted(root, broken))
        try:
            totals = read_totals(root)
        except ValueError:
            totals = None
            broken.append("")
        room = os.fstatvfs(root)
    return Survey(
        at=time.time(), seconds=time.monotonic() - began, incidents=dict(incidents), unreadable=dict(unreadable),
        pinned=pinned, bytes=dict(size), pods={name: len(there) for name, there in pods.items()}, newest=newest,
        free_bytes=room.f_bavail * room.f_frsize, size_bytes=room.f_blocks * room.f_frsize, broken=len(broken),
        sums=sums.take(found, totals),
    )  # fmt: skip
