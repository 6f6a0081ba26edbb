"""`rankguard run` beside an engine, as a person would start it: its log lines, its metrics, its end."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sidecar.errors import ProcessGone
from sidecar.model import Identity
from sidecar.system.pidfd import open_process, send
from sidecar.system.proc import Proc

Sample = tuple[str, tuple[tuple[str, str], ...]]
_PR_SET_PDEATHSIG = 1


class Watcher:
    """One `rankguard run --root-pid`. Close it with `stop`.

    Its log goes to `log_path` too. RANKGUARD_* of our own environment does not reach it: settings of another run's.
    """

    def __init__(self, root_pid: int, dump_dir: Path, log_path: Path) -> None:
        self.port: int | None = None
        self._proc = Proc()
        self._buffer = b""
        self._family: dict[Identity, int] = {}
        self._http = httpx.Client(timeout=2.0, trust_env=False)
        self._log = log_path.open("wb")
        libc = ctypes.CDLL(None)
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "sidecar", "run", "--engine", "auto", "--root-pid", str(root_pid),
                "--listen", "127.0.0.1:0", "--api-listen", "none", "--dump-dir", str(dump_dir),
                "--log-format", "json",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the demo, which then ends this
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )  # fmt: skip
        self.pid = self.process.pid

    def line(self, timeout: float) -> dict[str, Any] | None:
        """The next log line, or None where none comes within `timeout` seconds, or none any more."""
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        deadline = time.monotonic() + timeout
        while True:
            raw, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                self._log.write(raw + newline)
                self._log.flush()
                with suppress(ValueError):
                    line = json.loads(raw)
                    if isinstance(line, dict):
                        self._note(line)
                        return line
                continue  # a warning of the interpreter's, say
            left = max(0.0, deadline - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                return None
            chunk = os.read(fd, 2**16)
            if not chunk:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(left)
                return None
            self._buffer += chunk

    def _note(self, line: dict[str, Any]) -> None:
        if line.get("event") == "listening" and self.port is None:
            port = str(line.get("listen", "")).rpartition(":")[2]
            self.port = int(port) if port.isdecimal() else None

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    # What it says over HTTP.

    def ready(self) -> bool:
        """What /readyz says; False where nobody answers yet."""
        return self._get("/readyz") is not None

    def metrics(self) -> dict[Sample, float]:
        """Every sample of /metrics by name and labels; {} where nobody answers yet."""
        text = self._get("/metrics")
        if text is None:
            return {}
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def _get(self, path: str) -> str | None:
        if self.port is None:
            return None
        try:
            answer = self._http.get(f"http://127.0.0.1:{self.port}{path}")
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None

    # Its end.

    def meet(self) -> None:
        """Learn which processes it has now, to be able to say later that they are gone."""
        stats = [stat for pid in self._proc.pids() if (stat := self._proc.stat(pid)) is not None]
        pids = {self.pid} | {stat.pid for stat in stats if stat.sid == self.pid}
        grown = True
        while grown:
            more = {stat.pid for stat in stats if stat.ppid in pids} - pids
            pids |= more
            grown = bool(more)
        for stat in stats:
            if stat.pid in pids and stat.identity not in self._family:
                with suppress(ProcessGone):
                    self._family[stat.identity] = open_process(self._proc, stat.identity)

    def stop(self, timeout: float = 3.0) -> list[Identity]:
        """SIGTERM, `timeout` seconds, SIGKILL. Returns the processes that SIGTERM did not end. May be called twice."""
        if self._log.closed:
            return []
        self.meet()
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while self._alive() and (left := deadline - time.monotonic()) > 0:
            self.line(min(left, 0.02))  # drained, so that no line of its farewell is lost
            self.process.poll()
        left_over = self._alive()
        for identity in left_over:
            send(self._family[identity], signal.SIGKILL)
        if not self.ended:
            self.process.kill()
        self.process.wait()
        for identity in left_over:
            select.select([self._family[identity]], [], [], 1.0)
        while self._family:
            os.close(self._family.popitem()[1])
        while self.line(0.0) is not None:
            pass
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._log.close()
        self._http.close()
        self._proc.close()
        return left_over

    def _alive(self) -> list[Identity]:
        return [identity for identity, fd in self._family.items() if not select.select([fd], [], [], 0)[0]]
