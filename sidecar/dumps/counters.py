"""The pods' counters on a volume, and the totals of pods whose folders are gone.

A pod's sidecar keeps its counts in `.counters-<uid>.json` in the pod's folder (`sidecar.web.counters` says how). When
a dead pod's folder is pruned, its counts are added to `.totals.json` at the top of the volume, so that a sum over the
volume never falls; `folded` names the files that are in there already, for as long as somebody may still see them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sidecar.dumps.folder import homes
from sidecar.dumps.names import REMOVING, is_name
from sidecar.dumps.opening import FOLDER, contents, lstat, opened

TOTALS = ".totals.json"
_TEMPORARY = ".totals.tmp"
_COUNTERS = re.compile(r"\.counters-[A-Za-z0-9_-]{1,64}\.json")
_SCHEMA = "rankguard.dev/totals/v1"
_POD_SCHEMA = "rankguard.dev/counters/v1"
_MOST_BYTES = 16 << 20
_MOST_SERIES = 50_000
_REMEMBERED = 30 * 86400.0  # seconds that a folded file is remembered
_MOST_COUNT = 2**53

# What is summed: the counter, and its labels' names beside the namespace.
SUMMED = {
    "rank_deaths": ("cause",),
    "incidents": ("reason",),
    "liveness_failures": ("probe",),
    "terminations": ("outcome",),
    "reap_timeouts": (),
    "records_lost": ("what",),
}

Series = tuple[str, str, tuple[str, ...]]  # namespace, counter, label values
Sums = dict[Series, int]


@dataclass(frozen=True, slots=True)
class Counted:
    """One pod's file. `key` tells it from every other life of a pod; `path` is where it lies."""

    path: str
    key: str
    sums: Sums


@dataclass(slots=True)
class Totals:
    """`folded`: the keys of the files whose counts are in `sums`, and when they came in, seconds since the epoch."""

    sums: Sums = field(default_factory=dict)
    folded: dict[str, float] = field(default_factory=dict)


def is_counters(name: str) -> bool:
    return _COUNTERS.fullmatch(name) is not None


def counted(root: int, broken: list[str]) -> Iterator[Counted]:
    """Every pod's counts on the volume opened as `root`; the paths of those that cannot be read go into `broken`."""
    for home in homes(root, []):
        yield from counted_in(home.fd, home.above, broken)
    # A pod's folder that is being removed still counts, under the pod's own name.
    for namespace in os.listdir(root):
        if not is_name(namespace):
            continue
        with opened(namespace, FOLDER, root) as fd:
            for name in [] if fd is None else os.listdir(fd):
                if fd is not None and name.startswith(REMOVING):
                    with opened(name, FOLDER, fd) as pod:
                        if pod is not None:
                            yield from counted_in(pod, (namespace, name.removeprefix(REMOVING)), broken)


def counted_in(fd: int, above: tuple[str, ...], broken: list[str]) -> Iterator[Counted]:
    """The counts in one pod's open folder; `above` is (namespace, pod), or () for a folder that is no volume's."""
    for name in os.listdir(fd):
        if not is_counters(name):
            continue
        path = "/".join((*above, name))
        info = lstat(fd, name)
        try:
            sums = _sums(json.loads(contents(fd, name, _MOST_BYTES)), above[0] if above else "")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
            broken.append(path)
            continue
        yield Counted(path, f"{path}@{int(info.st_mtime) if info else 0}", sums)


def read_totals(root: int) -> Totals:
    """What pruned folders had counted. Raises `ValueError` where the file is there and cannot be believed."""
    try:
        top = json.loads(contents(root, TOTALS, _MOST_BYTES))
        if top["schema"] != _SCHEMA:
            raise ValueError("another schema")
        sums = {}
        for namespace, counter, labels, value in top["counts"]:
            sums[_text(namespace), _text(counter), tuple(_text(label) for label in labels)] = _count(value)
        return Totals(sums, {_text(key): float(wall) for key, wall in top["folded"].items()})
    except FileNotFoundError:
        return Totals()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{TOTALS} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def fold(root: int, found: list[Counted]) -> None:
    """Add the counts of `found` to the totals, durably; those that are in there already are left. Raises `OSError` or
    `ValueError`."""
    totals = read_totals(root)
    now = time.time()
    fresh = [pod for pod in found if pod.key not in totals.folded]
    if not fresh:
        return
    for pod in fresh:
        add(totals.sums, pod.sums)
        totals.folded[pod.key] = now
    kept = {key: wall for key, wall in totals.folded.items() if abs(now - wall) < _REMEMBERED}
    rows = [[namespace, counter, labels, value] for (namespace, counter, labels), value in totals.sums.items()]
    data = json.dumps({"schema": _SCHEMA, "counts": rows, "folded": kept}, separators=(",", ":")).encode()
    _replace(root, data)


def add(sums: Sums, more: Sums) -> None:
    for series, value in more.items():
        if series in sums or len(sums) < _MOST_SERIES:
            sums[series] = min(sums.get(series, 0) + value, _MOST_COUNT)


def _sums(top: Any, namespace: str) -> Sums:
    if top["schema"] != _POD_SCHEMA:
        raise ValueError("another schema")
    sums: Sums = {}
    for counter, names in SUMMED.items():
        for labels, value in top["counters"].get(counter, ()):
            if len(labels) != len(names):
                raise ValueError("labels of another shape")
            add(sums, {(namespace, counter, tuple(_text(label) for label in labels)): _count(value)})
    return sums


def _replace(root: int, data: bytes) -> None:
    try:
        os.unlink(_TEMPORARY, dir_fd=root)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(_TEMPORARY, flags, 0o644, dir_fd=root), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(_TEMPORARY, TOTALS, src_dir_fd=root, dst_dir_fd=root)
    os.fsync(root)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 512:
        raise ValueError("a text was expected")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_COUNT:
        raise ValueError("a count is not a whole number of at least 0")
    return value
