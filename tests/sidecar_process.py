"""A real `rankguard run` for tests: started as by a user, read through its log and record, never left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sidecar.model import Identity
from sidecar.system.proc import Proc

PROC = Proc()


def identity_of(pid: int) -> Identity:
    """The identity of a living process. Raises `AssertionError` if there is none."""
    stat = PROC.stat(pid)
    assert stat is not None, f"no process {pid}"
    return stat.identity


def state_of(identity: Identity) -> str | None:
    """The state letter of exactly this process, or None if it is gone."""
    stat = PROC.stat(identity.pid)
    return stat.state if stat is not None and stat.identity == identity else None


def running(identity: Identity) -> bool:
    """Whether the process is there and no zombie."""
    return state_of(identity) not in (None, "Z", "X")


def kill_identity(identity: Identity, number: int = signal.SIGKILL) -> None:
    """Signal exactly this process, if it is still there."""
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if state_of(identity) is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def eventually(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Poll until `condition` holds and return what it gave. Raises `AssertionError` after `timeout` seconds.

    The longer it takes, the rarer the looks: by a tenth of what was waited, and by what a look takes. Who looks takes
    processor time from what is waited for, and a look through /proc, or with podman, takes much of it.
    """
    begin = time.monotonic()
    pause = threading.Event()
    while True:
        looked = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now - begin > timeout:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        pause.wait(max(0.005, min(0.05, (now - begin) / 10), min(0.5, now - looked)))


def descendants(pid: int) -> list[Identity]:
    """Every living descendant of a process, by identity."""
    parents: dict[int, list[int]] = {}
    identities: dict[int, Identity] = {}
    for other in PROC.pids():
        stat = PROC.stat(other)
        if stat is not None:
            parents.setdefault(stat.ppid, []).append(other)
            identities[other] = stat.identity
    found, queue = [], [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            found.append(identities[child])
            queue.append(child)
    return found


class Sidecar:
    """`rankguard run` with a dump folder and system-picked ports. Use as a context manager.

    `arguments` are further flags; `command` is what to wrap; `prefix` comes before our command and becomes it, or its
    parent. `lines` grows with the JSON log as it comes.
    """

    def __init__(
        self,
        dump_dir: Path,
        *arguments: str,
        command: Sequence[str] = (),
        env: dict[str, str] | None = None,
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        self.dump_dir = dump_dir
        self.lines: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._came = threading.Condition()
        self._ended = False
        argv = [
            *prefix, sys.executable, "-m", "sidecar", "run", "--log-format", "json", "--dump-dir", str(dump_dir),
            "--listen", listen, "--api-listen", "none", *arguments,
        ]  # fmt: skip
        if command:
            argv += ["--", *command]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean | (env or {}),
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            with self._came:
                try:
                    line = json.loads(raw)
                    assert isinstance(line, dict)
                    self.lines.append(line)
                except (ValueError, AssertionError):
                    self.noise.append(raw.decode(errors="replace"))
                self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def wait(self, event: str, timeout: float = 30.0, after: int = 0, **match: Any) -> dict[str, Any]:
        """The first log line from index `after` on with this event and these values. Raises `AssertionError`."""
        end = time.monotonic() + timeout
        with self._came:
            while True:
                for line in self.lines[after:]:
                    if line["event"] == event and all(line.get(k) == v for k, v in match.items()):
                        return line
                left = end - time.monotonic()
                if left <= 0 or self._ended:
                    raise AssertionError(f"no {event!r} {match}; the log:\n{self.log()}")
                self._came.wait(left)

    def events(self, event: str) -> list[dict[str, Any]]:
        with self._came:
            return [line for line in self.lines if line["event"] == event]

    def log(self) -> str:
        return "\n".join([json.dumps(line) for line in list(self.lines)] + self.noise)

    def wait_serving(self, timeout: float = 30.0) -> Sidecar:
        """Wait until the engine's ranks are complete and a recorder stands by."""
        self.wait("watching", timeout, state="serving")
        eventually(lambda: self.standby(), "a recorder that stands by", timeout)
        return self

    def standby(self) -> int:
        """The pid of a recorder whose start-up is over, 0 if there is none."""
        return self.worker("recorder") if self.events("recorder stands by") else 0

    def workers(self, kind: str) -> list[int]:
        """The pids of our workers of this kind (`guard`, `recorder`, `web`)."""
        found = []
        for identity in descendants(self.pid):
            words = PROC.cmdline(identity.pid)
            if f"sidecar.{kind}.__main__".encode() in words:
                found.append(identity.pid)
        return found

    def worker(self, kind: str) -> int:
        pids = self.workers(kind)
        return pids[0] if pids else 0

    def incidents(self) -> list[Path]:
        """The incident folders, oldest first."""
        if not self.dump_dir.is_dir():
            return []
        return sorted(p for p in self.dump_dir.iterdir() if p.is_dir() and (p / "incident.json").exists())

    def incident(self, timeout: float = 30.0) -> dict[str, Any]:
        """The one incident there is, once it is sealed. Raises `AssertionError` if there are more or none."""
        eventually(lambda: self.incidents(), f"an incident\n{self.log()}", timeout)

        def sealed() -> dict[str, Any] | None:
            record = load(self.incidents()[0])
            return record if record["sealed"] else None

        record = eventually(sealed, f"the incident sealed\n{self.log()}", timeout)
        assert len(self.incidents()) == 1, [p.name for p in self.incidents()]
        assert isinstance(record, dict)
        return record

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(timeout)

    def end(self) -> None:
        """Leave nothing of ours, whatever state it is in. In wrap mode the command's processes are ours too."""
        ours = descendants(self.pid) if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.kill()
        for identity in ours:
            kill_identity(identity)
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._reader.join(20)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()  # while somebody reads it, closing would wait for them


def load(folder: Path) -> dict[str, Any]:
    """The record of one incident. It is replaced atomically, so it is whole at any time."""
    record = json.loads((folder / "incident.json").read_text())
    assert isinstance(record, dict)
    return record


def events_of(record: dict[str, Any]) -> list[str]:
    """The timeline's events, in order."""
    return [entry["event"] for entry in record["timeline"]]
