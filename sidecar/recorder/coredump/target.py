"""The process to be dumped, held by descriptors: nothing here goes by its number twice, or by a path it can bend.

A path of the target means something in *its* root. The kernel would follow an absolute symbolic link below
/proc/PID/root out of it, into our own files, so folders are walked here, part by part, and stay inside.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.errors import ProcessGone
from sidecar.model import Identity
from sidecar.system.proc import Stat, parse_stat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as many as the kernel follows


@dataclass(frozen=True, slots=True)
class Opened:
    """One open file of the target: its number there, where it was opened, and whether it was for writing."""

    number: str
    path: str
    writes: bool
    reads: bool


class TargetProcess:
    """Raises `ProcessGone` wherever the process has ended, and other `OSError`s as they come. Closed by our own end."""

    def __init__(self, proc_root: str, identity: Identity) -> None:
        try:
            self._folder = os.open(f"{proc_root}/{identity.pid}", _FOLDER)
        except FileNotFoundError as error:
            raise ProcessGone(f"process {identity.pid} is gone") from error
        if self.stat().identity != identity:
            raise ProcessGone(f"process {identity.pid} is gone")
        self._root = -1
        self._cwd = -1
        status = dict(line.split(":", 1) for line in self._read("status").decode("utf-8", "replace").splitlines())
        self.pid_inside = int(status["NSpid"].split()[-1]) if "NSpid" in status else identity.pid
        self.uids = {int(word) for word in status["Uid"].split()}

    def stat(self) -> Stat:
        return parse_stat(self._read("stat"))

    def alive(self) -> bool:
        """Whether it can still run code of its own."""
        try:
            return not self.stat().exiting
        except ProcessGone:
            return False

    def enter(self) -> None:
        """Take hold of its root and its working folder, which then outlive it. Needs ptrace rights."""
        try:
            self._root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
            self._cwd = os.open("cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise ProcessGone("the process is gone") from error

    def host(self) -> str:
        """Its host name: what its container's /etc/hostname says, else ours, which containers of a pod share."""
        try:
            folder = self.folder("/etc")
            try:
                fd = os.open("hostname", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            finally:
                os.close(folder)
            try:
                name = os.read(fd, 256).decode("ascii", "replace").strip() if _regular(fd) else ""
            finally:
                os.close(fd)
        except OSError:
            name = ""
        return name or os.uname().nodename

    def cwd(self) -> str:
        """Its working folder, for people."""
        try:
            return os.readlink("cwd", dir_fd=self._folder)
        except OSError:
            return "."

    def folder(self, path: str) -> int:
        """A descriptor of a folder, by its path as the target sees it ("" is its working folder). Raises `OSError`."""
        base = self._root if path.startswith("/") else self._cwd
        stack = [os.open(".", _PART | os.O_DIRECTORY, dir_fd=base)]
        try:
            waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
            links = 0
            while waiting:
                part = waiting.pop()
                if part == "..":
                    if len(stack) == 1:  # above its root there is nothing; above its working folder we do not go
                        continue
                    os.close(stack.pop())
                    continue
                inner = os.open(part, _PART, dir_fd=stack[-1])
                if not modes.S_ISLNK(os.fstat(inner).st_mode):
                    stack.append(inner)
                    continue
                os.close(inner)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, "too many symbolic links")
                text = os.readlink(part, dir_fd=stack[-1])
                if text.startswith("/"):
                    for fd in stack:
                        os.close(fd)
                    stack = [os.open(".", _PART | os.O_DIRECTORY, dir_fd=self._root)]
                waiting += [word for word in reversed(text.split("/")) if word not in ("", ".")]
            return os.open(".", _FOLDER, dir_fd=stack[-1])
        finally:
            for fd in stack:
                os.close(fd)

    def opened(self) -> Iterator[Opened]:
        """Its open files that have a path, the most recent first."""
        folder = os.open("fd", _FOLDER, dir_fd=self._folder)
        try:
            for number in sorted((name for name in os.listdir(folder)), key=int, reverse=True):
                try:
                    path = os.readlink(number, dir_fd=folder)
                    if not path.startswith("/"):
                        continue
                    flags = self._flags(number)
                except (OSError, ValueError, ProcessGone):
                    continue  # closed meanwhile
                mode = flags & os.O_ACCMODE
                yield Opened(number, path, mode != os.O_RDONLY, mode != os.O_WRONLY)
        finally:
            os.close(folder)

    def hold(self, number: str) -> int:
        """A descriptor that names one of its open files and can do nothing else with it. Raises `OSError`."""
        return os.open(f"fd/{number}", os.O_PATH | os.O_CLOEXEC, dir_fd=self._folder)

    def stat_opened(self, number: str) -> os.stat_result:
        return os.stat(f"fd/{number}", dir_fd=self._folder)

    def mounts(self) -> str:
        return self._read("mountinfo").decode("utf-8", "surrogateescape")

    def _flags(self, number: str) -> int:
        for line in self._read(f"fdinfo/{number}").splitlines():
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
        raise ValueError("no flags")

    def _read(self, name: str) -> bytes:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            try:
                chunks = []
                while chunk := os.read(fd, 1 << 16):
                    chunks.append(chunk)
                return b"".join(chunks)
            finally:
                os.close(fd)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise ProcessGone("the process is gone") from error


def _regular(fd: int) -> bool:
    return modes.S_ISREG(os.fstat(fd).st_mode)
