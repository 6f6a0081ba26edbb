"""What is new, for those who listen: the newest incidents are looked at again and again, and compared.

Nobody listens: no task, no look, nothing kept. All listeners share the looks and the pieces that are sent. A volume
that hangs stops the news of it, and nothing else: there is never more than one look under way.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from sidecar.dumps.catalog import Page
from sidecar.dumps.query import Query
from sidecar.web.changes import NOTHING, Seen, changed, seen
from sidecar.web.library import Library

LISTENERS = 8
PERIOD = 1.0  # seconds between two looks
LEAST = 0.2  # seconds between two looks, however often the guard says that something happens
_SHARE = 9  # times as long as a look took is waited: a slow volume is not kept busy with ours
_MOST = 10.0  # seconds, for all that: one that hung and is back has news
FIRST_LOOK = 1.0  # seconds that a new listener waits for it: what comes after the first word is never missed then
QUIET = 15.0  # seconds without a word; then a comment, by which both ends and all between see that the other lives
_MOST_WAITING = 128  # pieces; who takes them more slowly is cut off, comes again, and reads the whole list again
_COMMENT = b":\n\n"


class Listener:
    """One who listens. What he has not taken yet waits here, of each incident the latest."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._woken = asyncio.Event()
        self._ended = False

    def put(self, key: str, piece: bytes) -> None:
        """`piece` takes the place of what waits under the same `key`."""
        if self._ended:
            return
        self._waiting.pop(key, None)
        self._waiting[key] = piece
        self._woken.set()
        if len(self._waiting) > _MOST_WAITING:
            self.end()

    def end(self) -> None:
        self._ended = True
        self._waiting.clear()
        self._woken.set()

    async def next(self) -> bytes | None:
        """The piece that waits longest, once there is one; a comment after `QUIET`; None at the end."""
        if not self._waiting and not self._ended:
            try:
                await asyncio.wait_for(self._woken.wait(), QUIET)
            except TimeoutError:
                return _COMMENT
        self._woken.clear()
        if self._ended:
            return None
        return self._waiting.pop(next(iter(self._waiting)))


class News:
    """Made and used on one event loop. `status`: what the engine does now; None where there is no engine beside us."""

    def __init__(self, library: Library, status: Callable[[], dict[str, Any]] | None = None) -> None:
        self._library = library
        self._status = status
        self._told: dict[str, Any] = {}
        self._listeners: set[Listener] = set()
        self._closed = False
        self._watching: asyncio.Task[None] | None = None
        self._look: asyncio.Task[Page] | None = None
        self._looked = asyncio.Event()  # once since somebody listens
        self._late = False  # somebody could not wait for that look
        self._wake = asyncio.Event()

    def join(self) -> Listener | None:
        """Somebody new; None where there are too many, or at our end."""
        if self._closed or len(self._listeners) >= LISTENERS:
            return None
        listener = Listener()
        listener.put("hello", piece("hello", {}))
        if self._status is not None:
            self._told = self._status()
            listener.put("status", piece("status", self._told))
        self._listeners.add(listener)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        if not self._listeners and self._watching is not None:
            self._watching.cancel()
            self._watching = None
            self._looked.clear()
            self._late = False

    def close(self) -> None:
        """Send everybody home, and let nobody in any more."""
        self._closed = True
        for listener in list(self._listeners):
            listener.end()

    async def first_look(self) -> None:
        """Wait for the look that later ones are compared with; not for long."""
        try:
            await asyncio.wait_for(self._looked.wait(), FIRST_LOOK)
        except TimeoutError:
            self._late = True  # it is told all that the look finds

    def happened(self) -> None:
        """The guard has said something. While there is an incident, the volume is looked at as soon as may be."""
        if not self._listeners or self._status is None:
            return
        before, self._told = self._told, self._status()
        if self._told != before:
            self._tell("status", piece("status", self._told))
        if self._told.get("incident") or before.get("incident"):
            self._wake.set()

    def _tell(self, key: str, text: bytes) -> None:
        for listener in self._listeners:
            listener.put(key, text)

    async def _watch(self) -> None:
        last: Seen | None = None
        while True:
            self._wake.clear()
            began = time.monotonic()
            page = await self._looked_at()
            if page is not None:
                now = seen(page)
                for path, row in changed(last or (NOTHING if self._late else now), now):
                    self._tell(path, piece("incident", row) if row is not None else piece("removed", {"path": path}))
                last = now
                self._looked.set()
            rest = min(_MOST, max(LEAST, (time.monotonic() - began) * _SHARE))
            await asyncio.sleep(rest)
            try:
                await asyncio.wait_for(self._wake.wait(), max(0.0, PERIOD - rest))
            except TimeoutError:
                pass

    async def _looked_at(self) -> Page | None:
        """The newest incidents; None where the volume does not give them, which who asks for the list is told."""
        if self._look is None:
            self._look = asyncio.create_task(self._library.page(Query()))
        look = self._look
        await asyncio.wait({look})  # not ended with us: whoever listens next goes on waiting for this one
        self._look = None
        return None if look.cancelled() or look.exception() is not None else look.result()


def piece(event: str, data: Any) -> bytes:
    """As it is sent. JSON in ASCII has no line ends."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
