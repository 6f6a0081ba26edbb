"""Start a stand-in engine, know each of its processes by identity, and leave none of them behind.

Whatever happens to the one who started it, nothing stays: the engine's processes have the kernel SIGKILL them when the
pipe to the server's stdin is hung up, even those that are stopped or have left the group. `kill_all` kills by pidfd
beside that, and waits.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sidecar.demo.layout import RANK_ROLES
from sidecar.demo.options import Options
from sidecar.errors import ProcessGone, RankguardError
from sidecar.model import Identity
from sidecar.system.pidfd import open_process, send
from sidecar.system.proc import Proc

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_SHM_NAME = re.compile(r"(psm_[0-9a-f]{8}|sem\.mp-[0-9a-z_]{8})")


class StandInError(RankguardError):
    """The stand-in engine did not do what was asked of it."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process that the engine announced. `role` as in `sidecar.model.Role`, or what kind of bystander it is."""

    pid: int
    start: int
    ppid: int
    role: str
    label: str

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start)


class StandIn:
    """A running stand-in engine. `options` are those of `sidecar.demo.options.Options`.

        with StandIn(engine="vllm", tp=4) as engine:
            engine.wait_ready()
            engine.kill("TP2")

    `prefix` is put before the engine's command (`[python, "-m", "sidecar", "run", ..., "--"]` for wrap mode); then
    `process` is what the prefix started, and it is given time to end by itself once the engine is gone.
    """

    def __init__(
        self,
        *,
        prefix: Sequence[str] = (),
        stderr: int | IO[Any] | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        Options(**options)  # a wrong name raises TypeError before anything is made
        self._folder = tempfile.mkdtemp(prefix="rankguard-standin-")
        control = os.path.join(self._folder, "control")
        os.mkfifo(control)
        # Opened both ways: a line written before the engine reads is kept, and opening waits for nobody.
        self._control = os.open(control, os.O_RDWR | os.O_CLOEXEC)
        self.options = Options(**{"control": control, "die_with_stdin": True, **options})
        self.processes: list[Process] = []
        self.server = 0
        self.port: int | None = None
        self.shm: list[str] = []
        self._pidfds: dict[Identity, int] = {}
        self._buffer = b""
        self._proc = Proc()
        environment = dict(os.environ if env is None else env)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_PACKAGE_ROOT, environment.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [*prefix, *engine_command(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        self._prefixed = bool(prefix)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()

    # Knowing.

    @property
    def ranks(self) -> list[Process]:
        """The processes that compute: schedulers, workers."""
        return [process for process in self.processes if process.role in RANK_ROLES]

    def find(self, label: str) -> Process:
        """The process with this label (`TP2`, `server`, `detokenizer`, `escaped`, ...). Raises `KeyError`."""
        for process in self.processes:
            if process.label == label:
                return process
        raise KeyError(label)

    def everyone(self) -> list[Identity]:
        """Everything that was announced, dead or alive."""
        return list(dict.fromkeys([process.identity for process in self.processes] + list(self._pidfds)))

    def alive(self) -> list[Process]:
        """What is announced and has not ended; a zombie has."""
        return [process for process in self.processes if not self._ended(process.identity)]

    def _ended(self, identity: Identity) -> bool:
        pidfd = self._pidfds.get(identity)
        return pidfd is None or bool(_readable([pidfd], 0))

    # Waiting.

    def wait_ready(self, timeout: float = 30.0) -> StandIn:
        """Wait until every process bears its last title. Raises as `wait_for` does."""
        self.wait_for("ready", timeout)
        return self

    def wait_for(self, event: str, timeout: float = 30.0) -> dict[str, Any]:
        """Read announcements up to `event` (see `engine`). Raises `StandInError`, also where there is none in time."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                announcement: dict[str, Any] = json.loads(line)
                self._note(announcement)
                if announcement["event"] == event:
                    return announcement
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not _readable([self.process.stdout.fileno()], left):
                raise StandInError(f"the stand-in engine did not say {event!r} within {timeout} s")
            chunk = os.read(self.process.stdout.fileno(), 2**16)
            if not chunk:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
                raise StandInError(f"the stand-in engine ended (status {self.process.poll()}) before {event!r}")
            self._buffer += chunk

    def wait_gone(self, timeout: float = 10.0) -> list[Process]:
        """Wait until everything announced has ended. Returns what has not after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (alive := self.alive()) and (left := deadline - time.monotonic()) > 0:
            _readable([self._pidfds[alive[0].identity]], left)
        return alive

    def _note(self, announcement: dict[str, Any]) -> None:
        self.server = announcement["server"]
        if "processes" not in announcement:
            return
        self.port = announcement["port"]
        self.shm = announcement["shm"]
        self.processes = [Process(**process) for process in announcement["processes"]]
        for process in self.processes:
            if process.identity not in self._pidfds:
                with suppress(ProcessGone):
                    self._pidfds[process.identity] = open_process(self._proc, process.identity)

    # Acting.

    def tell(self, *words: str) -> None:
        """Give the engine an order: `tell("title")`, `tell("work", "forward")`, `tell("exit", "TP1", "3")`.

        `tell("declare-dead")`: /health of vLLM says 503 from now on. `tell("close-port")`: it listens no more.
        """
        os.write(self._control, (" ".join(words) + "\n").encode())

    def work(
        self,
        work: str,
        label: str = "",
        *,
        running: int | None = None,
        waiting: int | None = None,
        endless: bool = False,
        wait: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Give the engine something to do. With `wait`, until every rank is in its place: not while one is stopped.

        `running` and `waiting` are how many requests its metrics count; not given, they stay as they were, as in a step
        that never ends. Raises as `wait_for`. `work` is one of

        `idle`     no requests; every rank waits for some.
        `serve`    requests run (2, if not said) and counters rise: some 25 light steps a second, in each of which a
                   rank is in the attention, then in an all-reduce until all are. A rank that is stopped stops it all.
                   A request ends every tenth step; with `endless` none does, so only what counts tokens at once rises.
        `prefill`  every rank spins in a synchronize: one long kernel.
        `spin`     the same, which is the point.
        `hang`     the rank `label` (the first, if not said) waits for a lock, the others for it in an all-reduce.
        `compile`  the rank `label` waits for a compiler, a process that burns CPU; the others in an all-reduce.
        """
        if self.options.light:
            raise StandInError("light ranks share one pipe for their orders: they know only idle and forward")
        if work == "serve" and running is None:
            running = 2
        numbers = {"running": running, "waiting": waiting, "endless": int(endless) or None}
        given = [f"{name}={number}" for name, number in numbers.items() if number is not None]
        self.tell("work", work, *filter(None, [label]), *given)
        while wait and self.wait_for("working", timeout)["work"] != work:
            pass

    def url(self, path: str) -> str:
        """The URL of a path of its HTTP server, which it has with the option `health_port` (0: any port)."""
        return f"http://127.0.0.1:{self.port}{path}"

    def kill(self, label: str, signum: int = signal.SIGKILL) -> float:
        """Signal a process by its pidfd. Returns the monotonic time just before. Raises `KeyError`, `ProcessGone`."""
        process = self.find(label)
        pidfd = self._pidfds.get(process.identity)
        at = time.monotonic()
        if pidfd is None or not send(pidfd, signum):
            raise ProcessGone(f"{label} ({process.pid}) is gone")
        return at

    def collect(self) -> None:
        """Collect what has ended and is our child: the server, and orphans where we are a subreaper. Waits for nothing.

        Else it stays a zombie until somebody does, and who watches the engine is right to say so.
        """
        self.process.poll()
        for process in self.processes:
            with suppress(ChildProcessError):
                if process.pid != self.process.pid:
                    os.waitpid(process.pid, os.WNOHANG)

    def kill_all(self, timeout: float = 10.0) -> None:
        """SIGKILL everything and wait until it has ended; then remove what it left. May be called twice.

        Raises `StandInError` where something cannot be killed within `timeout` seconds.
        """
        for pidfd in self._pidfds.values():
            send(pidfd, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()  # stdin: whatever was not announced dies of this
        left = self.wait_gone(timeout)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            # Our own child, not yet waited for: its pid and its group cannot be anybody else's.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])
        for name in self.shm:
            if _SHM_NAME.fullmatch(name):
                Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108
        self.shm = []
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        self._proc.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if left:
            raise StandInError(f"cannot be killed: {left}")


def engine_command(options: Options) -> list[str]:
    """The command that starts a stand-in engine; it needs the folder of the package `sidecar` on PYTHONPATH."""
    return [sys.executable, "-m", "sidecar.demo.engine", *options.to_arguments()]


def _readable(fds: list[int], seconds: float) -> list[int]:
    """Which of `fds` have something within `seconds`. Unlike `select` it takes any descriptor number."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]
