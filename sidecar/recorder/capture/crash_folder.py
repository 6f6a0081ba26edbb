"""What the engine itself wrote into its crash folder (SGLang's --crash-dump-folder): `crash_folder/<label>-<name>`.

These hold users' prompts, so they are taken only where somebody asked for them, and they are pickles, so nobody here
loads them. Of a folder that the engine owns only regular files are taken, those changed since the engine began, the
newest first, and no link is followed. A CUDA coredump in there is another collector's.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture import foreign
from sidecar.recorder.capture.base import MIB, Attempt, Piece, Scene, Target

KIND = "crash_file"
MOST = 256 * MIB
_MOST_OF_ONE = 64 * MIB
_MOST_FILES = 64
_MOST_NAMES = 4096
_DEEPEST = 3
_LIMIT = 20.0
_SERVER = "server"
_COREDUMP = "core.cuda."
_WARNING = "holds users' prompts: sensitive; a pickle, never load it"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_FolderOf = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True, slots=True, order=True)
class _Found:
    changed: float
    path: str
    size: int


def collect(_: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """Copy the files of all servers. Skipped where no server has such a folder."""
    servers = tuple(target for target in scene.targets if target.role == _SERVER)
    if not servers:
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail="the engine has no server process"),)
    from sidecar.engines.sglang import crash_folder  # here: before the fork, and only where somebody asks for it

    make = foreign.digest()
    return Attempt(
        work=lambda fd: _copy(fd, scene, servers, crash_folder, make),
        judge=lambda ended: foreign.pieces(KIND, ended),
        limit=min(_LIMIT, left),
    )


def _copy(fd: int, scene: Scene, servers: tuple[Target, ...], folder_of: _FolderOf, make: foreign.Digest) -> None:
    """Runs in the child."""
    room = min(MOST, scene.room)
    for server in servers:
        data = scene.proc.cmdline(server.identity.pid)
        path = folder_of([os.fsdecode(part) for part in data.rstrip(b"\0").split(b"\0")])
        if not path:
            foreign.report(fd, ArtifactStatus.SKIPPED, f"{server.label} has no --crash-dump-folder")
            continue
        try:
            top = _open(scene, server, path)
            found = _files(top, _began(server))
        except OSError as error:
            foreign.report(fd, ArtifactStatus.FAILED, f"its crash folder cannot be read: {foreign.name_of(error)}")
            continue
        if not found:
            foreign.report(fd, ArtifactStatus.SKIPPED, "nothing in the crash folder is newer than the engine")
        for file in found[:_MOST_FILES]:
            room -= _take(fd, scene, server, top, file, room, make)
        if len(found) > _MOST_FILES:
            foreign.report(fd, ArtifactStatus.SKIPPED, f"{len(found) - _MOST_FILES} older files were left")


def _take(fd: int, scene: Scene, server: Target, top: int, file: _Found, room: int, make: foreign.Digest) -> int:
    """Copy one file and report it; gives the bytes that it took."""
    most = min(_MOST_OF_ONE, room)
    try:
        if file.size > most:
            raise OSError(errno.EFBIG, "too large")
        source = _below(top, file.path)
        try:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            name = f"crash_folder/{server.label}-{_safe(file.path)}"
            written = foreign.keep(scene.folder, name, source, most, make)
        finally:
            os.close(source)
    except OSError as error:
        why = f"its {file.size} bytes are too many" if error.errno == errno.EFBIG else foreign.name_of(error)
        foreign.report(fd, ArtifactStatus.FAILED, f"{_safe(file.path)} was not copied: {why}")
        return 0
    foreign.report(fd, ArtifactStatus.CAPTURED, _WARNING, name, written)
    return written[0]


def _open(scene: Scene, server: Target, path: str) -> int:
    """A descriptor of the crash folder, below the server's root. Raises `OSError`."""
    pid = server.identity.pid
    root = foreign.root_of(scene.proc.root, pid)
    try:
        found = foreign.find(root, foreign.absolute(scene.proc.root, pid, path))
        try:
            return foreign.reopen(found, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(found)
    finally:
        os.close(root)


def _files(top: int, since: float) -> list[_Found]:
    """The regular files in a folder, a few levels deep, changed after `since` (epoch); the newest first."""
    found: list[_Found] = []
    todo = [("", 0)]
    names = 0
    while todo and names < _MOST_NAMES:
        prefix, depth = todo.pop()
        fd = _below(top, prefix.rstrip("/"), _FOLDER) if prefix else os.dup(top)
        try:
            for name in sorted(os.listdir(fd))[: _MOST_NAMES - names]:
                names += 1
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode) and depth < _DEEPEST:
                    todo.append((f"{prefix}{name}/", depth + 1))
                elif stat.S_ISREG(info.st_mode) and info.st_mtime >= since and not name.startswith(_COREDUMP):
                    found.append(_Found(info.st_mtime, prefix + name, info.st_size))
        except OSError:
            continue  # removed meanwhile
        finally:
            os.close(fd)
    return sorted(found, reverse=True)


def _below(top: int, path: str, flags: int = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK) -> int:
    """Open what a relative path names below `top`, through no link. Raises `OSError`."""
    folder = os.dup(top)
    *folders, last = path.split("/")
    for part in folders:
        try:
            inner = os.open(part, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    try:
        return os.open(last, flags, dir_fd=folder)
    finally:
        os.close(folder)


def _began(server: Target) -> float:
    """When a process began, seconds since the epoch; a second early, since the kernel counts in ticks."""
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - server.identity.start / os.sysconf("SC_CLK_TCK")
    return time.time() - ago - 1.0


def _safe(path: str) -> str:
    """The last part of a path as part of a file name of ours: short, and of harmless characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.replace("/", "-")[-100:])
