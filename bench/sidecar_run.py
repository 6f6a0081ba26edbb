"""A real `rankguard run` beside what a benchmark watches: started by the command line, heard by its log, stopped."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.children import Child
from bench.pump import Pump

_STOPS = 10.0  # s that it gets to end by itself


class Sidecar:
    """The whole tree. `lines` are its log, parsed. A context manager that leaves no process of it behind.

    It is always bound to `root_pid` or to a pattern that only the benchmark's own processes match, so that no other
    engine of the machine is touched.
    """

    def __init__(self, pump: Pump, dump_dir: str, *flags: str) -> None:
        assert any(flag in ("--root-pid", "--rank-pattern") for flag in flags)
        self.lines: list[dict[str, Any]] = []
        self.dump_dir = Path(dump_dir)
        self._pump = pump
        self._held: dict[int, int] = {}
        argv = [sys.executable, "-m", "sidecar", "run", "--dump-dir", dump_dir, "--log-format", "json", *flags]
        self._child = Child(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            at_our_death=signal.SIGTERM)  # fmt: skip
        assert self._child.process.stderr is not None
        self._log = self._child.process.stderr.fileno()
        pump.add_lines(self._log, self._line)

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The supervisor: the command line has become it by exec."""
        return self._child.pid

    def tree(self) -> dict[str, int]:
        """The processes by what they are: supervisor, guard, recorder, web."""
        found = {"supervisor": self.pid}
        for pid in self._children():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                for kind in ("guard", "recorder", "web"):
                    if f"sidecar.{kind}.__main__".encode() in words:
                        found[kind] = pid
        return found

    def until(self, event: str, seconds: float, **details: Any) -> dict[str, Any]:
        """Wait for a line of the log. Raises `Late`, with the last lines."""

        def found() -> dict[str, Any] | None:
            for line in self.lines:
                if line.get("event") == event and all(line.get(key) == value for key, value in details.items()):
                    return line
            return None

        self._pump.until(lambda: found() is not None, seconds, f"{event} {details or ''} in the log")
        line = found()
        assert line is not None
        return line

    def record(self) -> dict[str, Any]:
        """The newest `incident.json`."""
        (*_, newest) = sorted(self.dump_dir.glob("*/incident.json"))
        data: dict[str, Any] = json.loads(newest.read_text())
        return data

    def close(self) -> None:
        """Stop it as a container runtime would, and end by pidfd whatever of it does not."""
        for pid in self._children():
            with suppress(ProcessLookupError):
                self._held[pid] = os.pidfd_open(pid)
        if self._child.process.poll() is None:
            self._child.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._child.process.wait(_STOPS)
        self._pump.drop(self._log)
        self._child.close()
        for pidfd in self._held.values():
            if not select.select([pidfd], [], [], 0)[0]:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._held.clear()

    def _children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def _line(self, text: str, _: float) -> None:
        if text.startswith("{"):
            self.lines.append(json.loads(text))
