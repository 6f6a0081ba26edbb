"""Container names for processes: /proc/PID/cgroup ends in the container's id, and the pod's status has its name.

The status is asked for when an id appears that it did not have before: a container was started, and the kubelet tells
the API server of it some seconds later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from sidecar.messages import Message
from sidecar.web.kubernetes.pod import PodStatus

_TRIES = (0.0, 2.0, 5.0, 15.0, 60.0)  # seconds before each look
_KEPT = 128  # names; a container that has ended may still be asked for
_TELL_AGAIN = 0.5


class ContainerNames:
    """`tell` gives a message to the guard, which puts names into records; False where it does not take it."""

    def __init__(self, pod: PodStatus, tell: Callable[[Message], bool]) -> None:
        self._pod = pod
        self._tell = tell
        self._names: dict[str, str] = {}
        self._wanted: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None

    def of(self, container: str) -> str:
        """The name of the container with this id, "" where it is not known."""
        return self._names.get(container, "")

    def want(self, containers: Iterable[str]) -> None:
        """These ids are there now. Those that are not known are asked for, once."""
        wanted = frozenset(container for container in containers if container)
        if wanted <= self._names.keys() or wanted <= self._wanted:
            return
        self._wanted = wanted
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._learn())

    def on_guard(self) -> None:
        """There is a guard, or a new one. Tell it, again and again until it takes it."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._names and not self._tell({"type": "containers", "names": self._names}):
            self._again = asyncio.get_running_loop().call_later(_TELL_AGAIN, self.on_guard)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _learn(self) -> None:
        for pause in _TRIES:
            await asyncio.sleep(pause)
            facts = await self._pod.whole()
            if facts is not None and not facts.containers.items() <= self._names.items():
                self._names = dict(list({**self._names, **facts.containers}.items())[-_KEPT:])
                self.on_guard()
            if self._wanted <= self._names.keys():
                return
