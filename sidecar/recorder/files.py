"""Reading, writing and removing below a folder's descriptor, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from sidecar.dumps.disk import PARTIAL, Size, allocated, has, is_folder, lstat, measure, names, read
from sidecar.dumps.opening import FILE as READ
from sidecar.dumps.opening import FOLDER

__all__ = [
    "FOLDER", "PARTIAL", "READ", "Size", "allocated", "create", "digest", "has", "is_folder", "lstat", "measure",
    "names", "read", "remove_folders", "remove_tree", "sha256", "sync", "unlink",
]  # fmt: skip

_CHUNK = 1 << 20
_DEEPEST = 8  # levels of folders that are removed; an incident has two
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def sha256(data: bytes) -> str:
    """The digest in hex."""
    return str(_hasher()(data).hexdigest())


def _hasher() -> Any:
    """hashlib's sha256 without hashlib, which maps OpenSSL: 3.7 MiB (seen) in a process that only stands by."""
    try:
        from _sha2 import sha256 as hasher  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256 as hasher  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from hashlib import sha256 as hasher
    return hasher


def digest(folder: int, path: str, most: int) -> tuple[int, str]:
    """(bytes, sha256) of a file; the sum is "" where it has more than `most` bytes."""
    fd = os.open(path, READ, dir_fd=folder)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if info.st_size > most:
            return info.st_size, ""
        size, hasher = 0, _hasher()()
        while size <= most and (chunk := os.read(fd, _CHUNK)):
            size += len(chunk)
            hasher.update(chunk)
        return size, str(hasher.hexdigest())
    finally:
        os.close(fd)


def create(folder: int, name: str, data: bytes, durable: bool) -> None:
    fd = os.open(name, _CREATE, 0o600, dir_fd=folder)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    except OSError:
        unlink(folder, name)
        raise
    finally:
        os.close(fd)


def sync(folder: int, name: str) -> None:
    fd = os.open(name, READ, dir_fd=folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def remove_folders(folder: int) -> None:
    """Remove all folders in one, with what is in them; its files stay."""
    for name in os.listdir(folder):
        if is_folder(folder, name):
            remove_tree(folder, name)


def remove_tree(folder: int, name: str, depth: int = 0) -> None:
    """Remove a file or a folder with all that is in it. Somebody else may be at the same."""
    try:
        fd = os.open(name, FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        unlink(folder, name)
        return
    try:
        for inner in os.listdir(fd):
            if depth < _DEEPEST and is_folder(fd, inner):
                remove_tree(fd, inner, depth + 1)
            else:
                unlink(fd, inner)
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        pass
