"""Files of a target: reached below its own root, and copied into the incident's folder by the child that found them.

A target's file system is hostile ground. A symbolic link in it means what it means to the target, so links are followed
here by hand, below its root; what a name led to is then used by its descriptor and never by the name again.

All of this runs in forked children (see `recorder.children`): nothing here imports, and what is found is reported as
one line of JSON.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from typing import Any

from sidecar.model import ArtifactStatus
from sidecar.recorder import files
from sidecar.recorder.capture.base import Ended, Piece, over_limit

_CHUNK = 1 << 20
_MOST_LINKS = 16
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Digest = Callable[[], Any]


def digest() -> Digest:
    """The constructor of a sha256 that grows. To be called before the fork, since it may import."""
    try:
        from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # see `files.sha256`
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from hashlib import sha256
    return sha256  # type: ignore[no-any-return,unused-ignore]


def root_of(proc_root: str, pid: int) -> int:
    """A descriptor of the root folder that the process sees. Raises `OSError`."""
    return os.open(f"{proc_root}/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def absolute(proc_root: str, pid: int, path: str) -> str:
    """`path` as the process means it. Raises `OSError` where its working folder may not be read."""
    return path if path.startswith("/") else os.readlink(f"{proc_root}/{pid}/cwd") + "/" + path


def find(root: int, path: str) -> int:
    """An O_PATH descriptor of what an absolute path means below `root`, never outside of it. Raises `OSError`."""
    todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
    trail = [os.dup(root)]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            fd = os.open(part, _PATH, dir_fd=trail[-1])
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                trail.append(fd)
                continue
            os.close(fd)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            goal = os.readlink(part, dir_fd=trail[-1])
            if goal.startswith("/"):
                while len(trail) > 1:
                    os.close(trail.pop())
            todo += [step for step in goal.split("/") if step not in ("", ".")][::-1]
        return os.dup(trail[-1])
    finally:
        for fd in trail:
            os.close(fd)


def reopen(fd: int, flags: int) -> int:
    """Open the very file that an O_PATH descriptor stands for. Raises `OSError`."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def open_file(root: int, path: str) -> int:
    """A descriptor to read a regular file with. Raises `OSError`; EINVAL where it is anything else."""
    found = find(root, path)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return reopen(found, os.O_RDONLY)
    finally:
        os.close(found)


def keep(folder: str, path: str, source: int, most: int, make: Digest) -> tuple[int, str]:
    """Copy what `source` holds to `<folder>/<path>`, named `.partial` until it is whole. Gives (bytes, sha256).

    `path` is `<collector>/<name>`. Raises `OSError`, EFBIG where there is more than `most` bytes; then nothing is left.
    """
    kind, _, name = path.partition("/")
    partial = f"{name}.partial"
    inner = _folder(folder, kind)
    try:
        files.unlink(inner, partial)
        fd = os.open(partial, _CREATE, 0o600, dir_fd=inner)
        try:
            total, hashed = 0, make()
            while chunk := os.read(source, _CHUNK):
                total += len(chunk)
                if total > most:
                    raise OSError(errno.EFBIG, f"more than {most} bytes")
                hashed.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(partial, name, src_dir_fd=inner, dst_dir_fd=inner)
    except OSError:
        files.unlink(inner, partial)
        raise
    finally:
        os.close(inner)
    return total, str(hashed.hexdigest())


def _folder(folder: str, kind: str) -> int:
    top = os.open(folder, files.FOLDER)
    try:
        try:
            os.mkdir(kind, 0o700, dir_fd=top)
        except FileExistsError:
            pass
        return os.open(kind, files.FOLDER, dir_fd=top)
    finally:
        os.close(top)


def name_of(error: OSError) -> str:
    """`ENOENT`, or the words where there is no number."""
    return errno.errorcode.get(error.errno or 0, str(error))


# -- what a child found -----------------------------------------------------------------------------------------------


def report(
    fd: int, status: ArtifactStatus, detail: str = "", file: str = "", written: tuple[int, str] | None = None
) -> None:
    """Say what became of one file; called in the child."""
    row = {"status": status.value, "detail": detail, "file": file, "written": written}
    view = memoryview(json.dumps(row).encode() + b"\n")
    while view:
        view = view[os.write(fd, view) :]


def pieces(kind: str, ended: Ended) -> tuple[Piece, ...]:
    """What a child has reported, as pieces; at least one."""
    found = tuple(piece for line in ended.out.splitlines() if (piece := _piece(kind, line)))
    if ended.exit_code == 0 and found:
        return found
    if ended.failure:
        return (Piece(kind, ArtifactStatus.FAILED, detail=ended.failure),)
    if ended.wait_status is None:
        return (*found, Piece(kind, ArtifactStatus.TIMED_OUT, detail=over_limit(ended)))
    return (*found, Piece(kind, ArtifactStatus.FAILED, detail=f"its reader ended with {ended.wait_status:#x}"))


def _piece(kind: str, line: bytes) -> Piece | None:
    try:
        row = json.loads(line)
        written = (int(row["written"][0]), str(row["written"][1])) if row["written"] else None
        return Piece(kind, ArtifactStatus(row["status"]), row["file"], detail=row["detail"], written=written)
    except (ValueError, LookupError, TypeError):
        return None  # cut off where the child was ended
