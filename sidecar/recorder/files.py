"""Reading, writing and removing below a folder's descriptor, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any

PARTIAL = ".partial"  # how the name of a file ends that a child is still writing
_CHUNK = 1 << 20
_DEEPEST = 8  # levels of folders that are looked at; an incident has two
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO put there must not hold us up
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of disk that a folder takes: with all below it, and (`top`) with the files in it alone. `partials` are the
    paths below it of files that a child has not finished."""

    total: int
    top: int
    partials: tuple[str, ...]


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


def has(folder: int, path: str) -> bool:
    try:
        lstat(folder, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def lstat(folder: int, path: str) -> os.stat_result:
    return os.stat(path, dir_fd=folder, follow_symlinks=False)


def read(folder: int, path: str, most: int) -> bytes:
    fd = os.open(path, READ, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        chunks = []
        while most > 0 and (chunk := os.read(fd, min(most, _CHUNK))):
            most -= len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def names(folder: int, name: str) -> list[str]:
    fd = os.open(name, FOLDER, dir_fd=folder)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def allocated(folder: int, name: str, depth: int = 0) -> int:
    """Bytes of disk that a file or folder takes; one that goes meanwhile takes none."""
    try:
        info = lstat(folder, name)
        total = info.st_blocks * 512
        if stat.S_ISDIR(info.st_mode) and depth < _DEEPEST:
            fd = os.open(name, FOLDER, dir_fd=folder)
            try:
                total += sum(allocated(fd, inner, depth + 1) for inner in os.listdir(fd))
            finally:
                os.close(fd)
    except FileNotFoundError:
        return 0
    return total


def measure(folder: int, name: str) -> Size:
    """What a folder takes, and what in it was left half written. Raises `OSError` where it is none, or is gone."""
    fd = os.open(name, FOLDER, dir_fd=folder)
    try:
        total = top = os.fstat(fd).st_blocks * 512
        partials: list[str] = []
        for inner in os.listdir(fd):
            size = allocated(fd, inner)
            total += size
            if not is_folder(fd, inner):
                top += size
                continue
            partials += [f"{inner}/{file}" for file in names(fd, inner) if file.endswith(PARTIAL)]
        return Size(total, top, tuple(partials))
    finally:
        os.close(fd)


def is_folder(folder: int, name: str) -> bool:
    """Whether it is a folder; False where it is gone."""
    try:
        return stat.S_ISDIR(lstat(folder, name).st_mode)
    except FileNotFoundError:
        return False


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
