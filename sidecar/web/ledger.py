"""Counts events, keeps the counts on the volume, and acknowledges. The event loop never waits for the volume.

    event ──▶ counted in memory ──▶ written (coalesced, latest wins) ──▶ ack
                                └── no volume, full, read-only, silent for PATIENCE seconds ──▶ ack all the same

An event that was acknowledged without being written is lost if this process dies before the volume comes back: the
guard must not gather events without end because of a volume.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sidecar.errors import ProtocolError
from sidecar.log import Log
from sidecar.messages import Message
from sidecar.web.counters import Counts, clean
from sidecar.web.keeper import CountersFile, Kept
from sidecar.web.worker import Worker

PATIENCE = 2.0  # seconds for one read or write until the volume counts as silent
RETRY_FIRST, RETRY_MOST = 1.0, 60.0  # seconds between attempts on a volume that fails
SIGN_OF_LIFE = 3600.0  # seconds between writes at the least: a folder without any for hours is a dead pod's
JOURNAL_MOST = 4096  # events kept to be compared with a file that is read late

T = TypeVar("T")


class Ledger:
    """`counts` is the live value. `ack(epoch, seq)` and `changed()` are called on the event loop."""

    def __init__(
        self,
        counts: Counts,
        file: CountersFile,
        log: Log,
        ack: Callable[[str, int], None],
        changed: Callable[[], None],
        on_new: Callable[[Message], None] = lambda _: None,
    ) -> None:
        """`on_new` is told of each event that was not counted before."""
        self.counts = counts
        self._file = file
        self._log = log
        self._ack = ack
        self._changed = changed
        self._on_new = on_new
        self._worker = Worker("counters")
        self._loaded = False
        self._journal: list[Message] = []  # events counted before the file was read; some may be in the file
        # The highest `seq` of each epoch that was counted and not acknowledged: before a write, and during one. An ack
        # speaks for all before it.
        self._pending: dict[str, int] = {}
        self._writing: dict[str, int] = {}
        self._dirty = False
        self._failing = ""  # why the volume does not take the counts, "" while it does
        self._retry_in = RETRY_FIRST
        self._retry: asyncio.TimerHandle | None = None
        self._sign: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, seconds: float) -> None:
        """Read the file; return when it was read, or after `seconds` all the same (it is merged when it comes)."""
        self._kick()
        self._sign = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._give_sign)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    async def stop(self, seconds: float) -> None:
        """Write what is not written yet, for at most `seconds`."""
        for timer in (self._retry, self._sign):
            if timer is not None:
                timer.cancel()
        if self._dirty:
            self._kick()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
        if self._task is not None:
            self._task.cancel()

    def event(self, message: Message) -> None:
        """Count one event of the guard's, unless it was counted before. Raises `ProtocolError` if it has no number."""
        seq, epoch = message.get("seq"), clean(message.get("epoch"))
        if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq < 2**53:
            raise ProtocolError("an event without a number")
        if not self.counts.is_new(epoch, seq):
            if seq > max(self._pending.get(epoch, -1), self._writing.get(epoch, -1)):
                self._ack(epoch, seq)
            return
        try:
            if not self.counts.apply(message):
                self._log("an event of an unknown name was ignored", name=message.get("name"))
        except ProtocolError as error:
            # Acknowledged like the others: sent again it would be no better.
            self._log("a malformed event was ignored", name=message.get("name"), error=error)
        self.counts.mark(epoch, seq)
        if not self._loaded and len(self._journal) < JOURNAL_MOST:
            self._journal.append(message)
        self._changed()
        self._on_new(message)
        self._dirty = True
        if self._failing:
            self._ack(epoch, seq)
        else:
            self._pending[epoch] = seq
            self._kick()

    def _give_sign(self) -> None:
        self._sign = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._give_sign)
        self._dirty = True
        if not self._failing:
            self._kick()

    def count(self, counter: str, labels: tuple[str, ...]) -> None:
        """Count something of our own. It is kept with what is written next: it is not worth a write by itself."""
        series = self.counts.counters[counter]
        series[labels] = series.get(labels, 0) + 1
        self._changed()
        self._dirty = True

    def _kick(self) -> None:
        self._retry = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sync())

    async def _sync(self) -> None:
        try:
            while self._dirty or not self._loaded:
                if not self._loaded:
                    self._take_over(await self._on_volume(self._file.read))
                    continue
                self._writing, self._pending, self._dirty = self._pending, {}, False
                try:
                    await self._on_volume(self._file.write, self.counts.dump())
                except OSError:
                    self._dirty = True
                    raise
                self._release()
                if self._failing:
                    self._failing = ""
                    self._log("the counters are kept on the volume again", path=self._file.path)
                self._retry_in = RETRY_FIRST
        except OSError as error:
            self._fail(error.strerror or str(error))
            self._retry = asyncio.get_running_loop().call_later(self._retry_in, self._kick)
            self._retry_in = min(self._retry_in * 2, RETRY_MOST)
        finally:
            self._task = None

    async def _on_volume(self, call: Callable[..., T], *args: Any) -> T:
        """The result of `call`, however long it takes; what waits for it is acknowledged within `PATIENCE`."""
        future = self._worker.submit(call, *args)
        done, _ = await asyncio.wait({future}, timeout=PATIENCE)
        if not done:
            self._fail(f"no answer within {PATIENCE:.0f} s")
        return await future

    def _take_over(self, kept: Kept) -> None:
        self._loaded = True
        self._dirty = True  # the zeros too: who sums over a volume sees the pod before its first failure
        if kept.broken:
            self._log("the counters' file is broken; it was set aside, and counting starts at 0",
                      path=self._file.path, error=kept.broken)  # fmt: skip
        if kept.counts is not None:
            already = [m for m in self._journal if not kept.counts.is_new(clean(m["epoch"]), m["seq"])]
            self.counts.merge(kept.counts)
            for message in already:
                try:
                    self.counts.apply(message, weight=-1)
                except ProtocolError:  # malformed: it was not counted either time
                    continue
            self._changed()
        self._journal.clear()
        if self._failing and not self._dirty:  # nothing to write, yet the volume answers again
            self._failing = ""

    def _fail(self, why: str) -> None:
        if not self._failing:
            self._log("the counters cannot be kept on the volume; counting goes on in memory",
                      path=self._file.path, error=why)  # fmt: skip
        self._failing = why
        self._release()
        self._writing, self._pending = self._pending, {}
        self._release()

    def _release(self) -> None:
        """Acknowledge what the write in progress was for."""
        written, self._writing = self._writing, {}
        for epoch, seq in written.items():
            self._ack(epoch, seq)
