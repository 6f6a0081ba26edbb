"""A daemon thread for calls that can hang for ever: a volume that is gone, a name server that is silent.

`asyncio.to_thread` and executors will not do: their threads are joined when the interpreter ends, so one hung call
would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs calls one after the other on one thread. A call that hangs delays the later ones, and nothing else.

    Made and used on the event loop; the thread starts with the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Queue a call; the future holds its result or its exception: an `OSError` where no thread can be made."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the container has as many processes as it may; the next call tries again
                future.set_exception(OSError(errno.EAGAIN, "no thread can be started"))
                return future
            self._thread = thread
        self._calls.put((future, function, args))
        return future

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            future, function, args = self._calls.get()
            if future.cancelled():
                continue
            result, failure = None, None
            try:
                result = function(*args)
            except Exception as error:  # noqa: BLE001 - the thread's outermost loop; the waiter gets the exception
                failure = error
            try:
                loop.call_soon_threadsafe(_settle, future, result, failure)
            except RuntimeError:  # the loop was closed while the call hung: nobody waits any more
                return


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
