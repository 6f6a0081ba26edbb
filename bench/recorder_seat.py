"""In the guard's place: a real recorder, started as the supervisor starts it, told of one incident, heard at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.children import ROOT, Child
from bench.pump import Pump, now
from sidecar.errors import PeerGone
from sidecar.messages import Channel, Message
from sidecar.model import Action, Decision, Incident, PodInfo, RankProcess, Reason, plain
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.supervisor.children import argv_for

_STARTS, _ENDS = 20.0, 20.0
_ID = "20260101T000000.000Z-enginestalled"


@dataclass(frozen=True, slots=True)
class Heard:
    """A message, and when it came (monotonic)."""

    at: float
    message: Message


class RecorderSeat:
    """One recorder, standing by. A context manager that leaves no process behind."""

    def __init__(self, pump: Pump, dump_dir: str) -> None:
        self._pump = pump
        self._heard: list[Heard] = []
        self._gone = False
        settings = Settings(dump_dir=dump_dir, dump_max_age=None, log_format="json")
        launch = Launch(settings=settings, python=sys.executable, package_root=ROOT)
        launch_fd = launch_to_fd(launch)
        self._channel, theirs = Channel.pair()
        fds = (theirs.fileno(), launch_fd)
        try:
            self._child = Child(argv_for("recorder", launch, fds), fds, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        finally:
            theirs.close()
            os.close(launch_fd)
        pump.add(self._channel.fileno(), self._hear)

    def __enter__(self) -> RecorderSeat:
        self._until("standing_by", _STARTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
        self._channel.close()
        self._child.close()

    def capture(
        self, ranks: Sequence[RankProcess], captures: tuple[str, ...], seconds: float, frozen: bool, twice: bool
    ) -> tuple[float, list[Heard]]:
        """One incident's captures. Gives when they were asked for, and what was heard up to the last of them.

        Raises `Late` where the recorder goes over its deadline of `seconds`.
        """
        decision = Decision(Reason.ENGINE_STALLED, Action.KILL, captures, seconds, ("a benchmark",))
        incident = plain(Incident(_ID, Reason.ENGINE_STALLED, "generic", PodInfo(), decision))
        began = now()
        self._channel.send({
            "type": "begin", "incident": incident, "ranks": [plain(rank) for rank in ranks], "frozen": frozen,
            "resume": False, "seconds": seconds, "twice": twice,
        })  # fmt: skip
        self._until("captures_done", seconds + _ENDS)
        heard = list(self._heard)
        self._channel.send({"type": "seal", "incident": incident})
        self._until("sealed", _ENDS)
        return began, heard

    def _until(self, kind: str, seconds: float) -> None:
        def there() -> bool:
            return self._gone or any(heard.message["type"] == kind for heard in self._heard)

        self._pump.until(there, seconds, f"the recorder says {kind}")
        if self._gone and not any(heard.message["type"] == kind for heard in self._heard):
            raise PeerGone(f"the recorder ended before it said {kind}")

    def _hear(self, _: float) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                message, fds = received
                for fd in fds:
                    os.close(fd)
                self._heard.append(Heard(time.monotonic(), message))
        except PeerGone:
            self._gone = True
            self._drop()

    def _drop(self) -> None:
        self._pump.drop(self._channel.fileno())
