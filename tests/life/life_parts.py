"""What the tests of this folder share: an engine with a Rankguard beside it, a py-spy that never answers, /metrics."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from sidecar_process import Sidecar, descendants, eventually, identity_of, kill_identity, load, running, state_of

from sidecar.demo.standin import StandIn
from sidecar.model import Identity

# Small and fast: what these tests are about is Rankguard, not the engine.
SMALL = {"tp": 2, "light": True, "detokenizer": False}


@contextmanager
def watched(
    dump_dir: Path, *arguments: str, python: str = sys.executable, ready: bool = True, **options: Any
) -> Iterator[tuple[StandIn, Sidecar]]:
    """A stand-in engine (`options` beside `SMALL`) and a Rankguard that watches this engine alone, both serving.

    `python`: the interpreter that Rankguard runs with. `ready` False: wait for neither.
    """
    # The server keeps its pid through its exec, so both can start at the same time.
    with (
        StandIn(**{**SMALL, **options}) as engine,
        run_with(python, dump_dir, "--root-pid", str(engine.process.pid), *arguments) as sidecar,
    ):
        if ready:
            engine.wait_ready()
            sidecar.wait_serving()
        yield engine, sidecar


def run_with(python: str, dump_dir: Path, *arguments: str, **more: Any) -> Sidecar:
    """A `Sidecar` with another interpreter than the tests'."""
    ours = sys.executable
    sys.executable = python
    try:
        return Sidecar(dump_dir, *arguments, **more)
    finally:
        sys.executable = ours


@contextmanager
def hanging_pyspy(folder: Path) -> Iterator[str]:
    """An interpreter, as in a virtual environment of its own, with a `py-spy` beside it that never answers.

    So a frozen engine stays frozen until a deadline, however slow or fast this machine is. At the end (and at ours) the
    kernel ends each such py-spy, since what it waits for is the other end of a pipe.
    """
    home = folder / "hanging"
    (home / "bin").mkdir(parents=True)
    prefix = Path(sys.prefix)
    if (prefix / "pyvenv.cfg").exists():
        (home / "pyvenv.cfg").write_text((prefix / "pyvenv.cfg").read_text())
        (home / "lib").symlink_to(prefix / "lib")
        (home / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    else:  # an installation without a virtual environment: one that sees it
        cfg = f"home = {Path(sys.executable).resolve().parent}\ninclude-system-site-packages = true\n"
        (home / "pyvenv.cfg").write_text(cfg)
        (home / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    gate = home / "gate"
    os.mkfifo(gate)
    program = home / "bin" / "py-spy"
    program.write_text(f"#!/bin/sh\nread -r line < '{gate}'\n")
    program.chmod(0o755)
    held = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield str(home / "bin" / "python")
    finally:
        os.close(held)


class Wrapped(StandIn):
    """A stand-in engine under `rankguard run … --`, up and watched. `process` is the supervisor.

    `arguments` are further flags, `options` those of the engine beside `SMALL`.
    """

    def __init__(self, dump_dir: Path, *arguments: str, **options: Any) -> None:
        self.dump_dir = dump_dir
        dump_dir.mkdir(exist_ok=True)
        self._log = dump_dir.with_suffix(".log")
        with self._log.open("wb") as log:
            super().__init__(prefix=wrapping(dump_dir, *arguments), stderr=log, **{**SMALL, **options})
        try:
            self.wait_ready()
            # Ready is what it says of itself; that Rankguard has seen each rank with its title is another matter.
            eventually(self._watched, f"the engine watched\n{self.log()}")
        except BaseException:
            self.kill_all()
            raise

    def _watched(self) -> bool:
        labels = {line["rank"] for line in self.lines() if line["event"] == "rank"}
        return labels >= {rank.label for rank in self.ranks} and bool(self.events("recorder stands by"))

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The log so far; a line that is being written is left out."""
        found = []
        for text in self.log().splitlines():
            with suppress(ValueError):
                found.append(json.loads(text))
        return found

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    def record(self) -> dict[str, Any]:
        """The one incident, sealed, since nothing of ours runs any more."""
        folders = [path.parent for path in self.dump_dir.glob("*/incident.json")]
        assert len(folders) == 1, folders
        record = load(folders[0])
        assert record["sealed"], self.log()
        return record


def wrapping(dump_dir: Path, *arguments: str) -> list[str]:
    """The command line that wraps what follows, with no port."""
    return [
        sys.executable, "-m", "sidecar", "run", "--log-format", "json", "--dump-dir", str(dump_dir),
        "--listen", "none", "--api-listen", "none", *arguments, "--",
    ]  # fmt: skip


class Ranks:
    """An engine of bare processes with a title of their own, in sessions of their own, restarted as often as one likes.

    `flags` tell a Rankguard to watch these and nothing else on this machine. Use as a context manager.
    """

    def __init__(self, count: int = 2) -> None:
        self.token = f"rank-{uuid.uuid4().hex}"
        self.count = count
        self.flags = (
            "--engine", "generic", "--rank-pattern", rf"^{self.token} TP(?P<TP>\d+)\b", "--expected-ranks", str(count),
        )  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def start(self) -> list[Identity]:
        """Start a generation; the one before must be gone. Returns its identities, TP0 first."""
        self.collect()
        self.processes = [
            subprocess.Popen([f"{self.token} TP{n}", "600"], executable="/bin/sleep", start_new_session=True)
            for n in range(self.count)
        ]
        return [identity_of(process.pid) for process in self.processes]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        self.processes[rank].send_signal(number)

    def collect(self, timeout: float = 20.0) -> list[int]:
        """Wait until all have ended, and collect them. Their statuses as `Popen.returncode`."""
        return [process.wait(timeout) for process in self.processes]


# Asking.


def port_of(sidecar: Sidecar) -> int:
    """The machines' port."""
    return int(sidecar.wait("listening", process="supervisor")["listen"].rpartition(":")[2])


def ask(port: int, path: str, timeout: float = 30.0) -> tuple[int, str]:
    """Status and body of a GET. A web that is ended while it answers is asked again: the port itself stays open."""

    def once() -> tuple[int, str] | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
            return None if body == "the web process is being started\n" else (answer.status, body)
        except (ConnectionError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    answer: tuple[int, str] = eventually(once, f"an answer of {path}", timeout)
    return answer


def metric(sidecar: Sidecar, name: str, **labels: str) -> float:
    """The sum of all samples `rankguard_<name>` with these labels, as /metrics has them now."""
    _, text = ask(port_of(sidecar), "/metrics")
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"rankguard_{name}" and labels.items() <= sample.labels.items()
    )


def await_metric(sidecar: Sidecar, value: float, name: str, **labels: str) -> None:
    """Wait until /metrics says so."""
    seen = [0.0]

    def right() -> bool:
        seen[0] = metric(sidecar, name, **labels)
        return seen[0] == value

    try:
        eventually(right, "", 8.0)
    except AssertionError:
        raise AssertionError(f"{name} {labels} is {seen[0]}, not {value}\n{sidecar.log()}") from None


# Judging.


def stopped(identities: list[Identity]) -> list[Identity]:
    """Which of these processes stand still by a signal."""
    return [identity for identity in identities if state_of(identity) in ("T", "t")]


def await_frozen(engine: StandIn) -> None:
    """Wait until every living process of the engine stands still."""

    def frozen() -> bool:
        alive = [process.identity for process in engine.alive()]
        return bool(alive) and stopped(alive) == alive

    eventually(frozen, "the engine frozen")


def assert_killed_once(engine: StandIn, sidecar: Sidecar, rank: str = "TP1", counted: bool = True) -> dict[str, Any]:
    """The engine is gone, and there is one sealed incident about this rank's SIGKILL, counted once. Returns it."""
    assert engine.wait_gone(20) == [], f"still there:\n{sidecar.log()}"
    record = sidecar.incident()
    first = [failure for failure in record["failures"] if failure["first"]]
    assert [(failure["rank"], failure["signal"], failure["cause"]) for failure in first] == [(rank, 9, "sigkill")]
    assert record["reason"] == "RankDied"
    assert record["termination"] is not None
    if counted:
        # The guard tells in order, and this is the last that it tells of an incident but for the volume's size.
        await_metric(sidecar, 1, "terminations_total")
        assert_counted_once(sidecar)
    assert [folder.name for folder in sidecar.incidents()] == [record["id"]]
    return record


def assert_counted_once(sidecar: Sidecar) -> None:
    """One death, one incident."""
    deaths, incidents = metric(sidecar, "rank_deaths_total"), metric(sidecar, "incidents_total")
    assert (deaths, incidents) == (1, 1), f"{deaths} deaths and {incidents} incidents counted\n{sidecar.log()}"
    assert metric(sidecar, "rank_deaths_total", cause="sigkill") == 1
    assert metric(sidecar, "rank_deaths_by_rank_total", rank="TP1") == 1
    assert metric(sidecar, "incidents_total", reason="RankDied") == 1


def new_worker(sidecar: Sidecar, kind: str, old: Identity) -> Identity:
    """The worker that has taken the place of `old`."""

    def other() -> Identity | None:
        found = [i for i in descendants(sidecar.pid) if i.pid in sidecar.workers(kind) and i != old]
        return found[0] if found else None

    identity: Identity = eventually(other, f"a new {kind}\n{sidecar.log()}")
    return identity


@contextmanager
def whole_tree(sidecar: Sidecar) -> Iterator[list[Identity]]:
    """The identities of all of this Rankguard's processes; at the end they are killed, even with the supervisor gone.

    `Sidecar` finds them as descendants, which orphans are not.
    """
    tree = [identity_of(sidecar.pid), *descendants(sidecar.pid)]
    with ExitStack() as stack:
        for identity in tree:
            stack.callback(kill_identity, identity)
        yield tree


def await_ended(identities: list[Identity], what: str) -> None:
    """Wait until none of these runs."""
    with suppress(ChildProcessError):
        eventually(lambda: not [i for i in identities if running(i)], what, 20.0)
