"""A thread for what may hang: the one that touches the volume, and one that writes the termination logs.

A volume that hangs keeps its caller in D state, which no signal ends (seen), so the caller must not be the thread that
answers the guard. One task at a time: what comes next is decided on the main thread, when the task before is done.
"""

from __future__ import annotations

import _thread
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Task = Callable[[], Any]
Then = Callable[[Any], None]


class Writer:
    """`submit` from the main thread, and call `collect` there when `fileno()` can be read."""

    def __init__(self) -> None:
        self._tasks: deque[tuple[Task, Then]] = deque()
        self._results: deque[tuple[Then, Any]] = deque()
        self._work = os.eventfd(0, os.EFD_CLOEXEC)
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.busy_since: float | None = None
        # A bare thread: `threading` would join it at the end, and a thread in D state is never joined.
        _thread.start_new_thread(self._run, ())

    def fileno(self) -> int:
        return self._ready

    def submit(self, task: Task, then: Then) -> None:
        """Run `task` on the thread and give `then`, on the main thread, what it returned or the exception it raised."""
        if self.busy_since is not None:
            raise RuntimeError("the writer has a task already")
        self.busy_since = time.monotonic()
        self._tasks.append((task, then))
        os.eventfd_write(self._work, 1)

    def collect(self) -> None:
        """Hand over the result, if there is one. Never blocks."""
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            return
        while self._results:
            then, result = self._results.popleft()
            self.busy_since = None
            then(result)

    def _run(self) -> None:
        while True:
            os.eventfd_read(self._work)
            task, then = self._tasks.popleft()
            try:
                result = task()
            except Exception as error:  # noqa: BLE001 - the thread's outermost loop: the main thread decides
                result = error
            self._results.append((then, result))
            os.eventfd_write(self._ready, 1)
