"""The sidecar's own Kubernetes side, in one piece: what the web hears of the guard goes in here, and what is learnt of
the cluster goes out to the guard and into the API. Auxiliary throughout: without a token, an API server or a right,
everything else works.

Nothing is asked at rest but the fleet switch, where there is one.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from sidecar.log import Log
from sidecar.messages import Message
from sidecar.model import State
from sidecar.settings import Launch
from sidecar.web.kubernetes.after_kill import AfterKill
from sidecar.web.kubernetes.api import Api
from sidecar.web.kubernetes.events import About, annotation_of, bad_settings, report_of
from sidecar.web.kubernetes.fleet import FleetSwitch
from sidecar.web.kubernetes.names import ContainerNames
from sidecar.web.kubernetes.outbox import OLD, Outbox
from sidecar.web.kubernetes.pod import PodStatus
from sidecar.web.kubernetes.teller import Teller
from sidecar.web.state import EngineState

_AGAIN = 10.0  # seconds after which a part that failed by a mistake of ours begins anew
_UNANSWERED = 3  # looks without an answer, after which it is let be
_LOOK_AGAIN = 1.0  # seconds between two looks whether the pod is being deleted


class Cluster:
    """`tell` gives a message to the guard; `count` is told the operation of each failed call; `changed` is called when
    the fleet switch has changed. Made on the event loop; `run` is its life.
    """

    def __init__(
        self, launch: Launch, log: Log, tell: Callable[[Message], bool], count: Callable[[str], None],
        changed: Callable[[], None], environ: Mapping[str, str] = os.environ,
    ) -> None:  # fmt: skip
        settings = launch.settings
        self._settings = settings
        self._launch = launch
        self._log = log
        self._tell = tell
        self.api = Api(settings, log, count, environ)
        self.pod = PodStatus(settings, self.api, environ)
        self.fleet = FleetSwitch(settings.fleet_switch, self.api, log, tell, changed)
        self.names = ContainerNames(self.pod, tell)
        self._outbox = Outbox(log)
        self._teller = Teller(self.api, self._outbox, log, self._about, self.pod.path)
        self._after_kill = AfterKill(settings, self.api, self.pod, self._outbox, log, tell, self._holds_back)
        self._targets = tuple(name for name in settings.target_container.split(",") if name)
        self._state: EngineState | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_due = False

    async def run(self) -> None:
        """Until cancelled."""
        if self.api.reachable:
            self.pod.start()
            await self.api.warm()
            if self._launch.config_errors and self._settings.kubernetes_events:
                self._teller.tell(bad_settings(self._launch.config_errors, time.time()))
        parts = [
            asyncio.ensure_future(self._for_ever("the outbox", self._outbox.run)),
            asyncio.ensure_future(self._for_ever("the fleet switch", self.fleet.run)),
        ]
        try:
            await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
            self.names.close()
            self._after_kill.close()
            if self._looking is not None:
                self._looking.cancel()

    # What comes in.

    def on_guard(self) -> None:
        """There is a guard, or a new one: it knows nothing of what was learnt."""
        self.fleet.on_guard()
        self.names.on_guard()

    def on_state(self, state: EngineState | None) -> None:
        """The engine as the guard last described it."""
        before, self._state = self._state, state
        if state is None or not self.api.reachable:
            return
        self.names.want(rank.container for rank in state.ranks)
        if before is not None and _stops(before, state):
            self._look()

    def on_event(self, event: Message) -> None:
        """One of the guard's events, for the first time."""
        try:
            if event.get("name") == "closed":
                self._after_kill.on_closed(event)
            if not self.api.reachable:
                return
            report = report_of(event, self._targets)
            if report is None or abs(time.time() - report.wall) > OLD:
                return
            if self._settings.kubernetes_events:
                self._teller.tell(report)
            if event["name"] == "closed" and self._settings.kubernetes_annotation:
                self._teller.annotate(annotation_of(event))
        except (KeyError, TypeError, ValueError) as error:
            self._log("an event cannot be told to Kubernetes", name=event.get("name"), error=repr(error))

    # What is told.

    def status(self) -> dict[str, Any]:
        """For the API. `applied`: the guard has the fleet switch's word."""
        fleet = self.fleet.shown()
        if fleet is not None:
            fleet["applied"] = self._state.observes if self._state is not None else None
        return {"reachable": self.api.reachable, "troubles": self.api.troubles(), "fleet_switch": fleet}

    def _about(self) -> About:
        settings = self._settings
        return About(settings.pod_namespace, settings.pod_name, self.pod.uid, settings.node_name)

    def _holds_back(self, over: str) -> str:
        if self.fleet.observe:
            return "the fleet switch says observe"
        if self._state is None:
            return "there is no guard"
        other = self._state.incident
        return f"the incident {other} is open" if other not in ("", over) else ""

    def _look(self) -> None:
        """See whether the pod is being deleted; again when something else has gone meanwhile."""
        self._look_due = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._looks())

    async def _looks(self) -> None:
        unanswered = 0
        while self._look_due:
            self._look_due = False
            looked = await self.pod.look()
            if looked is not None and looked.deleting:
                self._tell({"type": "deleting"})
                return
            if looked is None and unanswered < _UNANSWERED:
                unanswered += 1
                self._look_due = True
            await asyncio.sleep(_LOOK_AGAIN)

    async def _for_ever(self, part: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await run()
                return
            except Exception as error:  # noqa: BLE001 - the part's outermost loop: the web must not end of this
                frame = traceback.extract_tb(error.__traceback__)[-1]
                at = f"{os.path.basename(frame.filename)}:{frame.lineno}"
                self._log("a mistake of ours in the Kubernetes side", part=part, error=repr(error), at=at)
                await asyncio.sleep(_AGAIN)


def _stops(before: EngineState, now: EngineState) -> bool:
    """Whether this may be the beginning of a stop that no hook has announced: a rank has gone, or an incident begun."""
    if now.state == State.DRAINING:
        return False
    if now.incident and now.incident != before.incident:
        return True
    up = {(rank.pid, rank.start) for rank in now.ranks if rank.up}
    gone = any(rank.up and (rank.pid, rank.start) not in up for rank in before.ranks)
    return gone and not now.incident and now.state in (State.STARTING, State.SERVING)
