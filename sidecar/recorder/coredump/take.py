"""Taking the dump into the incident's folder: by one rename on the same volume, else as a stream.

A stream goes to `<label>.core.partial`, which gets its name when it is whole, so that a kill at any moment leaves no
half dump that looks like one. It is not synced here: the recorder syncs all its files when it seals, after the kill.
The source is removed only after a good copy, and only if it is still the file that was copied.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sidecar.recorder.coredump.mounts import seen_from_here
from sidecar.recorder.coredump.watch import Found

FOLDER_NAME = "cuda_coredump"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 512 << 10
_PARTIAL = ".partial"


class NoRoom(Exception):
    """It does not fit. Says into what."""


class NotTaken(Exception):
    """It could not be taken. Says why, and nothing of it was left behind."""


@dataclass(frozen=True, slots=True)
class Taken:
    """`bytes` of it are in the incident's folder, whole or not. `sha256` is "" where there was no time for it."""

    bytes: int
    sha256: str
    how: str
    whole: bool
    lost: str = ""


class Shelf:
    """The folder of an incident's coredumps, and the place of one of them in it."""

    def __init__(self, incident_folder: str, label: str, room: int, most: int) -> None:
        """`room`: bytes that the volume has for this one, `most`: bytes of any. Raises `NotTaken`."""
        self._name = f"{label}.core"
        self._room = room
        self._most = most
        try:
            incident = os.open(incident_folder, _FOLDER)
            try:
                try:
                    os.mkdir(FOLDER_NAME, 0o700, dir_fd=incident)
                except FileExistsError:
                    pass
                self._fd = os.open(FOLDER_NAME, _FOLDER, dir_fd=incident)
            finally:
                os.close(incident)
        except OSError as error:
            raise NotTaken(f"the incident's folder cannot be used: {_named(error)}") from error

    @property
    def path(self) -> str:
        return f"{FOLDER_NAME}/{self._name}"

    def fits(self, size: int) -> None:
        """Raises `NoRoom`."""
        if size > self._most:
            raise NoRoom(f"it has {size} bytes, and one coredump may have {self._most} (--coredump-max-bytes)")
        if size > self._room:
            raise NoRoom(f"it has {size} bytes, and the volume has room for {self._room}")

    def take(self, found: Found, mounts: str, whole: bool, deadline: float, may_move: bool = True) -> Taken:
        """Bring it here, by a copy where it may not be moved. `mounts`: the target's mountinfo.

        Raises `NoRoom` and `NotTaken`.
        """
        info = os.fstat(found.fd)
        self.fits(info.st_size)
        same_volume = info.st_dev == os.fstat(self._fd).st_dev and info.st_nlink == 1
        if may_move and same_volume and self._rename(found, mounts):
            digest = _digest(found.fd, deadline) if whole else ""
            return Taken(os.fstat(found.fd).st_size, digest, "moved", whole)
        return self._stream(found, whole, deadline)

    def _rename(self, found: Found, mounts: str) -> bool:
        """One rename, by the target's path, or where its mount is another one, by ours. False: it has to be copied."""
        if self._rename_from(found.folder, found):
            return True
        folder = seen_from_here(found.folder, found.path, mounts, self._fd)
        if folder < 0:
            return False
        try:
            return self._rename_from(folder, found)
        finally:
            os.close(folder)

    def _rename_from(self, folder: int, found: Found) -> bool:
        if not _is(folder, found.name, found.fd):
            return False
        try:
            os.rename(found.name, self._name, src_dir_fd=folder, dst_dir_fd=self._fd)
        except OSError:  # EXDEV: another volume or another mount; EACCES: not ours to take. A copy may do.
            return False
        if not _is(self._fd, self._name, found.fd):  # it was exchanged in that moment: back with it
            self._put_back(folder, found.name)
            return False
        try:
            os.fchown(found.fd, os.geteuid(), os.getegid())
            os.fchmod(found.fd, 0o600)
        except OSError:
            pass  # not ours to change: it stays as its writer made it
        return True

    def _put_back(self, folder: int, name: str) -> None:
        try:
            os.rename(self._name, name, src_dir_fd=self._fd, dst_dir_fd=folder)
        except OSError as error:
            raise NotTaken(f"another file came in its place and cannot be put back: {_named(error)}") from error

    def _stream(self, found: Found, whole: bool, deadline: float) -> Taken:
        before = os.fstat(found.fd)
        size = before.st_size
        partial = self._name + _PARTIAL
        fd = self._create(partial)
        try:
            try:
                copied, digest = _copy(found.fd, fd, size, deadline)
            finally:
                os.close(fd)
            if not copied:
                raise NotTaken("there was no time left to copy it")
            after = os.fstat(found.fd)
            same = (after.st_size, after.st_mtime_ns) == (size, before.st_mtime_ns)
            os.rename(partial, self._name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except (OSError, NotTaken) as error:
            self._remove(partial)
            if isinstance(error, NotTaken):
                raise
            raise NotTaken(f"the copy to the volume failed: {_named(error)}") from error
        lost = ""
        if copied < size:
            lost = f"the deadline came after {copied} of {size} bytes"
        elif whole and not same:
            lost = "it changed while it was copied"
        elif whole:
            lost = _remove_source(found)
            return Taken(copied, digest, "copied", True, lost)
        return Taken(copied, digest, "copied", False, lost)

    def _create(self, name: str) -> int:
        try:
            try:
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                pass
            return os.open(name, _CREATE, 0o600, dir_fd=self._fd)
        except OSError as error:
            raise NotTaken(f"the copy to the volume failed: {_named(error)}") from error

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._fd)
        except OSError:
            pass  # a volume that is gone or read-only: nothing to be done


def _copy(source: int, target: int, size: int, deadline: float) -> tuple[int, str]:
    """Copy up to `size` bytes, until the deadline. Gives (bytes, their sha256). Raises `OSError`.

    The checksum is made in a second thread, which costs no time where there is a second core: two buffers in turns.
    """
    digest = hashlib.sha256(usedforsecurity=False)
    buffers = [memoryview(bytearray(_CHUNK)) for _ in range(2)]
    hashed: list[Future[None]] = []
    copied = 0
    with ThreadPoolExecutor(1) as hasher:
        while copied < size and time.monotonic() < deadline:
            if len(hashed) == len(buffers):
                hashed.pop(0).result()
            view = buffers[0]
            buffers.reverse()
            number = os.preadv(source, [view[: min(_CHUNK, size - copied)]], copied)
            if not number:
                break  # it has become shorter
            hashed.append(hasher.submit(digest.update, view[:number]))
            written = 0
            while written < number:
                written += os.pwrite(target, view[written:number], copied + written)
            copied += number
    return copied, digest.hexdigest()


def _digest(fd: int, deadline: float) -> str:
    digest = hashlib.sha256(usedforsecurity=False)
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    at = 0
    while time.monotonic() < deadline:
        number = os.preadv(fd, [view], at)
        if not number:
            return digest.hexdigest()
        digest.update(view[:number])
        at += number
    return ""


def _remove_source(found: Found) -> str:
    """Remove the dump where the driver wrote it, since it would fill that place. "" or why it is there still."""
    if not _is(found.folder, found.name, found.fd):
        return "another file stands in its place now"
    try:
        os.unlink(found.name, dir_fd=found.folder)
    except OSError as error:
        return f"it could not be removed from {found.path}: {_named(error)}"
    return ""


def _is(folder: int, name: str, fd: int) -> bool:
    """Whether the file of this name is the one that is open."""
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _named(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, '?')} ({error.strerror})"
