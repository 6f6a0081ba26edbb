"""The trigger: the named pipe that the CUDA driver reads in its process.

Found among the target's open files, by the driver's own reading end: that needs no path, cannot be bent, and tells
which of the driver's names it is. Where descriptors may not be listed, by its path. Never blocks.

How much has to be written is not documented: SGLang and XLA write one byte and close, an article of vLLM's says that
little may not be enough and writes 1 MiB. Closing after each write gives a driver that waits for a full buffer its end
of file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat as modes
import struct
import termios

from sidecar.recorder.coredump.target import TargetProcess

SIZES = (1, 1 << 16, 1 << 20)
_CHUNK = 1 << 16
_LOOKS_LIKE_ONE = re.compile(r"corepipe")
Pattern = tuple[str, re.Pattern[str]]


class Refused(Exception):
    """No pipe that can be written to. `there`: there is one, but not for us."""

    def __init__(self, why: str, there: bool) -> None:
        super().__init__(why)
        self.there = there


class Pipe:
    """The pipe, held so that it stays the one that was checked. `path` is for people."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._writing = -1
        self._left = 0
        self.path = path
        self.written = 0

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    def write(self, size: int) -> None:
        """Begin to write `size` bytes; `feed` goes on where the pipe was full. Raises `OSError`; ENXIO: no reader."""
        self._close()
        self._writing = self._open()
        self._left = size
        self.feed()

    def feed(self) -> None:
        """Write what the pipe takes now, and close when all is written."""
        while self._left:
            try:
                number = os.write(self._writing, b"1" * min(self._left, _CHUNK))
            except BlockingIOError:
                return
            except BrokenPipeError:
                break
            self._left -= number
            self.written += number
        self._close()

    def _close(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
        self._writing = -1
        self._left = 0

    def unread(self) -> int:
        """How many bytes nobody has read yet, -1 where that cannot be known."""
        try:
            fd = self._open()
        except OSError:
            return -1
        try:
            return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
        except OSError:
            return -1
        finally:
            os.close(fd)

    def is_read_by(self, target: TargetProcess) -> bool:
        """Whether the target has it open for reading. Raises `OSError` where that may not be known."""
        own = os.fstat(self._fd)
        for file in target.opened():
            info = target.stat_opened(file.number) if file.reads else None
            if info is not None and (info.st_dev, info.st_ino) == (own.st_dev, own.st_ino):
                return True
        return False

    def may_be_written(self) -> bool:
        """Whether we have the permission, without opening it."""
        return os.access(f"/proc/self/fd/{self._fd}", os.W_OK, effective_ids=True)

    def _open(self) -> int:
        # Opening it again by our own descriptor opens the very same pipe, whatever stands under its name by now.
        return os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def find(target: TargetProcess, patterns: tuple[Pattern, ...]) -> Pipe:
    """The target's trigger pipe. Raises `Refused`, and `ProcessGone` where the target has ended."""
    try:
        found = _among_open_files(target, patterns)
    except PermissionError:
        found = None
    if found is not None:
        return found
    refusal = Refused("it has no trigger pipe", there=False)
    for folder, name in patterns:
        if "\\d+" in name.pattern:
            continue  # a name with a time in it cannot be guessed
        text = re.sub(r"\\(.)", r"\1", name.pattern)
        shown = os.path.join(folder, text)
        try:
            return _by_path(target, folder, text, shown)
        except FileNotFoundError:
            continue
        except OSError as error:
            what = "no permission for" if error.errno in (errno.EACCES, errno.EPERM) else "cannot use"
            refusal = Refused(f"{what} the trigger pipe {shown} ({errno.errorcode.get(error.errno or 0, '?')})", True)
    raise refusal


def _among_open_files(target: TargetProcess, patterns: tuple[Pattern, ...]) -> Pipe | None:
    likely: Pipe | None = None
    for file in target.opened():
        path = file.path.removesuffix(" (deleted)")
        name = os.path.basename(path)
        named = any(pattern.fullmatch(name) for _, pattern in patterns)
        if not file.reads or not (named or _LOOKS_LIKE_ONE.search(name)) or (likely is not None and not named):
            continue
        try:
            fd = target.hold(file.number)
        except OSError:
            continue  # closed meanwhile
        if not modes.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
        elif named:
            return Pipe(fd, path)
        else:
            likely = Pipe(fd, path)
    return likely


def _by_path(target: TargetProcess, folder: str, name: str, shown: str) -> Pipe:
    try:
        inside = target.folder(folder)
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "no such folder") from error
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    finally:
        os.close(inside)
    if not modes.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a pipe")
    return Pipe(fd, shown)
