"""A real recorder process, started as the supervisor starts it, and real Python processes to be captured."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sidecar.errors import PeerGone
from sidecar.messages import Channel, Message
from sidecar.model import (
    Action,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Identity,
    Incident,
    Member,
    PodInfo,
    RankProcess,
    Reason,
    Role,
    TimelineEntry,
    plain,
)
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.system.proc import Proc

ROOT = Path(__file__).resolve().parents[2]
ID = "20261120T235959.123Z-rankdied-tp3"
START = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from sidecar.recorder.__main__ import main; main(*map(int, sys.argv[2:]))"
)
RANK = """
import sys, threading
def waits_in_a_collective(line):
    while True:
        line.wait()
def runs_the_scheduler_loop():
    waits_in_a_collective(threading.Event())
def polls_in_the_background(line):
    line.wait()
threading.Thread(target=polls_in_the_background, args=(threading.Event(),), name="watchdog", daemon=True).start()
print("ready", flush=True)
runs_the_scheduler_loop()
"""


PROC = Proc()  # one for all looks: each holds a descriptor


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Look until it is so; there is nothing to be woken by."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come in time"
        select.select([], [], [], 0.005)
    return value


class Ranks:
    """Real Python processes with known functions on their stacks."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, code: str = RANK, env: dict[str, str] | None = None) -> Identity:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=None if env is None else env
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return identity_of(process.pid)

    def stop(self, identity: Identity) -> None:
        os.kill(identity.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(identity.pid) == "T")

    def kill(self, identity: Identity) -> None:
        """Kill and reap."""
        process = next(p for p in self._processes if p.pid == identity.pid)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def identity_of(pid: int) -> Identity:
    stat = PROC.stat(pid)
    assert stat is not None
    return stat.identity


def state_of(pid: int) -> str:
    stat = PROC.stat(pid)
    return stat.state if stat else ""


def rank_process(identity: Identity, rank: str, role: Role = Role.SCHEDULER, title: str = "") -> RankProcess:
    return RankProcess(identity, role, rank, title or f"sglang::scheduler_{rank}", 1, identity.pid, identity.pid)


def member(identity: Identity, comm: str = "helper", role: str = "", rank: str = "") -> Member:
    return Member(identity, identity.pid, identity.pid, 1, comm, role, rank)


def incident(
    captures: tuple[str, ...] = ("process", "pyspy"), members: tuple[Member, ...] = (), **changes: Any
) -> Incident:
    now, wall = time.monotonic(), time.time()
    status = ExitStatus(signal=9)
    failure = Failure(Role.SCHEDULER, "TP3", 4242, 777, status, Cause.SIGKILL, now, wall, seen_by="pidfd")
    content: dict[str, Any] = {
        "id": ID,
        "reason": Reason.RANK_DIED,
        "engine": "sglang",
        "pod": PodInfo("prod", "llama-0", "uid-1", "node-a"),
        "decision": Decision(Reason.RANK_DIED, Action.KILL, captures, 3.0, ("TP3 killed by signal 9",)),
        "failures": (failure,),
        "timeline": (TimelineEntry(now, wall, "died", "TP3"),),
        "members": members,
    }
    return Incident(**{**content, **changes})


class Rig:
    """One recorder and the guard's end of its channel."""

    def __init__(self, dump_dir: Path, python: str = sys.executable, history_fd: int = -1, **settings: Any) -> None:
        self.dump_dir = dump_dir
        ours, theirs = Channel.pair()
        self.channel = ours
        settings.setdefault("dump_max_age", None)  # the incidents' ids are of one day for ever
        launch = Launch(settings=Settings(dump_dir=str(dump_dir), **settings), python=python, package_root=str(ROOT))
        launch_fd = launch_to_fd(launch)
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    START,
                    str(ROOT),
                    str(theirs.fileno()),
                    str(launch_fd),
                    str(history_fd),
                ],
                pass_fds=(theirs.fileno(), launch_fd, *((history_fd,) if history_fd >= 0 else ())),
                stderr=subprocess.PIPE,
            )
        finally:
            theirs.close()
            os.close(launch_fd)
        self.heard: list[Message] = []
        self._log = ""

    def receive(self, seconds: float = 10.0) -> Message:
        """The next message. Raises `PeerGone` where the recorder has left."""
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        assert poll.poll(seconds * 1000), f"nothing heard; before that: {self.heard}"
        received = self.channel.receive()
        assert received is not None
        self.heard.append(received[0])
        return received[0]

    def until(self, kind: str, seconds: float = 10.0) -> list[Message]:
        """All messages up to the first of this kind, that one last."""
        deadline = time.monotonic() + seconds
        messages: list[Message] = []
        while not messages or messages[-1]["type"] != kind:
            messages.append(self.receive(max(0.0, deadline - time.monotonic())))
        return messages

    def begin(
        self,
        what: Incident,
        ranks: list[RankProcess],
        frozen: bool = True,
        seconds: float = 3.0,
        resume: bool = False,
        twice: bool = False,
        logs: tuple[int, ...] = (),
    ) -> None:
        """`logs`: descriptors of termination logs; they stay the test's own."""
        assert self.channel.send(
            {
                "type": "begin",
                "incident": plain(what),
                "ranks": [plain(rank) for rank in ranks],
                "frozen": frozen,
                "resume": resume,
                "seconds": seconds,
                "twice": twice,
            },
            logs,
        )

    def say(self, kind: str, what: Incident) -> None:
        assert self.channel.send({"type": kind, "incident": plain(what)})

    def seal(self, what: Incident, seconds: float = 10.0) -> list[Message]:
        """Seal, and wait for the recorder's end; gives all that was heard meanwhile."""
        self.say("seal", what)
        messages = self.until("sealed", seconds)
        assert self.process.wait(5) == 0
        return messages

    def drain(self, seconds: float = 10.0) -> list[Message]:
        """Everything up to the recorder's end."""
        messages = []
        deadline = time.monotonic() + seconds
        with contextlib.suppress(PeerGone):
            while True:
                messages.append(self.receive(max(0.0, deadline - time.monotonic())))
        return messages

    def whole_record(self, incident_id: str = ID) -> dict[str, Any]:
        """As it stands, once it is there: the captures may be done before its first writing is."""
        path = self.dump_dir / incident_id / "incident.json"
        wait_for(path.exists)
        return json.loads(path.read_bytes())

    def record(self, incident_id: str = ID) -> dict[str, Any]:
        """Without the artifacts that the analysis makes of the others, which have tests of their own."""
        record = self.whole_record(incident_id)
        record["artifacts"] = [a for a in record["artifacts"] if not a["kind"].startswith("analysis_")]
        return record

    def text(self, path: str, incident_id: str = ID) -> str:
        return (self.dump_dir / incident_id / path).read_text()

    def close(self) -> str:
        """End it, whatever it does; gives its log."""
        self.channel.close()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            with self.process.stderr:
                self._log = self.process.stderr.read().decode()
        self.process.wait(5)
        return self._log


Start = Callable[..., Rig]


def artifacts(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The record's artifacts by kind and rank; each stands there once."""
    found = {(a["kind"], a["rank"]): a for a in record["artifacts"]}
    assert len(found) == len(record["artifacts"])
    return found


def all_bytes(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
