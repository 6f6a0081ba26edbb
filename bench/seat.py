"""In the supervisor's place: start a real guard as the supervisor does, hold its channel, hear what it reports.

The guard's journal carries every failure with the monotonic time at which it was observed; its arrival here is when
the guard had taken it in, opened or extended the incident, and told.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from bench.children import ROOT, Child
from bench.pump import Pump
from bench.usage import Used, used
from sidecar.errors import PeerGone
from sidecar.messages import Channel
from sidecar.model import Action
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.supervisor.children import argv_for

_HELLO = {"type": "hello", "journal": None, "fired": False, "engine_root": None, "root_wait_status": None,
          "drained": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """A death as the guard reported it. `at`: when it was observed, NaN where the report did not say; `told`: when
    the report arrived. Both monotonic. `used`: what the guard had used in its life by then.
    """

    at: float
    told: float
    by: str
    used: Used


def launch_for(dump_dir: str, rank_pattern: str, masked: tuple[str, ...] = (),
               listen_fds: dict[str, tuple[int, ...]] | None = None) -> Launch:  # fmt: skip
    """What the guard and the web get: every death recorded, nothing signalled, nothing captured."""
    settings = Settings(
        engine="generic", rank_pattern=rank_pattern, on_rank_death=Action.OBSERVE, captures=(), dump_dir=dump_dir,
        mask_features=masked, log_format="json", api_listen=None,
    )  # fmt: skip
    return Launch(settings=settings, python=sys.executable, package_root=ROOT, listen_fds=listen_fds or {})


class GuardSeat:
    """A running guard. `watched` are the pids that it has said to watch, `seen` the deaths by pid.

    `closed` collects what guards of this seat have used. A context manager.
    """

    def __init__(self, pump: Pump, launch: Launch) -> None:
        self.watched: set[int] = set()
        self.seen: dict[int, Seen] = {}
        self._rank_pids: dict[str, int] = {}
        self._pump = pump
        self._launch_fd = launch_to_fd(launch)
        heartbeat = os.memfd_create("rankguard-heartbeat", os.MFD_CLOEXEC)
        os.ftruncate(heartbeat, mmap.PAGESIZE)
        with mmap.mmap(heartbeat, mmap.PAGESIZE) as beat:
            beat[:8] = struct.pack("d", time.monotonic())
        self._channel, theirs = Channel.pair()
        fds = (theirs.fileno(), self._launch_fd, heartbeat)
        self._child = Child(argv_for("guard", launch, fds), fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)  # fmt: skip
        theirs.close()
        os.close(heartbeat)
        assert self._child.process.stderr is not None
        self._log_fd = self._child.process.stderr.fileno()
        pump.add(self._channel.fileno(), self._hear)
        pump.add_lines(self._log_fd, self._log_line)
        self._channel.send(_HELLO)

    @property
    def pid(self) -> int:
        return self._child.pid

    def used(self) -> Used:
        return used(self.pid)

    def introduce(self, web: Channel) -> None:
        """Connect it with a web process, as the supervisor does."""
        guards, webs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with guards, webs:
            web.send({"type": "guard"}, (webs.fileno(),))
            self._channel.send({"type": "web"}, (guards.fileno(),))

    def __enter__(self) -> GuardSeat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pump.drop(self._channel.fileno())
        self._pump.drop(self._log_fd)
        self._child.close()
        self._channel.close()
        os.close(self._launch_fd)

    def _hear(self, at: float) -> None:
        try:
            received = self._channel.receive()
        except PeerGone:
            self._pump.drop(self._channel.fileno())
            return
        if received is None:
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if message["type"] == "watch":
            for rank in message["ranks"]:
                self.watched.add(rank["identity"]["pid"])
                self._rank_pids[rank["rank"]] = rank["identity"]["pid"]
        elif message["type"] == "journal" and message["incident"] is not None:
            for failure in message["incident"]["failures"]:
                known = self.seen.get(failure["pid"])
                if known is None:
                    self.seen[failure["pid"]] = Seen(failure["at"], at, failure["seen_by"], self.used())
                elif math.isnan(known.at):
                    self.seen[failure["pid"]] = replace(known, at=failure["at"], by=failure["seen_by"])

    def _log_line(self, text: str, at: float) -> None:
        """A death between two incidents is in the log alone, without the time of its observation."""
        if not text.startswith("{"):
            return
        entry = json.loads(text)
        if entry.get("event") == "rank died":
            pid = self._rank_pids.get(entry.get("rank", ""))
            if pid is not None and pid not in self.seen:
                self.seen[pid] = Seen(math.nan, at, "log", self.used())


class WebSeat:
    """A real web process on a port of loopback that the system picked. With `busy` a thread of it parses JSON."""

    def __init__(self, launch: Launch, busy: bool) -> None:
        self._launch_fd = launch_to_fd(launch)
        self.channel, theirs = Channel.pair()
        listening = tuple(fd for fds in launch.listen_fds.values() for fd in fds)
        argv = argv_for("web", launch, (theirs.fileno(), self._launch_fd))
        if busy:
            at = argv.index("-c") + 1
            argv[at] = argv[at].replace("sidecar.web.__main__", "bench.programs.busy_web")
        self._child = Child(argv, (theirs.fileno(), self._launch_fd, *listening), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        theirs.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def __enter__(self) -> WebSeat:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
        self.channel.close()
        os.close(self._launch_fd)


def loopback_port() -> tuple[socket.socket, int]:
    """A listening socket on a free port of loopback, and the port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock, sock.getsockname()[1]
