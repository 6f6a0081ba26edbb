"""The guard's channels to the other processes. None of them can hold it up: what does not fit is kept or dropped."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from sidecar.errors import PeerGone
from sidecar.log import Log
from sidecar.messages import Channel, Message

_KEPT_EVENTS = 10_000


class WebLink:
    """Events to be counted exactly once, and the last state. Both outlive the web: a new one is told again.

    An event's `epoch` is the incident's id where it belongs to one, so that a new guard that takes an incident up
    again and repeats its events is not counted twice; else this guard's own.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._epoch = uuid.uuid4().hex[:12]
        self._seq: dict[str, int] = {}
        self._unacknowledged: deque[Message] = deque(maxlen=_KEPT_EVENTS)
        self._channel: Channel | None = None
        self._state: Message | None = None
        self._unsent = 0

    def connect(self, channel: Channel) -> None:
        self.disconnect()
        self._channel = channel
        self._send_state()
        self._unsent = len(self._unacknowledged)
        self.flush()

    def disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def channel(self) -> Channel | None:
        return self._channel

    def event(self, name: str, epoch: str = "", **details: Any) -> None:
        epoch = epoch or self._epoch
        self._seq[epoch] = self._seq.get(epoch, 0) + 1
        message = {"type": "event", "seq": self._seq[epoch], "epoch": epoch, "name": name, **details}
        if len(self._unacknowledged) == _KEPT_EVENTS:
            self._log("an event was lost: the web has taken none for too long")
        self._unacknowledged.append(message)
        self._unsent = min(self._unsent + 1, len(self._unacknowledged))
        self.flush()

    def close_epoch(self, epoch: str) -> None:
        self._seq.pop(epoch, None)

    def state(self, message: Message) -> None:
        self._state = message
        self._send_state()

    def acknowledged(self, epoch: str, seq: int) -> None:
        self._unacknowledged = deque(
            (m for m in self._unacknowledged if m["epoch"] != epoch or m["seq"] > seq), maxlen=_KEPT_EVENTS
        )
        self._unsent = min(self._unsent, len(self._unacknowledged))

    def flush(self) -> None:
        """Send what has not been sent. What does not fit waits for the next call."""
        while self._channel is not None and self._unsent:
            message = self._unacknowledged[len(self._unacknowledged) - self._unsent]
            if not self._try(message):
                return
            self._unsent -= 1

    def hook_done(self, hook: int, detail: str) -> None:
        """The caller of a hook may be answered. One that is lost with the web is asked again, or was given up."""
        self._try({"type": "hook_done", "hook": hook, "detail": detail})

    def _send_state(self) -> None:
        if self._channel is not None and self._state is not None:
            self._try(self._state)

    def _try(self, message: Message) -> bool:
        if self._channel is None:
            return False
        try:
            return self._channel.send(message)
        except PeerGone:
            return False  # the loop sees the hang-up


class RecorderLink:
    """One recorder: standing by, at work on an incident, or gone."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.alive = True
        self.begun = False

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """False if the recorder is gone or does not read."""
        if not self.alive:
            return False
        try:
            return self.channel.send(message, fds)
        except PeerGone:
            return False


def messages(channel: Channel, most: int = 64) -> Iterator[tuple[Message, list[int]]]:
    """What waits on a channel, at most `most`, so that no peer keeps the loop to itself. Raises `PeerGone`."""
    for _ in range(most):
        received = channel.receive()
        if received is None:
            return
        yield received
