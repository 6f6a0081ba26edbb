"""What a request needs to know from the API server, kept for a while, and never waited for longer than a moment.

A pod that waits for our answer waits for nothing else: an API server that is slow makes us know less, not later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from sidecar.webhook.api import ApiError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

PATIENCE = 0.05  # seconds that a request waits
_MOST_KEPT = 8192
_MOST_ASKED = 64  # at a time; what is above it is not known


@dataclass(frozen=True, slots=True)
class _Known(Generic[V]):
    value: V
    fresh_until: float
    known_until: float


class Lookups(Generic[K, V]):
    """`fetch` asks the API server, on one of the executor's threads, and raises `ApiError`; `on_error` is told of it.
    `fresh` and `stale` are seconds: after the first it is asked again, up to the second the old answer is good enough
    where there is no new one. Made and used on the event loop.
    """

    def __init__(
        self, fetch: Callable[[K], V], executor: Executor, on_error: Callable[[ApiError], None], *,
        fresh: Callable[[V], float], stale: float,
    ) -> None:  # fmt: skip
        self._fetch = fetch
        self._executor = executor
        self._on_error = on_error
        self._fresh = fresh
        self._stale = stale
        self._known: dict[K, _Known[V]] = {}
        self._asked: dict[K, asyncio.Future[V]] = {}

    async def ask(self, key: K) -> V | None:
        """The value, or None where it is not known within `PATIENCE` seconds. Never raises."""
        known = self._known.get(key)
        if known is None or time.monotonic() >= known.fresh_until:
            asking = self._asking(key)
            if asking is not None:
                await asyncio.wait({asking}, timeout=PATIENCE)
            known = self._known.get(key)
        return known.value if known is not None and time.monotonic() < known.known_until else None

    def _asking(self, key: K) -> asyncio.Future[V] | None:
        """The one question about this key that is under way, also for those who ask meanwhile."""
        if key not in self._asked:
            if len(self._asked) >= _MOST_ASKED:
                return None
            asking = asyncio.get_running_loop().run_in_executor(self._executor, self._fetch, key)
            self._asked[key] = asking
            asking.add_done_callback(lambda done: self._take(key, done))
        return self._asked[key]

    def _take(self, key: K, done: asyncio.Future[V]) -> None:
        del self._asked[key]
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, ApiError):
            self._on_error(error)
        elif error is not None:
            raise error  # a bug: the loop's handler logs it
        else:
            now = time.monotonic()
            self._known.pop(key, None)
            self._known[key] = _Known(done.result(), now + self._fresh(done.result()), now + self._stale)
            while len(self._known) > _MOST_KEPT:
                del self._known[next(iter(self._known))]
