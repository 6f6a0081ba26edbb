"""The web's end of the channel to the guard. A guard can be replaced by another at any time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from sidecar.errors import PeerGone, ProtocolError
from sidecar.log import Log
from sidecar.messages import Channel, Message

PATIENCE = 2.0  # seconds that a guard may be away (it is being restarted) before anybody is told
AT_ONCE = 64  # messages read in a row, so that a flood of them does not keep a scrape waiting
OUTBOX_MOST = 4096  # acknowledgements that wait for room; a lost one only means that the event comes again


class GuardLink:
    """Reads from a guard, if there is one. `on_message` gets each message; `on_away` is called when one is missed."""

    def __init__(self, log: Log, on_message: Callable[[Message], None], on_away: Callable[[], None]) -> None:
        self._log = log
        self._on_message = on_message
        self._on_away = on_away
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._outbox: deque[Message] = deque(maxlen=OUTBOX_MOST)
        self._epochs: set[str] = set()  # epochs that this guard spoke of: it can make sense of their acks
        self._gone_since = time.monotonic()
        self._missed: asyncio.TimerHandle | None = None
        self._miss()

    @property
    def away(self) -> float:
        """Seconds without a guard; 0 while there is one."""
        return 0.0 if self._channel is not None else time.monotonic() - self._gone_since

    def adopt(self, channel: Channel) -> None:
        """Speak with the guard at `channel` from now on. What the old one still had to say is read first."""
        if self._channel is not None:
            while self._channel is not None and self._read_some():
                pass
            self._drop()
        if self._missed is not None:
            self._missed.cancel()
            self._missed = None
        self._channel = channel
        self._loop.add_reader(channel.fileno(), self._read_some)
        self._log("connected to the guard")

    def close(self) -> None:
        if self._missed is not None:
            self._missed.cancel()
        self._drop()

    def ack(self, epoch: str, seq: int) -> None:
        if self._channel is not None and epoch in self._epochs:
            self._outbox.append({"type": "ack", "seq": seq, "epoch": epoch})
            self._flush()

    def manual(self) -> bool:
        """Ask for a manual incident. False where no guard is there to hear it."""
        return self.tell({"type": "manual"})

    def tell(self, message: Message) -> bool:
        """Say something once, now. False where no guard is there to hear it, or it has no room for it."""
        if self._channel is None:
            return False
        try:
            return self._channel.send(message)
        except PeerGone:
            return False

    def _read_some(self) -> bool:
        """Read up to `AT_ONCE` messages. False once nothing waits."""
        for _ in range(AT_ONCE):
            if self._channel is None:
                return False
            try:
                received = self._channel.receive()
            except PeerGone:
                self._log("the guard is gone")
                self._drop()
                return False
            except ProtocolError as error:
                self._log("a message of the guard's was ignored", error=error)
                continue
            if received is None:
                return False
            self._handle(*received)
        return True

    def _handle(self, message: Message, fds: list[int]) -> None:
        for fd in fds:  # the guard has none to give
            Channel.from_fd(fd).close()
        try:
            if message["type"] == "event" and isinstance(message.get("epoch"), str):
                self._epochs.add(message["epoch"])
            self._on_message(message)
        except ProtocolError as error:
            self._log("a message of the guard's was ignored", type=message["type"], error=error)

    def _flush(self) -> None:
        while self._outbox and self._channel is not None:
            try:
                if not self._channel.send(self._outbox[0]):
                    self._loop.add_writer(self._channel.fileno(), self._flush)
                    return
            except PeerGone:  # its last messages may still wait to be read, so the reader drops it
                self._outbox.clear()
                break
            self._outbox.popleft()
        if self._channel is not None:
            self._loop.remove_writer(self._channel.fileno())

    def _drop(self) -> None:
        if self._channel is None:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self._outbox.clear()
        self._epochs.clear()
        self._gone_since = time.monotonic()
        self._miss()

    def _miss(self) -> None:
        self._missed = self._loop.call_later(PATIENCE, self._on_away)
