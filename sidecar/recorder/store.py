"""The dump folder: one folder an incident, written in place; `incident.json` replaced atomically.

Every call may block for as long as the volume likes, so all of them are made on the writer's thread. Errors are plain
`OSError`s: what they lose is for the caller to decide and to say. Nothing here follows a symbolic link below the dump
folder, and no name is used that is not of the shape expected of it.

`<id>/.lock` is held with flock(2) by the recorder that writes, and removed at sealing. So a folder with a `.lock` that
nobody holds is an incident left open; one whose lock is held has a recorder still at it, perhaps one that hangs.
`.reserve` is a file that gives its room to `incident.json` when the volume is full.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sidecar.model import incident_from
from sidecar.policy.retention import Kept, Limits, choose
from sidecar.recorder import files

RECORD = "incident.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK = ".lock"
_RESERVE = ".reserve"
_RESERVE_BYTES = 64 * 1024
_REMOVING = ".removing-"
_TEMPORARY = ".incident.json.new"
_MOST_RECORD = 64 << 20

_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z-[a-z0-9]+(?:[-_.][A-Za-z0-9_.]+)*")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Survey:
    """What is on the volume. Bytes are those allocated, as a quota and an eviction count them.

    `unfinished`: the guard's Incidents of those left open, as plain dicts. `held`: the ids that a live recorder writes.
    """

    dump_bytes: int
    free_bytes: int
    kept: tuple[Kept, ...]
    unfinished: tuple[dict[str, Any], ...]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier life left in the folder. `unlisted`: files that its record does not name: path, bytes, sha256."""

    record: dict[str, Any]
    unlisted: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Written:
    bytes: int
    sha256: str


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


class Store:
    """One dump folder, and the one incident in it that this recorder writes."""

    def __init__(self, root: str, max_count: int | None, max_bytes: int | None) -> None:
        self._root = root
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._id = ""
        self._root_fd = -1
        self._folder = -1
        self._lock = -1

    # -- the whole volume -----------------------------------------------------------------------------------------

    def survey(self, hurried: Callable[[], bool] = lambda: False) -> Survey | None:
        """Look at every incident; None if `hurried` said so on the way: an incident must not wait for this."""
        root = self._open_root()
        try:
            total = 0
            kept, unfinished, held = [], [], set()
            for name in sorted(os.listdir(root)):
                if hurried():
                    return None
                if name.startswith(_REMOVING):
                    files.remove_tree(root, name)
                    continue
                size = files.allocated(root, name)
                total += size
                try:
                    wall = wall_of(name)
                    folder = os.open(name, files.FOLDER, dir_fd=root)
                except (ValueError, OSError):  # something else, or removed meanwhile
                    continue
                try:
                    state = _look(folder)
                finally:
                    os.close(folder)
                if state.held:
                    held.add(name)
                if state.guard is not None:
                    unfinished.append(state.guard)
                kept.append(Kept(name, size, wall, state.sealed))
            self._keep_reserve(root)
            room = os.fstatvfs(root)
            return Survey(total, room.f_bavail * room.f_frsize, tuple(kept), tuple(unfinished), frozenset(held))
        finally:
            os.close(root)

    def prune(self) -> list[str]:
        """Remove what is over the limits, oldest first, and never the incident being written. Gives the ids."""
        survey = self.survey()
        if survey is None:
            return []
        limits = Limits(self._max_count, self._max_bytes, None, time.time())
        root = self._open_root()
        removed = []
        try:
            for name in choose(survey.kept, limits):
                if name == self._id or name in survey.held:
                    continue
                # Half an incident must never look like a whole one: away by one rename, then piece by piece.
                os.rename(name, _REMOVING + name, src_dir_fd=root, dst_dir_fd=root)
                files.remove_tree(root, _REMOVING + name)
                removed.append(name)
        finally:
            os.close(root)
        return removed

    # -- the incident -----------------------------------------------------------------------------------------------

    def open(self, incident_id: str, opening: bytes) -> Found | None:
        """Make the incident's folder and write the opening record, durably; gives None.

        Where the folder is there already, nothing is written, and what is in it is given. Raises `OSError`, and
        `ValueError` where the id is of no good shape.
        """
        wall_of(incident_id)
        self.close()
        self._id = incident_id
        self._root_fd = self._open_root()
        try:
            fresh = self._open_folder()
        except OSError as error:
            if error.errno not in FULL or not self._give_reserve():
                raise
            fresh = self._open_folder()
        if not fresh:
            found = self._found()
            if found.record or found.unlisted:
                return found
        self.write_record(opening, durable=True)
        os.fsync(self._root_fd)
        return None

    def write_record(self, data: bytes, durable: bool = False) -> None:
        """Replace `incident.json`. On a full volume the reserve goes first."""
        try:
            self._replace_record(data, durable)
        except OSError as error:
            if error.errno not in FULL or not self._give_reserve():
                raise
            self._replace_record(data, durable)

    def write_artifact(self, path: str, data: bytes) -> Written:
        """Write one file of the incident, `kind/label.ext`. What cannot be written whole is not left behind."""
        folder, name = self._parent(path)
        try:
            files.unlink(folder, name)
            files.create(folder, name, data, durable=False)
        finally:
            os.close(folder)
        return Written(len(data), files.sha256(data))

    def sync(self, paths: Iterable[str]) -> list[tuple[str, OSError]]:
        """Make the files durable. Gives those that are not there any more, or that the volume has lost."""
        lost: list[tuple[str, OSError]] = []
        parents = set()
        for path in paths:
            folder, name = self._parent(path)
            try:
                files.sync(folder, name)
                if path.rpartition("/")[0] not in parents:
                    parents.add(path.rpartition("/")[0])
                    os.fsync(folder)
            except OSError as error:
                lost.append((path, error))
            finally:
                os.close(folder)
        return lost

    def seal(self, data: bytes) -> None:
        """Write the final record, durably, and let go of the lock. On a full volume the oldest incidents go first."""
        try:
            self.write_record(data, durable=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.prune()
            self.write_record(data, durable=True)
        files.unlink(self._folder, _LOCK)
        os.fsync(self._folder)

    def tidy(self) -> Survey | None:
        """Retention, after sealing; gives what there is then."""
        self.prune()
        return self.survey()

    def close(self) -> None:
        """Let go of the incident's folder; `open` takes it up again."""
        for fd in (self._lock, self._folder, self._root_fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self._folder = self._root_fd = -1

    def _open_root(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(self._root, flags)
        except FileNotFoundError:
            os.makedirs(self._root, 0o700, exist_ok=True)
            return os.open(self._root, flags)

    def _open_folder(self) -> bool:
        """Open the incident's folder and take its lock. True if it was not there before."""
        try:
            os.mkdir(self._id, 0o700, dir_fd=self._root_fd)
            fresh = True
        except FileExistsError:
            fresh = False
        self._folder = os.open(self._id, files.FOLDER, dir_fd=self._root_fd)
        self._take_lock()
        return fresh

    def _give_reserve(self) -> bool:
        """Give the reserve's room back to the volume. False where it is gone already."""
        try:
            os.unlink(_RESERVE, dir_fd=self._root_fd)
        except FileNotFoundError:
            return False
        return True

    def _take_lock(self) -> None:
        """Hold `.lock`. A survey holds it for a moment, a recorder that hangs for ever: after that we go on without."""
        self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        for _ in range(10):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.003)
            except OSError:  # no locks on this file system: two recorders then tell each other apart by nothing
                return
            else:
                return

    def _found(self) -> Found:
        try:
            record = _read_record(self._folder)
        except (OSError, ValueError):
            record = {}
        listed = {str(artifact.get("path")) for artifact in record.get("artifacts", ())}
        unlisted = []
        for kind in sorted(os.listdir(self._folder)):
            if not _PART.fullmatch(kind) or not stat.S_ISDIR(files.lstat(self._folder, kind).st_mode):
                continue
            for name in sorted(files.names(self._folder, kind)):
                path = f"{kind}/{name}"
                if path not in listed and _PART.fullmatch(name):
                    data = files.read(self._folder, path, _MOST_RECORD)
                    unlisted.append((path, len(data), files.sha256(data)))
        return Found(record, tuple(unlisted))

    def _replace_record(self, data: bytes, durable: bool) -> None:
        files.unlink(self._folder, _TEMPORARY)
        files.create(self._folder, _TEMPORARY, data, durable)
        os.rename(_TEMPORARY, RECORD, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if durable:
            os.fsync(self._folder)

    def _parent(self, path: str) -> tuple[int, str]:
        """(descriptor of the folder that a path of the incident is in, its last part); the folder is made if absent."""
        parts = path.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise ValueError(f"not an artifact's path: {path!r}")
        folder = os.dup(self._folder)
        for part in parts[:-1]:
            try:
                try:
                    os.mkdir(part, 0o700, dir_fd=folder)
                except FileExistsError:
                    pass
                inner = os.open(part, files.FOLDER, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder, parts[-1]

    def _keep_reserve(self, root: int) -> None:
        room = os.fstatvfs(root)
        if files.has(root, _RESERVE) or room.f_bavail * room.f_frsize < 4 * _RESERVE_BYTES:
            return
        try:
            # Random, since a file system that compresses would keep no room for zeros.
            files.create(root, _RESERVE, os.urandom(_RESERVE_BYTES), durable=False)
        except OSError:
            pass  # a read-only volume, or another recorder was faster


@dataclass(frozen=True, slots=True)
class _State:
    sealed: bool
    held: bool = False
    guard: dict[str, Any] | None = None


def _look(folder: int) -> _State:
    """Whether an incident is sealed, being written, or left open (and then, if it can be taken up, as what)."""
    if not files.has(folder, _LOCK):
        return _State(sealed=True)
    if _is_held(folder):
        return _State(sealed=False, held=True)
    try:
        record = _read_record(folder)
        if record.get("sealed") is True:  # its recorder died between its last two steps
            os.unlink(_LOCK, dir_fd=folder)
            return _State(sealed=True)
        incident_from(record["guard"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _State(sealed=False)  # nothing in it that could be taken up again
    return _State(sealed=False, guard=record["guard"])


def _is_held(folder: int) -> bool:
    """Whether a live process holds the incident's lock."""
    try:
        fd = os.open(_LOCK, files.READ, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _read_record(folder: int) -> dict[str, Any]:
    """Raises `OSError`, or `ValueError` where it is no incident's record."""
    record = json.loads(files.read(folder, RECORD, _MOST_RECORD))
    if not isinstance(record, dict) or not isinstance(record.get("artifacts", []), list):
        raise ValueError("not an incident's record")
    return record
