"""The bench's own event loop: who said what, and when it arrived here."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable

from sidecar.errors import RankguardError

now = time.monotonic
READ = 1 << 16


class Late(RankguardError):
    """Something that a benchmark waits for did not happen in time."""


class Pump:
    """Reads what comes, from all at once, and hands it over with the time of its arrival (monotonic seconds)."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()

    def close(self) -> None:
        self._selector.close()

    def add(self, fd: int, ready: Callable[[float], None]) -> None:
        """Call `ready(arrival)` whenever `fd` can be read."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def add_lines(self, fd: int, line: Callable[[str, float], None]) -> None:
        """Call `line(text, arrival)` for each line of a pipe."""
        os.set_blocking(fd, False)
        rest = b""

        def ready(at: float) -> None:
            nonlocal rest
            try:
                data = os.read(fd, READ)
            except BlockingIOError:
                return
            if not data:
                self.drop(fd)
                return
            *whole, rest = (rest + data).split(b"\n")
            for text in whole:
                line(text.decode("utf-8", "backslashreplace"), at)

        self.add(fd, ready)

    def drop(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def run(self, seconds: float) -> None:
        """Read for so long."""
        end = now() + seconds
        while (left := end - now()) > 0:
            self._once(left)

    def until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Read until `done`. Raises `Late` after `seconds`, naming `what` was waited for."""
        end = now() + seconds
        while not done():
            left = end - now()
            if left <= 0:
                raise Late(f"not within {seconds:g} s: {what}")
            self._once(left)

    def _once(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data(now())
