"""Real processes for tests of `sidecar.system`: small Python scripts that say a line and wait to be told one."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar_process import descendants, identity_of, kill_identity

from sidecar.model import Identity

NOBODY = 65534
REPOSITORY = Path(__file__).resolve().parents[2]
_PREAMBLE = """
import ctypes, os, signal, sys, threading
def say(*words): print(*words, flush=True)
def hear(): return sys.stdin.readline().strip()
"""
# Leaves the process through its main thread alone: a zombie leader, as long as another thread runs on.
END_MAIN_THREAD = "ctypes.CDLL(None).pthread_exit(None)"


class Script:
    """A Python process that runs `source`, in a group of its own. Use as a context manager.

    The source has `say(...)`, which writes a line for `heard`, and `hear()`, which waits for a line from `tell`.
    `others` are processes to end with it that will be no descendants of it by then.
    """

    def __init__(self, source: str, *arguments: str, cwd: Path | None = None, **popen: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _PREAMBLE + source, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd, process_group=0,
            env=environment | {"PYTHONPATH": str(REPOSITORY)}, **popen,
        )  # fmt: skip
        self.others: list[Identity] = []
        self._buffer = b""
        self.identity = identity_of(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:  # not reaped: the pid is still its own
            self.others += descendants(self.pid)
            self.process.kill()
        for identity in self.others:
            kill_identity(identity)
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def heard(self, timeout: float = 30.0) -> str:
        """The next line that it says. Raises `AssertionError` when it ends, or says nothing in time."""
        assert self.process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, "it says nothing"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended with {self.process.wait(30)}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def answers(self) -> bool:
        """Whether it still runs user code: what has SIGKILL or SIGTERM waiting cannot answer. Its source is ECHO."""
        self.tell("still there?")
        return self.heard() == "still there?"

    def until_zombie(self) -> None:
        """Wait until it has ended, and leave it unreaped."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


# Answers every line with itself, until its stdin ends.
ECHO = "say('ready')\nwhile True:\n  line = sys.stdin.readline()\n  if not line: break\n  say(line.strip())"


def echo(**popen: Any) -> Script:
    """A started ECHO."""
    script = Script(ECHO, **popen)
    try:
        assert script.heard() == "ready"
    except BaseException:
        script.__exit__()
        raise
    return script


def readable(fds: Sequence[int], timeout: float = 30.0) -> list[int]:
    """Which of these descriptors become readable."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, event in poll.poll(timeout * 1000) if event & select.POLLIN]


def open_descriptors() -> set[str]:
    """The descriptors of this process, as links."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return found
