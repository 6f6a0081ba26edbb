"""`rankguard demo`, run as a person runs it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.system.proc import Proc

LIMIT = 60.0
DEMO = [sys.executable, "-m", "sidecar", "demo"]


@dataclass
class Run:
    process: subprocess.Popen[bytes]
    mark: str
    folder: Path
    output: str = ""

    def read_until(self, pattern: str, timeout: float = LIMIT) -> re.Match[str]:
        """Read what it prints until `pattern` is there."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            if match := re.search(pattern, self.output):
                return match
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} was not printed:\n{self.output}"
            if select.select([self.process.stdout], [], [], left)[0]:
                chunk = os.read(self.process.stdout.fileno(), 2**16)
                assert chunk, f"it ended before {pattern!r}:\n{self.output}"
                self.output += chunk.decode()

    def finish(self, timeout: float = LIMIT + 5) -> int:
        rest, _ = self.process.communicate(timeout=timeout)
        self.output += rest.decode()
        return self.process.returncode

    def left(self) -> list[str]:
        """The command lines of the processes that it started, directly or not, and that still run."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
        return found

    def alive(self, pid: int, started_before: int) -> bool:
        """Whether `pid` is the process that bore it during the demo. `started_before` in clock ticks since boot."""
        with contextlib.closing(Proc()) as proc:
            stat = proc.stat(pid)
        return stat is not None and not stat.zombie and stat.start < started_before


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[Run]:
    """A demo with a temporary folder of its own and a mark in its environment; whatever it leaves is killed."""
    mark = uuid.uuid4().hex
    environment = os.environ | {"TMPDIR": str(folder), "DEMO_MARK": mark}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    run = Run(process, mark, folder)
    try:
        yield run
    finally:
        process.kill()
        process.communicate()
        for line in run.left():
            os.kill(int(line.split()[0]), signal.SIGKILL)


def ticks() -> int:
    """Now, as start times are counted."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_demo(engine: str, tmp_path: Path) -> None:
    """It ends by itself, with 0; what it prints is what lies in the folder; no process is left."""
    with running([*DEMO, "--engine", engine], tmp_path) as run:
        status = run.finish()
        now = ticks()
        assert status == 0, run.output
        assert "Not as promised" not in run.output
        table = run.output.partition("The engine\n")[2].partition("\n\n")[0]
        pids = re.findall(r"^  \S+ +(\d+) ", table, re.MULTILINE)
        pids += re.findall(r"rankguard run \((\d+)\)", run.output)
        assert len(pids) == 7
        assert [pid for pid in pids if run.alive(int(pid), now)] == []
        assert run.left() == []

        printed = re.search(r"^The evidence: (\S+)$", run.output, re.MULTILINE)
        assert printed is not None
        incident = Path(printed[1])
        record = json.loads((incident / "incident.json").read_text())
        assert incident.name == record["id"]
        assert record["sealed"] is True
        assert record["reason"] == "RankDied"
        assert record["engine"] == engine
        assert record["summary"] in run.output
        assert [(f["rank"], f["cause"]) for f in record["failures"] if f["first"]] == [("TP2", "sigkill")]
        files = [str(path.relative_to(incident)) for path in incident.rglob("*") if path.is_file()]
        listing = run.output[printed.end() :]
        assert [name for name in files if name not in listing] == []
        stacks = {a["rank"] for a in record["artifacts"] if a["kind"].startswith("pyspy") and a["status"] == "captured"}
        assert stacks >= {"TP0", "TP1", "TP3"}
        assert "all_reduce" in run.output
        for step in ("died", "seen", "frozen", "captured", "killed", "gone", "sealed"):
            assert re.search(rf"^ +\d+\.\d ms  {step} ", run.output, re.MULTILINE), step
        assert re.search(r'rankguard_incidents_total\{reason="RankDied"\} +0 +1', run.output)
        assert re.search(r'rankguard_rank_deaths_total\{cause="sigkill"\} +0 +1', run.output)


def test_the_next_steps_work(tmp_path: Path) -> None:
    """The first command that it names to try next shows the incident."""
    with running(DEMO, tmp_path) as run:
        assert run.finish() == 0, run.output
        command = re.search(r"^ +rankguard (incidents show .*)$", run.output, re.MULTILINE)
        assert command is not None
        shown = subprocess.run(
            [sys.executable, "-m", "sidecar", *command[1].split()], capture_output=True, text=True, timeout=30
        )
        assert shown.returncode == 0, shown.stderr
        assert "TP2" in shown.stdout


def test_ctrl_c_cleans_up(tmp_path: Path) -> None:
    """Ctrl-C in the middle: status 130, no traceback, nothing left."""
    with running(DEMO, tmp_path) as run:
        run.read_until(r"The engine\n")
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 130
        assert "Interrupted" in run.output
        assert "Traceback" not in run.output
        assert run.left() == []


def test_a_killed_demo_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL to the demo itself: the engine goes at once, and the sidecar follows."""
    with running(DEMO, tmp_path) as run:
        run.read_until(r"What happens\n")
        run.process.kill()
        deadline = time.monotonic() + 10
        while left := run.left():
            assert time.monotonic() < deadline, left
            select.select([], [], [], 0.02)


def test_a_broken_promise_is_said(tmp_path: Path) -> None:
    """A rank that dies before the watch is complete: status 1, a line that says what was not as promised."""
    script = "from sidecar.demo.command import demo; raise SystemExit(demo('sglang', limit=30))"
    with running([sys.executable, "-u", "-c", script], tmp_path) as run:
        rank = run.read_until(r"TP3 +(\d+) ")
        os.kill(int(rank[1]), signal.SIGKILL)
        assert run.finish() == 1
        assert re.search(r"^Not as promised: ", run.output, re.MULTILINE)
        assert run.left() == []


def test_in_a_terminal(tmp_path: Path) -> None:
    """With a terminal of 80 columns no line is longer, and it ends with 0 too."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO: the last one closed the terminal
            while chunk := os.read(ours, 2**16):
                output += chunk
        assert process.wait(LIMIT) == 0, output.decode()
    os.close(ours)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("All as promised" in line for line in lines)
