"""A few threads for calls on a volume that may hang: the event loop never waits for them without an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sidecar.errors import EnvironmentDenied
from sidecar.web.worker import Worker

THREADS = 4
PATIENCE = 5.0  # seconds for a thread to be free; when all of them hang, callers are told so after that time

T = TypeVar("T")


class Unavailable(EnvironmentDenied):
    """The volume cannot be read, or no thread came free: it does not answer, or too many ask."""


class Pool:
    """Made and used on one event loop. A call whose caller has left runs to its end, and then frees its thread."""

    def __init__(self, name: str, threads: int = THREADS) -> None:
        self._free = [Worker(f"{name}-{number}") for number in range(threads)]
        self._seats = asyncio.Semaphore(threads)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """The result of `call`. Raises `Unavailable`, or what `call` raises. A result that nobody takes is closed where
        it can be."""
        try:
            await asyncio.wait_for(self._seats.acquire(), PATIENCE)
        except TimeoutError as error:
            raise Unavailable("the volume does not answer, or too many ask for it; try again") from error
        worker = self._free.pop()
        future = worker.submit(call, *args)

        def done(_: asyncio.Future[T]) -> None:
            self._free.append(worker)
            self._seats.release()

        future.add_done_callback(done)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_dispose)
            raise


def _dispose(future: asyncio.Future[Any]) -> None:
    if future.cancelled() or future.exception() is not None:
        return
    close = getattr(future.result(), "close", None)
    if close is not None:
        close()
