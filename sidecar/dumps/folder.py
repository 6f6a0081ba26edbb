"""Reading a dump folder, with no sidecar running.

`<folder>/<id>/incident.json` is a pod's own folder, `<folder>/<namespace>/<pod>/<id>/incident.json` a whole volume;
both may be mixed. What lies there was written by processes that were dying, or by somebody else: a record that is
broken, half-written, too large or not ours becomes an entry with `unreadable` saying why. Nothing is reached through
a symbolic link (every folder is opened from its parent with O_NOFOLLOW), so nothing outside the folder is read,
measured or removed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.dumps.names import above_and_id, is_name, wall_of
from sidecar.dumps.opening import FOLDER, down, is_link, lstat, opened, top
from sidecar.dumps.record import RECORD_LIMIT, load_record
from sidecar.policy.retention import PINNED

DEPTH_LIMIT = 16  # folders within an incident's folder


@dataclass(frozen=True, slots=True)
class Entry:
    """One incident's folder. `path` is relative to the dump folder. `wall` is the time in the id, seconds since the
    epoch. `bytes` and `files` are what the folder holds. `record` is incident.json as it stands, {} where it is
    unreadable. `pinned`: somebody wants it kept, whatever the limits say."""

    path: str
    wall: float
    bytes: int
    files: int
    record: dict[str, Any]
    unreadable: str = ""
    pinned: bool = False

    @property
    def id(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def sealed(self) -> bool:
        return self.record.get("sealed") is True


@dataclass(frozen=True, slots=True)
class Dump:
    """What a dump folder holds. `closed` are the folders in it that may not be looked into."""

    entries: tuple[Entry, ...]
    closed: tuple[str, ...]


Key = tuple[float, str]  # when an incident began, and its path: the order of every list


@dataclass(frozen=True, slots=True)
class Home:
    """An open folder that incidents lie in, a pod's or the dump folder itself; `above` is its path in parts. Only good
    until the next one is asked for."""

    fd: int
    above: tuple[str, ...]

    def incidents(self) -> list[Key]:
        """Those in it, in no order."""
        names = ((name, wall_of(name)) for name in os.listdir(self.fd))
        return [(wall, "/".join((*self.above, name))) for name, wall in names if wall is not None]


def read(folder: str) -> Dump:
    """Every incident in the dump folder, newest first. Raises `OSError` where the folder itself cannot be read."""
    closed: list[str] = []
    found = []
    with top(folder) as root:
        for home in homes(root, closed):
            found += [entry_in(home.fd, path.rsplit("/", 1)[-1], path, wall) for wall, path in home.incidents()]
    found.sort(key=lambda entry: (entry.wall, entry.path), reverse=True)
    return Dump(tuple(found), tuple(sorted(closed)))


def homes(fd: int, closed: list[str], above: tuple[str, ...] = ()) -> Iterator[Home]:
    """The dump folder opened as `fd`, and every pod's below it. Those that may not be looked into go into `closed`."""
    if len(above) in (0, 2):
        yield Home(fd, above)
    if len(above) == 2:
        return
    for name in os.listdir(fd):
        if not is_name(name):
            continue
        try:
            below = os.open(name, FOLDER, dir_fd=fd)
        except PermissionError:
            closed.append("/".join((*above, name)))
            continue
        except OSError:
            continue  # a file, a link, or gone: no namespace's and no pod's folder
        try:
            yield from homes(below, closed, (*above, name))
        except OSError:
            closed.append("/".join((*above, name)))  # gone meanwhile, or of a volume that fails in places
        finally:
            os.close(below)


def entry_at(root: int, path: str, limit: int = RECORD_LIMIT) -> Entry:
    """One incident of the dump folder opened as `root`. Raises `ValueError` where `path` can be none's, and
    `FileNotFoundError` where there is nothing there, or something that is reached through a link."""
    above, name = above_and_id(path)
    wall = wall_of(name)
    try:
        with down(root, above) as parent:
            if lstat(parent, name) is not None:
                return entry_in(parent, name, path, wall or 0.0, limit)
    except PermissionError:
        raise
    except OSError:
        pass
    raise FileNotFoundError(f"there is no incident {path}")


def entry_in(parent: int, name: str, path: str, wall: float, limit: int = RECORD_LIMIT) -> Entry:
    """The incident `name` in an open folder, whatever it is."""
    with opened(name, FOLDER, parent) as fd:
        if fd is None:
            why = "a symbolic link" if is_link(parent, name) else "no folder, or one that may not be read"
            return Entry(path, wall, 0, 0, {}, why)
        try:
            size, files = _measured(fd, DEPTH_LIMIT)
            pinned = lstat(fd, PINNED) is not None
            return Entry(path, wall, size, files, load_record(fd, name, limit), pinned=pinned)
        except ValueError as error:
            return Entry(path, wall, size, files, {}, str(error), pinned)
        except OSError as error:
            return Entry(path, wall, 0, 0, {}, f"it cannot be read: {error.strerror}")


def _measured(fd: int, depth: int) -> tuple[int, int]:
    """Bytes and number of the regular files below an open folder, links not followed."""
    size = files = 0
    for name in os.listdir(fd):
        info = lstat(fd, name)
        if info is None:
            continue  # gone meanwhile: the recorder replaces files while we look
        if stat.S_ISREG(info.st_mode):
            size, files = size + info.st_size, files + 1
        elif stat.S_ISDIR(info.st_mode) and depth > 0:
            with opened(name, FOLDER, fd) as below:
                if below is not None:
                    more, others = _measured(below, depth - 1)
                    size, files = size + more, files + others
    return size, files
