"""The dump folder: one folder an incident, written in place; `incident.json` replaced atomically.

Every call may block for as long as the volume likes, so all of them are made on the writer's thread. Errors are plain
`OSError`s: what they lose is for the caller to decide and to say. Nothing here follows a symbolic link below the dump
folder, and no name is used that is not of the shape expected of it.

`<id>/.lock` is held with flock(2) by the recorder that writes, and removed at sealing. So a folder with a `.lock` that
nobody holds is an incident left open; one whose lock is held has a recorder still at it, perhaps one that hangs.
`.reserve` is a file that gives its room to `incident.json` when the volume is full.

What is small is written as long as the volume takes it, though below the free-space floor only a few MiB of it. What
is large is written where there is room: within the quota, above the floor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping, Kept, limits_for, marked, of_another_pod, plan, room_for
from sidecar.recorder import files
from sidecar.recorder.prune import FULL, carry_out, replace_record
from sidecar.recorder.survey import LOCK, MOST_RECORD, Survey, head_of, pod_of, record_of, survey, wall_of

__all__ = ["FULL", "SMALL", "Found", "Store", "Survey", "Written", "wall_of"]

SMALL = 1 << 20  # bytes; a file that has no more is small
_BELOW_FLOOR = 4 << 20  # bytes of small files that one incident may write below the free-space floor
_SEALING = 1 << 20  # bytes wanted for the last record where the volume is full
_RESERVE = ".reserve"
_RESERVE_BYTES = 64 * 1024

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier life left in the folder. `unlisted`: files that its record does not name: path, bytes, sha256."""

    record: dict[str, Any]
    unlisted: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Written:
    bytes: int
    sha256: str


class Store:
    """One dump folder, and the one incident in it that this recorder writes.

    `room` is how many bytes large files may still take, by the last look; 0 until there was one. Any thread may read
    it. `full_per_hour`: how many incidents an hour are captured in full, None for all.
    """

    def __init__(
        self,
        root: str,
        max_count: int | None,
        max_bytes: int | None,
        *,
        max_age: float | None = None,
        volume_limit: int | None = None,
        free_floor: int = 0,
        headroom: int = 0,
        full_per_hour: int | None = None,
        pod: PodInfo | None = None,
    ) -> None:
        """None means no limit. `volume_limit`: the volume's own, of which a share is used. `headroom`: bytes that
        should be free for large files before there is an incident; repeats are collapsed for it. `pod` is ours."""
        self.room = 0
        self.full_per_hour = full_per_hour
        self._root = root
        self._keeping = Keeping(max_count, max_bytes, max_age, volume_limit, free_floor, headroom)
        self._pod = pod or PodInfo()
        self._around: tuple[int, int] | None = None  # bytes without our incident: in all incidents, in the folder
        self._below_floor = 0
        self._id = ""
        self._root_fd = -1
        self._folder = -1
        self._lock = -1

    # -- the whole volume -----------------------------------------------------------------------------------------

    def survey(self, hurried: Callable[[], bool] = lambda: False) -> Survey | None:
        """Look at every incident; None if `hurried` said so on the way: an incident must not wait for this."""
        root = self._open_root()
        try:
            found = survey(root, self._pod, hurried)
            if found is not None:
                self._keep_reserve(root)
                own = sum(kept.bytes for kept in found.kept if kept.id == self._id)
                self._around = found.incident_bytes - own, found.dump_bytes - own
                self._look_for_room(root)
            return found
        finally:
            os.close(root)

    def prune(self, wanted: int = 0, hurried: Callable[[], bool] = lambda: False) -> list[str]:
        """Bring the folder within its limits, and make room for `wanted` bytes if collapsing repeats can; never touches
        the incident being written. Gives the ids that were removed. Raises `OSError` when all else was tried."""
        found = self.survey(hurried)
        if found is None:
            return []
        now = time.time()
        other = found.dump_bytes - found.incident_bytes
        limits = limits_for(self._keeping, found.incident_bytes, other, found.free_bytes, now, wanted)
        steps = plan(self._marked(found, now), limits)
        if not steps:
            return []
        root = self._open_root()
        try:
            return carry_out(root, steps, hurried)
        finally:
            os.close(root)

    def tidy(self, hurried: Callable[[], bool] = lambda: False) -> Survey | None:
        """Retention, with headroom for what comes next; gives what there is then."""
        self.prune(self._keeping.headroom, hurried)
        return self.survey(hurried)

    def make_room(self) -> Survey | None:
        """Before the first large file of an incident; also looks how much room there is. Gives what there is then."""
        return self.tidy()

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
        self._look_for_room(self._root_fd)
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
            replace_record(self._folder, data, durable)
        except OSError as error:
            if error.errno not in FULL or not self._give_reserve():
                raise
            replace_record(self._folder, data, durable)
        self._look_for_room(self._root_fd)

    def write_artifact(self, path: str, data: bytes) -> Written:
        """Write one file of the incident, `kind/label.ext`. What cannot be written whole is not left behind.

        Raises EDQUOT where our own limits leave no room for it.
        """
        folder, name = self._parent(path)
        try:
            self._claim(len(data))
            files.unlink(folder, name + files.PARTIAL)
            files.create(folder, name + files.PARTIAL, data, durable=False)
            os.rename(name + files.PARTIAL, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
        return Written(len(data), files.sha256(data))

    def read_artifact(self, path: str, most: int) -> bytes:
        """Read one file of the incident back. Raises `ValueError` where it has more than `most` bytes."""
        folder, name = self._parent(path)
        try:
            data = files.read(folder, name, most + 1)
        finally:
            os.close(folder)
        if len(data) > most:
            raise ValueError(f"{path} has more than {most} bytes")
        return data

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
        """Write the final record, durably, and let go of the lock. On a full volume older incidents give way first."""
        try:
            self.write_record(data, durable=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.prune(_SEALING)
            self.write_record(data, durable=True)
        files.unlink(self._folder, LOCK)
        os.fsync(self._folder)

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
        if not fresh and of_another_pod(pod_of(head_of(self._folder)), self._pod):
            raise OSError(errno.EEXIST, "an incident of another pod has this id")
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
        self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
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
            record = record_of(self._folder)
        except (OSError, ValueError):
            record = {}
        listed = {str(artifact.get("path")) for artifact in record.get("artifacts", ()) if isinstance(artifact, dict)}
        unlisted = []
        for kind in sorted(os.listdir(self._folder)):
            if not _PART.fullmatch(kind) or not files.is_folder(self._folder, kind):
                continue
            for name in sorted(files.names(self._folder, kind)):
                path = f"{kind}/{name}"
                if path not in listed and _PART.fullmatch(name) and not name.endswith(files.PARTIAL):
                    unlisted.append((path, *files.digest(self._folder, path, MOST_RECORD)))
        return Found(record, tuple(unlisted))

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

    # -- room ---------------------------------------------------------------------------------------------------------

    def _marked(self, found: Survey, now: float) -> list[Kept]:
        """While there is one of ours, what an earlier life left open is nobody's to take up."""
        unfinished = () if self._id else (incident["id"] for incident in found.unfinished)
        fixed = {self._id, *found.held, *unfinished}
        return marked(found.kept, fixed, self._keeping.max_age, now, newest_too=not self._id)

    def _look_for_room(self, root: int) -> None:
        """What is left for large files, now. On any error none: they are not worth one."""
        try:
            volume = os.fstatvfs(root)
            own = files.allocated(root, self._id) if self._id else 0
        except OSError:
            self.room = 0
            return
        if self._around is None:
            self.room = 0
            return
        incidents, folder = self._around
        free = volume.f_bavail * volume.f_frsize
        self.room = room_for(self._keeping, incidents + own, folder - incidents, free)

    def _claim(self, size: int) -> None:
        """Raises EDQUOT where a file of `size` bytes is not to be written."""
        if size > SMALL:
            self._look_for_room(self._root_fd)
            if size > self.room:
                raise OSError(errno.EDQUOT, "it does not fit within --dump-max-bytes and --dump-free-floor")
            return
        volume = os.fstatvfs(self._folder)
        left = volume.f_bavail * volume.f_frsize - size
        if left < _RESERVE_BYTES:  # which the reserve may have been given for: without its record evidence is nothing
            raise OSError(errno.EDQUOT, "the last room on the volume is kept for the record")
        if left >= self._keeping.free_floor:
            return
        if self._below_floor + size > _BELOW_FLOOR:
            raise OSError(errno.EDQUOT, "the volume is down to --dump-free-floor")
        self._below_floor += size

    def _keep_reserve(self, root: int) -> None:
        room = os.fstatvfs(root)
        if files.has(root, _RESERVE) or room.f_bavail * room.f_frsize < 4 * _RESERVE_BYTES:
            return
        try:
            # Random, since a file system that compresses would keep no room for zeros.
            files.create(root, _RESERVE, os.urandom(_RESERVE_BYTES), durable=False)
        except OSError:
            pass  # a read-only volume, or another recorder was faster
