"""Reading a dump folder, with no sidecar running.

`<folder>/<id>/incident.json` is a pod's own folder, `<folder>/<namespace>/<pod>/<id>/incident.json` a whole volume;
both may be mixed. What lies there was written by processes that were dying, or by somebody else: a record that is
broken, half-written, too large or not ours becomes an entry with `unreadable` saying why. Nothing is reached through
a symbolic link (every folder is opened from its parent with O_NOFOLLOW), so nothing outside the folder is read,
measured or removed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sidecar.model import SCHEMA

RECORD = "incident.json"
RECORD_LIMIT = 16 << 20  # bytes; a record of 512 ranks takes about one MiB
_DEPTH_LIMIT = 16  # folders within an incident's folder

_ID = re.compile(r"(\d{8}T\d{6}\.\d{3})Z(?:-[A-Za-z0-9_.+-]{1,160})?")
# A Kubernetes namespace or pod name (RFC 1123).
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One incident's folder. `path` is relative to the dump folder. `wall` is the time in the id, seconds since the
    epoch. `bytes` and `files` are what the folder holds. `record` is incident.json as it stands, {} where it is
    unreadable."""

    path: str
    wall: float
    bytes: int
    files: int
    record: dict[str, Any]
    unreadable: str = ""

    @property
    def id(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def sealed(self) -> bool:
        return self.record.get("sealed") is True


def wall_of(name: str) -> float | None:
    """The time in an incident's id, or None where the name is no incident's id."""
    match = _ID.fullmatch(name)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Dump:
    """What a dump folder holds. `closed` are the folders in it that may not be looked into."""

    entries: tuple[Entry, ...]
    closed: tuple[str, ...]


def read(folder: str) -> Dump:
    """Every incident in the dump folder, newest first. Raises `OSError` where the folder itself cannot be read."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    closed: list[str] = []
    try:
        found = sorted(_entries(root, (), closed), key=lambda entry: (entry.wall, entry.path), reverse=True)
    finally:
        os.close(root)
    return Dump(tuple(found), tuple(sorted(closed)))


def remove(folder: str, path: str) -> None:
    """Remove one incident, `path` being an `Entry`'s. A symbolic link goes itself; what it points at stays.

    Raises `OSError` where something could not be removed, and `ValueError` where `path` names no incident.
    """
    *above, name = path.split("/")
    if wall_of(name) is None or len(above) not in (0, 2) or not all(_NAME.fullmatch(part) for part in above):
        raise ValueError(f"{path!r} is no incident's path")
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in above:
            below = os.open(part, _FOLDER, dir_fd=parent)
            os.close(parent)
            parent = below
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=parent)  # works by descriptors: a link put there meanwhile is not followed
        else:
            os.unlink(name, dir_fd=parent)
    finally:
        os.close(parent)


def _entries(fd: int, above: tuple[str, ...], closed: list[str]) -> Iterator[Entry]:
    """The incidents in an open folder, and at the top those of every namespace and pod below it."""
    for name in os.listdir(fd):
        path = "/".join((*above, name))
        wall = wall_of(name)
        if wall is not None and len(above) in (0, 2):
            yield _entry(fd, name, path, wall)
        elif len(above) < 2 and _NAME.fullmatch(name):
            try:
                below = os.open(name, _FOLDER, dir_fd=fd)
            except PermissionError:
                closed.append(path)
                continue
            except OSError:
                continue  # a file, a link, or gone: no namespace's and no pod's folder
            try:
                yield from _entries(below, (*above, name), closed)
            finally:
                os.close(below)


def _entry(parent: int, name: str, path: str, wall: float) -> Entry:
    with _opened(name, _FOLDER, parent) as fd:
        if fd is None:
            why = "a symbolic link" if _is_link(name, parent) else "no folder, or one that may not be read"
            return Entry(path, wall, 0, 0, {}, why)
        size, files = _measured(fd, _DEPTH_LIMIT)
        try:
            record = _record(fd, name)
        except ValueError as error:
            return Entry(path, wall, size, files, {}, str(error))
        return Entry(path, wall, size, files, record)


def _record(fd: int, name: str) -> dict[str, Any]:
    """The incident.json of an open incident folder. Raises `ValueError` with why it cannot be used."""
    with _opened(RECORD, _FILE, fd) as file:
        if file is None:
            missing = RECORD not in os.listdir(fd)
            raise ValueError(f"half-written: no {RECORD}" if missing else f"{RECORD} is a link or may not be read")
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{RECORD} is no regular file")
        if info.st_size > RECORD_LIMIT:
            raise ValueError(f"{RECORD} has {info.st_size} bytes, more than {RECORD_LIMIT}")
        try:
            with open(os.dup(file), "rb") as stream:
                text = stream.read(RECORD_LIMIT + 1)
            record = json.loads(text, parse_constant=_no_number)
        except OSError as error:
            raise ValueError(f"{RECORD} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{RECORD} is no JSON, or only a part of it") from error
    if not isinstance(record, dict):
        raise ValueError(f"{RECORD} is no record")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{RECORD} is not of schema {SCHEMA}")
    if record.get("id") != name:
        raise ValueError(f"{RECORD} is of another incident")
    for key in ("failures", "timeline", "artifacts"):
        value = record.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{RECORD} has no list of {key}")
    for key in ("pod", "decision", "termination"):
        if not isinstance(record.get(key) or {}, dict):
            raise ValueError(f"{RECORD} has something else as {key}")
    return record


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _measured(fd: int, depth: int) -> tuple[int, int]:
    """Bytes and number of the regular files below an open folder, links not followed."""
    size = files = 0
    for name in os.listdir(fd):
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile: the recorder replaces files while we look
        if stat.S_ISREG(info.st_mode):
            size, files = size + info.st_size, files + 1
        elif stat.S_ISDIR(info.st_mode) and depth > 0:
            with _opened(name, _FOLDER, fd) as below:
                if below is not None:
                    more, others = _measured(below, depth - 1)
                    size, files = size + more, files + others
    return size, files


@contextmanager
def _opened(name: str, flags: int, parent: int) -> Iterator[int | None]:
    """A descriptor, closed afterwards, or None where it cannot be opened that way."""
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _is_link(name: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


# ---- reading a record's values, whatever they are


def text(data: dict[str, Any], key: str) -> str:
    """The value as words, "" where there is none."""
    value = data.get(key)
    if isinstance(value, str):
        return value
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def number(data: dict[str, Any], key: str) -> float:
    """The value as a number, 0 where it is none."""
    value = data.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63 and math.isfinite(value):
        return value
    return 0


def part(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def parts(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = data.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def seconds_of(data: dict[str, Any], key: str) -> float | None:
    """A moment as seconds since the epoch, from RFC 3339 or from a number; None where it is neither."""
    value = data.get(key)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return number(data, key) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def first_failure(record: dict[str, Any]) -> dict[str, Any]:
    """The failure marked as first, else the first one, else {}."""
    failures = parts(record, "failures")
    return next((f for f in failures if f.get("first") is True), failures[0] if failures else {})
