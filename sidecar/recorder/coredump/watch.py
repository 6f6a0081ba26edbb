"""Seeing the dump come: which file of the target's it is, and when it is whole.

A file counts that was not there before the trigger, or has changed since: by its name in the folder where
`CUDA_COREDUMP_FILE` says, or by being open for writing in the target under a name like a dump's. What is found is held
open, so the death of the target (which the driver brings about itself unless told `skip_abort`) takes nothing away.
"""

from __future__ import annotations

import os
import re
import stat as modes
import time
from dataclasses import dataclass

from sidecar.errors import ProcessGone
from sidecar.recorder.coredump import elf
from sidecar.recorder.coredump.pipe import Pattern
from sidecar.recorder.coredump.target import Opened, TargetProcess

STILL = 0.3  # seconds without a change; the driver writes without such pauses (docs: "Writing done" within a second)
_LIST_EVERY = 0.25
_LOOKS_LIKE_ONE = re.compile(r"(?i)core|cuda|nvcudmp")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_NAMES = 100_000
Version = tuple[int, int, int, int]


@dataclass(slots=True)
class Found:
    """A dump that is there: open at `fd`, called `name` in the folder open at `folder`. `path` is for people."""

    fd: int
    folder: int
    name: str
    path: str
    version: Version
    seen_at: float
    changed_at: float

    @property
    def size(self) -> int:
        return self.version[2]


class Watch:
    """Begin it before the trigger: it remembers what is there already."""

    def __init__(
        self, target: TargetProcess, patterns: tuple[Pattern, ...], extra_folders: tuple[str, ...],
        guess: Pattern | None = None,
    ) -> None:  # fmt: skip
        self._target = target
        self._names = tuple(name for _, name in patterns)
        self._places: dict[tuple[int, int], tuple[int, str, tuple[re.Pattern[str], ...]]] = {}
        self._before: dict[tuple[int, int, str], Version] = {}
        self._listed_at = 0.0
        self.found: Found | None = None
        self.foreign = ""
        self._open_before = {(file.number, file.path) for file in self._opened()}
        for folder, pattern in patterns:
            self._add(folder, (pattern,))
        if guess is not None:
            self._add(guess[0], (guess[1],))
        for folder in extra_folders:
            self._add(folder, self._names)
        for key, (fd, _, allowed) in self._places.items():
            for name in self._listed(fd, allowed):
                self._before[(*key, name)] = self._version(fd, name) or (0, 0, 0, 0)

    def look(self, alive: bool) -> Found | None:
        """What there is by now. Call it again and again."""
        now = time.monotonic()
        if self.found is None and now - self._listed_at >= _LIST_EVERY:
            if alive:
                self._follow_open_files()
            self._find(now)
            self._listed_at = time.monotonic()
        elif self.found is not None:
            self._refresh(self.found, now)
        return self.found

    def is_still(self) -> bool:
        """Nothing has changed for a moment, and nobody in the target has it open for writing."""
        found = self.found
        if found is None or time.monotonic() - found.changed_at < STILL:
            return False
        return not self._written_to(found)

    def missing(self) -> str:
        """What the dump lacks, "" where it is whole."""
        if self.found is None:
            return "no file"
        try:
            return elf.shortfall(self.found.fd)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    def _told(self, name: str) -> bool:
        """Whether that is what the environment calls a dump; of any other file its beginning must say so."""
        return any(pattern.fullmatch(name) for pattern in self._names)

    def _add(self, folder: str, names: tuple[re.Pattern[str], ...]) -> None:
        try:
            fd = self._target.folder(folder)
        except OSError:
            return  # no such folder: then the driver cannot write there either
        info = os.fstat(fd)
        key = (info.st_dev, info.st_ino)
        if key in self._places:
            os.close(fd)
            fd, shown, already = self._places[key]
            self._places[key] = (fd, shown, tuple(dict.fromkeys((*already, *names))))
        else:
            self._places[key] = (fd, folder or self._target.cwd(), names)

    def _follow_open_files(self) -> None:
        for file in self._opened():
            name = os.path.basename(file.path)
            if not file.writes or (file.number, file.path) in self._open_before:
                continue
            if any(pattern.fullmatch(name) for pattern in self._names) or (
                _LOOKS_LIKE_ONE.search(name) and self._is_file(file.number)
            ):
                self._add(os.path.dirname(file.path), (re.compile(re.escape(name)),))

    def _find(self, now: float) -> None:
        best: Found | None = None
        for key, (folder, shown, allowed) in self._places.items():
            for name in self._listed(folder, allowed):
                version = self._version(folder, name)
                if version is None or version == self._before.get((*key, name)):
                    continue
                if not self._told(name) and not _is_elf(folder, name):
                    continue
                if best is None or version[3] > best.version[3]:
                    path = os.path.join(shown, name)
                    best = Found(-1, folder, name, path, version, now, now)
        if best is not None:
            best.fd = self._open(best)
            self.found = best if best.fd >= 0 else None

    def _open(self, found: Found) -> int:
        """Open it, if it is what it should be: a regular file that belongs to the target's user. Else -1."""
        try:
            fd = os.open(found.name, _READ, dir_fd=found.folder)
        except OSError as error:
            self.foreign = f"{found.path} cannot be read: {error.strerror}"
            return -1
        info = os.fstat(fd)
        if modes.S_ISREG(info.st_mode) and info.st_uid in self._target.uids:
            return fd
        os.close(fd)
        self.foreign = f"{found.path} is not a file of the process's user"
        return -1

    def _refresh(self, found: Found, now: float) -> None:
        version = self._version(found.folder, found.name)
        if version is not None and version[:2] != found.version[:2]:  # another file under that name
            os.close(found.fd)
            found.fd = self._open(found)
            if found.fd < 0:
                self.found = None
                return
        info = os.fstat(found.fd)
        current = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        if current != found.version:
            found.version = current
            found.changed_at = now

    def _written_to(self, found: Found) -> bool:
        for file in self._opened():
            if not file.writes or os.path.basename(file.path) != found.name:
                continue
            try:
                info = self._target.stat_opened(file.number)
            except OSError:
                continue
            if (info.st_dev, info.st_ino) == found.version[:2]:
                return True
        return False

    def _opened(self) -> list[Opened]:
        try:
            return list(self._target.opened())
        except (OSError, ProcessGone):
            return []

    def _is_file(self, number: str) -> bool:
        try:
            return modes.S_ISREG(self._target.stat_opened(number).st_mode)
        except OSError:
            return False

    @staticmethod
    def _listed(folder: int, allowed: tuple[re.Pattern[str], ...]) -> list[str]:
        try:
            names = os.listdir(folder)[:_MOST_NAMES]
        except OSError:
            return []
        return [name for name in names if any(pattern.fullmatch(name) for pattern in allowed)]

    @staticmethod
    def _version(folder: int, name: str) -> Version | None:
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        if not modes.S_ISREG(info.st_mode):
            return None
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _is_elf(folder: int, name: str) -> bool:
    """Whether it begins as a dump does; any other file that grows meanwhile is the engine's own, and none of ours."""
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError:
        return True  # said where it is opened
    try:
        return os.pread(fd, 4, 0) == b"\x7fELF"
    except OSError:
        return True
    finally:
        os.close(fd)
