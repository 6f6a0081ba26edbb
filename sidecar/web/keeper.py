"""Small files on the volume, the counters' among them: read whole, written whole. Every call here may hang; only a
`Worker` makes it.

One writer: the file's name holds the pod's uid, and a pod has one sidecar with one web process.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from sidecar.web.counters import BrokenCounters, Counts, load

MAX_BYTES = 4 * 2**20  # no counters of ours come near this; a bigger file is not read into memory


def counters_path(dump_dir: str, pod_uid: str) -> str:
    """`<dump_dir>/.counters-<pod uid, or "host">.json`, whatever the uid holds."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", pod_uid)[:64] or "host"
    return os.path.join(dump_dir, f".counters-{key}.json")


@dataclass(frozen=True, slots=True)
class Kept:
    """What was found: the counts, or None where there is no file, or none that can be believed (`broken` says why)."""

    counts: Counts | None
    broken: str = ""


class KeptFile:
    """One small JSON file on the volume, `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._temporary = path.removesuffix(".json") + ".tmp"

    def data(self) -> bytes:
        """What is in it. Raises OSError, `FileNotFoundError` where there is none, and `BrokenCounters` where it is
        nothing of ours."""
        try:
            # O_NONBLOCK: a FIFO in its place must not hang the open. O_NOFOLLOW: no link leads us elsewhere.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            if os.path.islink(self.path):
                raise BrokenCounters("it is a symbolic link") from error
            raise
        try:
            kind = os.fstat(fd)
            if not stat.S_ISREG(kind.st_mode):
                raise BrokenCounters("it is no regular file")
            if kind.st_size > MAX_BYTES:
                raise BrokenCounters(f"it has {kind.st_size} bytes")
            data = b""
            while chunk := os.read(fd, MAX_BYTES):
                data += chunk
            return data
        finally:
            os.close(fd)

    def set_aside(self, why: str) -> str:
        """Give it another name, for people. Returns `why`, and what went wrong with that."""
        try:
            os.rename(self.path, self.path.removesuffix(".json") + ".bad")
        except OSError as error:
            why += f" (and it cannot be set aside: {error.strerror})"
        return why

    def write(self, data: bytes) -> None:
        """Replace the file. A reader, or a crash at any point, finds the old one or the new one. Raises OSError."""
        try:
            os.unlink(self._temporary)  # left by a crash, or planted: a link there must not be written through
        except FileNotFoundError:
            pass
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(self._temporary, self.path)
        except OSError:
            try:
                os.unlink(self._temporary)  # on a full volume its bytes are worth having back
            except OSError:
                pass
            raise
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class CountersFile(KeptFile):
    def read(self) -> Kept:
        """Read the file. A broken one is set aside as `.bad`. Raises OSError where the volume cannot be read.

        A folder that is not there raises too: the volume may be mounted later, with counts on it.
        """
        try:
            data = self.data()
        except FileNotFoundError:
            os.stat(os.path.dirname(self.path))
            return Kept(None)
        except BrokenCounters as error:
            return self._set_aside(str(error))
        try:
            return Kept(load(data))
        except BrokenCounters as error:
            return self._set_aside(str(error))

    def _set_aside(self, why: str) -> Kept:
        return Kept(None, broken=self.set_aside(why))
