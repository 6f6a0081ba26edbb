"""What is to be told to the API server and waits until it can be: a short queue, one thing after the other, tried again
with a growing pause, and dropped when it is too old to be news.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sidecar.log import Log
from sidecar.web.kubernetes.api import Answer

MOST_WAITING = 64
OLD = 600.0  # seconds after which nobody needs to be told any more
_FIRST, _LONGEST = 1.0, 60.0  # seconds between two tries


@dataclass(frozen=True, slots=True)
class Errand:
    """`run` makes one try. `what` is for the log; `until` is monotonic."""

    what: str
    run: Callable[[], Awaitable[Answer]]
    until: float


class Outbox:
    """Made and used on the event loop; `run` is its life."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: deque[Errand] = deque()
        self._came = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()

    def put(self, what: str, run: Callable[[], Awaitable[Answer]], seconds: float = OLD) -> None:
        """Have it done within `seconds`. Where too much waits already, the oldest is given up."""
        if len(self._waiting) >= MOST_WAITING:
            self._log("given up: too much waits for the API server", what=self._waiting.popleft().what)
        self._waiting.append(Errand(what, run, time.monotonic() + seconds))
        self._done.clear()
        self._came.set()

    async def emptied(self, seconds: float) -> None:
        """Return when nothing waits, or after `seconds` all the same."""
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            pass

    async def run(self) -> None:
        """Do what comes, for ever."""
        while True:
            while self._waiting:
                await self._do(self._waiting[0])
            self._done.set()
            self._came.clear()
            await self._came.wait()

    async def _do(self, errand: Errand) -> None:
        pause = _FIRST
        while True:
            if time.monotonic() >= errand.until:
                self._log("given up: it is too old to be told", what=errand.what)
                break
            answer = await errand.run()
            if not answer.worth_another_try:
                break
            await asyncio.sleep(min(pause * random.uniform(0.8, 1.2), max(0.0, errand.until - time.monotonic())))  # noqa: S311
            pause = min(2 * pause, _LONGEST)
        if self._waiting and self._waiting[0] is errand:  # it may have been pushed out meanwhile
            self._waiting.popleft()
