"""Whose a folder of incidents is, and how much its sidecar keeps there: what it says of itself in its counters file
(`sidecar.keeping`), read as if an enemy had written it.

A living sidecar writes that file when it starts and once an hour.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.dumps.counters import is_counters
from sidecar.dumps.opening import contents, lstat
from sidecar.dumps.pods import LEAST_GONE
from sidecar.dumps.values import part, text
from sidecar.keeping import LIMITS
from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping

_MOST_BYTES = 1 << 20  # of one file; one of 1,000 ranks has 100 KiB
_MOST_FILES = 32  # of one folder, the newest; each life of a pod leaves one
_MOST_KEPT = 20_000
_LONGEST = 253  # characters of a pod's name in Kubernetes
_MOST = {"max_age": 10**10}  # seconds; what is due later than in 300 years could not be told as a date

_NEEDED = ("free_floor", "headroom")  # the others may be null: no such limit


@dataclass(frozen=True, slots=True)
class Owner:
    """`keeping` is None where the file does not say it: of an older version, or broken. `alive`: its sidecar wrote
    lately."""

    pod: PodInfo
    keeping: Keeping | None
    alive: bool


class Owners:
    """Reads and remembers; any thread may ask."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, int, int], tuple[PodInfo, Keeping | None]] = {}

    def of(self, folder: int) -> list[Owner]:
        """Those of the open folder, the one that wrote last first; of one pod's lives the last alone."""
        found: dict[tuple[str, str], Owner] = {}
        for written, name, key in _newest(folder):
            known = self._kept.get(key)
            if known is None:
                known = _read(folder, name)
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = known
            pod, keeping = known
            alive = time.time() - written < LEAST_GONE
            found.setdefault((pod.namespace, pod.name), Owner(pod, keeping, alive))
        return list(found.values())


def _newest(folder: int) -> list[tuple[float, str, tuple[int, int, int, int]]]:
    files = ((name, lstat(folder, name)) for name in os.listdir(folder) if is_counters(name))
    rows = [
        (info.st_mtime, name, (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size))
        for name, info in files
        if info is not None
    ]
    return sorted(rows, reverse=True)[:_MOST_FILES]


def _read(folder: int, name: str) -> tuple[PodInfo, Keeping | None]:
    try:
        top = json.loads(contents(folder, name, _MOST_BYTES))
        pod = part(top, "pod")
        words = [text(pod, key)[:_LONGEST] for key in ("namespace", "name", "uid")]
        return PodInfo(*words), Keeping(**dict(_limits(top["keeps"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        return PodInfo(), None


def _limits(keeps: Any) -> Iterator[tuple[str, Any]]:
    for name, field in LIMITS.items():
        value = keeps[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and field == "max_age")) and (value is not None or name in _NEEDED):
            raise ValueError(f"{name} is no limit")
        if value is not None and not 0 <= value < _MOST.get(field, 2**60):
            raise ValueError(f"{name} is out of bounds")
        yield field, value
