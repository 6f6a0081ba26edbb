"""One poll(2) set with a handler for each descriptor: the recorder's main thread waits here and nowhere else."""

from __future__ import annotations

import math
import select
from collections.abc import Callable


class Reactor:
    """Calls a descriptor's handler when something can be read from it, or its other end has closed."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def want_write(self, fd: int, wanted: bool) -> None:
        """Also call the handler of `fd` when it can be written to."""
        self._poll.modify(fd, select.POLLIN | (select.POLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        """Forget `fd`. Call it before the descriptor is closed."""
        del self._handlers[fd]
        self._poll.unregister(fd)

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` (may be infinite) and call the handlers of what is ready."""
        timeout = None if math.isinf(seconds) else max(0, math.ceil(seconds * 1000))
        for fd, _ in self._poll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:  # else an earlier handler of this round has removed it
                handler()
