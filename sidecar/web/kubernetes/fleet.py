"""The fleet switch: one ConfigMap, by which a whole fleet only observes. Read every 15 s; the guard is told.

What cannot be read changes nothing: the last word holds, and before there was one everything acts as it is set to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from sidecar.log import Log
from sidecar.messages import Message
from sidecar.web.kubernetes.api import Api
from sidecar.web.kubernetes.asking import Call

EVERY = 15.0  # seconds, give or take a fifth: a fleet must not ask in step
_LONGEST = 60.0  # between two tries, while there is no answer
_PATIENCE = 5.0
_TELL_AGAIN = 0.5


class FleetSwitch:
    """`where` is NAMESPACE/NAME, "" for none. `changed` is called when `observe` has; `tell` gives a message to the
    guard, False where it does not take it. `observe` is None until the switch was read.
    """

    def __init__(
        self, where: str, api: Api, log: Log, tell: Callable[[Message], bool], changed: Callable[[], None],
        every: float = EVERY,
    ) -> None:  # fmt: skip
        self.observe: bool | None = None
        self._where = where
        self._api = api
        self._log = log
        self._tell = tell
        self._changed = changed
        self._every = every
        self._again: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Read it, for ever."""
        if not self._where:
            return
        if not self._api.reachable:
            self._log("the fleet switch cannot be read", because=self._api.because, switch=self._where)
            return
        pause = self._every
        while True:
            pause = self._every if await self._read() else min(2 * pause, max(_LONGEST, self._every))
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    def on_guard(self) -> None:
        """There is a guard, or a new one. Tell it, again and again until it takes it."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.observe is not None and not self._tell({"type": "fleet", "observe": self.observe}):
            self._again = asyncio.get_running_loop().call_later(_TELL_AGAIN, self.on_guard)

    def shown(self) -> dict[str, Any] | None:
        """For the API; None where there is no switch."""
        return {"config_map": self._where, "observe": self.observe} if self._where else None

    async def _read(self) -> bool:
        """False where it could not be."""
        namespace, _, name = self._where.partition("/")
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/configmaps/{quote(name, safe='')}"
        call = Call("GET", path, patience=_PATIENCE, keep=True)
        answer = await self._api.ask("get_configmap", call, "ConfigMap", fine=(404,))
        if not answer.good:
            return False
        data = answer.found.get("data")
        mode = data.get("mode") if isinstance(data, dict) else None
        observe = isinstance(mode, str) and mode.strip().lower() == "observe"
        if observe is not self.observe:
            if self.observe is not None or observe:
                self._log("the fleet switch", mode="observe" if observe else "off", switch=self._where)
            self.observe = observe
            self._changed()
            self.on_guard()
        return True
