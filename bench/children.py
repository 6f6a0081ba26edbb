"""The bench's own child processes: each in a session of its own, known by Popen until it is reaped, ended by `close`.

Each asks the kernel for a signal when the bench dies, so nothing stays behind where the bench itself is SIGKILLed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
ROOT = str(Path(__file__).resolve().parent.parent)


class Child:
    """A process with a pipe to its stdin and one from its stdout. A context manager; `close` may be called twice."""

    def __init__(
        self, argv: Sequence[str], pass_fds: Sequence[int] = (), stdin: int | None = subprocess.PIPE,
        stdout: int | None = subprocess.PIPE, stderr: int | IO[Any] | None = None,
        at_our_death: signal.Signals = signal.SIGKILL,
    ) -> None:  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        self.process = subprocess.Popen(
            list(argv), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=tuple(pass_fds), start_new_session=True,
            cwd=ROOT, env=environment | {"PYTHONPATH": ROOT},
            preexec_fn=partial(_die_with_us, os.getpid(), at_our_death),
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def say(self, *words: object) -> None:
        """Write one line to it."""
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), (" ".join(map(str, words)) + "\n").encode())

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """SIGKILL and reap it."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


def _die_with_us(bench: int, number: signal.Signals) -> None:
    """In the child, between fork and exec (the bench has one thread): prctl(PR_SET_PDEATHSIG) outlives the exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number.value, 0, 0, 0)
    if os.getppid() != bench:
        os._exit(1)


def program(name: str, *arguments: object) -> list[str]:
    """The command line of one of `bench.programs`."""
    return [sys.executable, "-m", f"bench.programs.{name}", *map(str, arguments)]
