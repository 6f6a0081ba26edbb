"""A real memory cgroup with a limit, v1 or v2, that processes of a test start in. Only root can make one."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sidecar_process import PROC, eventually

from sidecar.system.cgroup import memory_cgroup, memory_mount

_LIMIT = {"v1": "memory.limit_in_bytes", "v2": "memory.max"}
_EVENTS = {"v1": "memory.oom_control", "v2": "memory.events"}


class MemoryCgroup:
    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self._events = folder / _EVENTS[version]
        self._usage = folder / ("memory.usage_in_bytes" if version == "v1" else "memory.current")

    def kills(self) -> int:
        """How many processes the kernel has killed in it for memory."""
        rows = dict(line.split() for line in self._events.read_text().splitlines())
        return int(rows["oom_kill"])

    def usage(self) -> int:
        return int(self._usage.read_text())

    def interpreter(self, python: str, at: Path) -> str:
        """A program that enters the cgroup and becomes that interpreter; what it starts is in there as well."""
        at.write_text(f"#!/bin/sh\necho $$ > '{self.folder}/cgroup.procs'\nexec '{python}' \"$@\"\n")
        at.chmod(0o755)
        return str(at)


@contextmanager
def memory_cgroup_of(limit: int) -> Iterator[MemoryCgroup]:
    """One with `limit` bytes, gone afterwards. Skips where none can be made."""
    version, _ = memory_cgroup(PROC.cgroup(os.getpid()))
    point, _ = memory_mount(Path("/proc/self/mountinfo").read_text(), version) if version else ("", "")
    if not point:
        pytest.skip("there is no memory cgroup here")
    folder = Path(point, f"rankguard-test-{uuid.uuid4().hex[:12]}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        try:
            (folder / _LIMIT[version]).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        yield MemoryCgroup(folder, version)
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup empty")
        folder.rmdir()


def interpreter_beside(folder: Path, pyspy: str) -> str:
    """An interpreter as in a virtual environment of its own, with that text as the `py-spy` beside it."""
    (folder / "bin").mkdir(parents=True)
    prefix = Path(sys.prefix)
    if (prefix / "pyvenv.cfg").exists():
        (folder / "pyvenv.cfg").write_text((prefix / "pyvenv.cfg").read_text())
        (folder / "lib").symlink_to(prefix / "lib")
    else:  # an installation without a virtual environment: one that sees it
        home = Path(sys.executable).resolve().parent
        (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = true\n")
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    program = folder / "bin" / "py-spy"
    program.write_text(pyspy)
    program.chmod(0o755)
    return str(folder / "bin" / "python")
