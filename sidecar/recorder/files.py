"""Reading, writing and removing below a folder's descriptor, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat

_DEEPEST = 8  # levels of folders that are looked at; an incident has two
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO put there must not hold us up
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def sha256(data: bytes) -> str:
    """hashlib's sha256 without hashlib, which maps OpenSSL: 3.7 MiB (seen) in a process that only stands by."""
    try:
        from _sha2 import sha256 as digest  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256 as digest  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from hashlib import sha256 as digest
    return str(digest(data).hexdigest())


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
        while most > 0 and (chunk := os.read(fd, min(most, 1 << 20))):
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


def remove_tree(folder: int, name: str, depth: int = 0) -> None:
    try:
        fd = os.open(name, FOLDER, dir_fd=folder)
    except NotADirectoryError:
        unlink(folder, name)
        return
    except FileNotFoundError:
        return  # another recorder removes it too
    try:
        for inner in os.listdir(fd):
            if depth < _DEEPEST and stat.S_ISDIR(lstat(fd, inner).st_mode):
                remove_tree(fd, inner, depth + 1)
            else:
                unlink(fd, inner)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
