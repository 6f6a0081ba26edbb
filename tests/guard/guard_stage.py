"""A guard process with the test as its supervisor, its web and its recorder, beside a real engine.

The supervisor's dead man's switch is the real one. The recorder takes nothing: the test says when captures are done and
when the record is sealed, so each phase lasts as long as the test wants.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidecar_process import PROC, identity_of

from sidecar.demo.standin import StandIn
from sidecar.errors import PeerGone
from sidecar.log import Log
from sidecar.messages import Channel, Message
from sidecar.model import Identity, Liveness, Verdict, plain, plan_from, rank_process_from
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.supervisor.children import argv_for
from sidecar.supervisor.switch import Switch

ROOT = str(Path(__file__).resolve().parents[2])
STUCK = Verdict(Liveness.STUCK, ("TP1 is stopped", "2 requests run"), ("TP1",), 31.0)
DEAD = Verdict(Liveness.DEAD, ("the health check failed 3 times in a row",), (), 31.0)
BUSY = Verdict(Liveness.BUSY, ("TP1 moved",))


class Recorder:
    """The end of one recorder's channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def say(self, kind: str, **fields: Any) -> None:
        assert self.channel.send({"type": kind, **fields})


class Stage:
    """`control`, `web` and `recorded` are all messages so far of the guard to its supervisor, its web, its recorders.

    `lent` are the descriptors that came with each `begin`. Use as a context manager; `engine` is the test's own to end.
    """

    def __init__(self, folder: Path, engine: StandIn, **settings: Any) -> None:
        self.engine = engine
        root = engine.process.pid
        told = {"root_pid": root, "dump_dir": str(folder), "log_format": "json", "captures": ("process",), **settings}
        self.settings = Settings(**told)
        self._launch = Launch(
            settings=self.settings, python=sys.executable, package_root=ROOT, root_start=identity_of(root).start
        )
        self._launch_fd = launch_to_fd(self._launch)
        self._beat_fd = os.memfd_create("heartbeat", os.MFD_CLOEXEC)
        os.ftruncate(self._beat_fd, mmap.PAGESIZE)
        os.pwrite(self._beat_fd, struct.pack("d", time.monotonic()), 0)
        self._log_path = folder / "guard.log"
        self.control: list[Message] = []
        self.web: list[Message] = []
        self.recorded: list[Message] = []
        self.lent: list[tuple[int, ...]] = []
        self.switch = Switch(PROC, Log("supervisor", "json", -1))
        self.journal: Message | None = None
        self._remembered: Message = {}
        self._since = 0  # the index in `recorded` at which this guard's words begin
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: dict[str, Channel] = {}

    def __enter__(self) -> Stage:
        self.start()
        self.serving()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_guard()
        self.switch.forget(list(self.switch.ranks))
        for fd in (fd for fds in self.lent for fd in fds):
            os.close(fd)
        os.close(self._launch_fd)
        os.close(self._beat_fd)

    # The guard's life.

    def start(self, journal: Message | None = None) -> None:
        """Start a guard as the supervisor does, with what it was told so far, a web, and a recorder that stands by."""
        self._since = len(self.recorded)
        ours, theirs = Channel.pair()
        fds = (theirs.fileno(), self._launch_fd, self._beat_fd)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                argv_for("guard", self._launch, fds), pass_fds=fds, stdin=subprocess.DEVNULL, stderr=log
            )
        theirs.close()
        self._channels["control"] = ours
        held = list(self.switch.ranks.values())
        if held:
            assert ours.send({"type": "ranks", "ranks": [plain(rank) for rank, _ in held]}, tuple(fd for _, fd in held))
        journal = journal if journal is not None else self.journal
        hello = {
            "type": "hello", "journal": journal, "fired": self.switch.fired, "engine_root": None,
            "root_wait_status": None, "drained": False, **self._remembered,
        }  # fmt: skip
        assert ours.send(hello)
        self._introduce("web")
        self.new_recorder()

    def new_recorder(self) -> None:
        """A recorder stands by; one before is gone."""
        self._introduce("recorder")
        self.recorder.say("standing_by", dump_bytes=0, free_bytes=1 << 30, unfinished=[])

    @property
    def recorder(self) -> Recorder:
        return Recorder(self._channels["recorder"])

    def lose_recorder(self) -> None:
        self._channels.pop("recorder").close()

    @property
    def guard_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill_guard(self) -> None:
        """SIGKILL, and what the supervisor does then. What it had said is heard; its channels are gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(20)
        self._process = None
        while self._hear(0.0):
            pass
        self.switch.fire("the guard has died")
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _introduce(self, kind: str) -> None:
        if kind in self._channels:
            self._channels.pop(kind).close()
        ours, theirs = Channel.pair()
        self._channels[kind] = ours
        assert self._channels["control"].send({"type": kind}, (theirs.fileno(),))
        theirs.close()

    # Hearing.

    def _hear(self, seconds: float) -> bool:
        """Take what waits, or comes within so many seconds. Whether anything came."""
        poll = select.poll()
        names = {channel.fileno(): name for name, channel in self._channels.items()}
        for fd in names:
            poll.register(fd, select.POLLIN)
        came = False
        for fd, _ in poll.poll(seconds * 1000):
            name = names[fd]
            try:
                while (received := self._channels[name].receive()) is not None:
                    came = True
                    self._take(name, *received)
            except PeerGone:
                self._channels.pop(name).close()
        return came

    def _take(self, name: str, message: Message, fds: list[int]) -> None:
        if name == "control":
            self._supervise(message, fds)
            self.control.append(message)
        elif name == "web":
            if message["type"] == "event":
                self._channels["web"].send({"type": "ack", "seq": message["seq"], "epoch": message["epoch"]})
            self.web.append(message)
        else:
            self.recorded.append(message)
            if message["type"] == "begin":
                self.lent.append(tuple(fds))

    def _supervise(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        if kind == "watch":
            self.switch.watch((rank_process_from(rank) for rank in message["ranks"]), fds)
        elif kind == "forget":
            self.switch.forget(Identity(**identity) for identity in message["identities"])
        elif kind == "arm":
            self.switch.arm(message["incident"], plan_from(message["plan"]), message["deadline"])
        elif kind == "disarm":
            self.switch.disarm(message["incident"])
        elif kind == "remember":
            self._remembered = {name: value for name, value in message.items() if name != "type"}
        elif kind == "journal":
            if message["incident"] is not None:
                self.journal = message
            elif self.journal is not None and self.journal["incident"]["id"] == message["closed"]:
                self.journal = None
                self.switch.fired = False

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """Hear until `condition` holds, and return what it gave. Raises `AssertionError`."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.log()}"
            self._hear(0.05)
            assert self._process is None or self._process.poll() is None, f"the guard has ended\n{self.log()}"
        return value

    def heard(self, where: str, kind: str, after: int = 0, **match: Any) -> Message:
        """The first message of this kind and these values, from index `after` on, now or when it comes."""
        said: list[Message] = getattr(self, where)

        def found() -> Message | None:
            fitting = (m for m in said[after:] if m["type"] == kind and match.items() <= m.items())
            return next(fitting, None)

        message: Message = self.until(found, f"{kind} {match} to {where}")
        return message

    def log(self) -> str:
        return self._log_path.read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    # Speaking.

    def tell(self, **message: Any) -> None:
        """As the web."""
        assert self._channels["web"].send(message)

    def verdict(self, verdict: Verdict, about: list[Identity] | None = None) -> None:
        ranks = [plain(identity) for identity in (self.identities() if about is None else about)]
        self.tell(type="liveness", verdict=plain(verdict), probe="progress", ranks=ranks)

    def hook(self, number: int, deletion: bool = False, running: bool = True, group: str = "") -> None:
        self.tell(type="hook", hook=number, deletion=deletion, failing=False, running=running, group=group)

    def settled(self) -> None:
        """All that was told the guard before this was handled: a web's words are taken in order."""
        before = len(self.events("a message of the web makes no sense"))
        self.tell(type="hook")
        self.until(lambda: len(self.events("a message of the web makes no sense")) > before, "the guard's word")

    # Knowing.

    def identities(self) -> list[Identity]:
        return [rank.identity for rank in self.engine.ranks]

    def serving(self) -> None:
        """Wait until the guard takes the engine for complete and has a recorder."""
        self.until(lambda: any(m["type"] == "state" and m["state"] == "serving" for m in self.web), "serving")
        self.until(lambda: self.events("recorder stands by"), "the recorder known")

    def incidents(self) -> list[str]:
        """The ids of all incidents so far, in order."""
        ids = [m["incident"]["id"] for m in self.control if m["type"] == "journal" and m["incident"] is not None]
        return list(dict.fromkeys(ids))

    def counted(self, name: str) -> int:
        """How many events of this name the web has counted: one with the same number is the same."""
        return len({(m["epoch"], m["seq"]) for m in self.web if m["type"] == "event" and m["name"] == name})

    def seal(self, incident: str) -> Message:
        """Wait for the last word about an incident and seal it. Returns that word."""
        said: Message = self.until(
            lambda: next((m for m in reversed(self.recorded[self._since :])
                          if m["type"] == "seal" and m["incident"]["id"] == incident), None),
            "the record's last word",
        )["incident"]  # fmt: skip
        self.recorder.say("sealed", id=incident, dump_bytes=1, free_bytes=1)
        self.until(lambda: any(m.get("closed") == incident for m in self.control), "the incident closed")
        return said


@contextmanager
def staged(folder: Path, prefix: Sequence[str] = (), **settings: Any) -> Iterator[Stage]:
    """A small engine that runs, and a guard that watches it and nothing else. `prefix` comes before its command, and
    becomes it in the end.
    """
    with StandIn(prefix=prefix, tp=2, light=True, detokenizer=False) as engine:
        engine.wait_ready()
        with Stage(folder, engine, **settings) as stage:
            yield stage
