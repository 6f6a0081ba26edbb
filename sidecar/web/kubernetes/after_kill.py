"""What is done beyond the kill: the pod is deleted, or our own container ends. Only after a kill whose evidence is
saved, only soon after it, and so often an hour as the volume allows. Whatever is not certain is a reason to do nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from sidecar.log import Log
from sidecar.messages import Message
from sidecar.model import Action, Outcome
from sidecar.settings import Settings
from sidecar.web.kubernetes.api import Answer, Api
from sidecar.web.kubernetes.asking import Call
from sidecar.web.kubernetes.limit import Limit
from sidecar.web.kubernetes.outbox import Outbox
from sidecar.web.kubernetes.pod import PodStatus
from sidecar.web.worker import Worker

_SOON = 60.0  # seconds after the incident; later the next engine may be serving
_VOLUME = 10.0  # seconds for the count
_TOLD_FIRST = 5.0  # seconds in which what is to be told of the incident may still be told, before our container ends
_ASK_AGAIN = 0.5
_PATIENCE = 10.0
# `denied` is not among them: an engine that could not be killed runs on.
_KILLED = (Outcome.REAPED, Outcome.EXITED_UNREAPED, Outcome.STILL_ALIVE, Outcome.ALREADY_GONE)


class AfterKill:
    """`holds_back` says why nothing is to be done now over an incident, "" for no reason. `tell` gives a message to the
    guard, False where it does not take it.
    """

    def __init__(
        self, settings: Settings, api: Api, pod: PodStatus, outbox: Outbox, log: Log,
        tell: Callable[[Message], bool], holds_back: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._api = api
        self._pod = pod
        self._outbox = outbox
        self._log = log
        self._tell = tell
        self._holds_back = holds_back
        self._worker = Worker("after-kill")
        self._limit = Limit(settings.dump_dir, settings.after_kill_per_hour)
        self._task: asyncio.Task[None] | None = None

    def on_closed(self, event: Mapping[str, Any]) -> None:
        """An incident's record is closed."""
        if self._settings.after_kill == "none" or event["action"] != Action.KILL:
            return
        incident = str(event["incident"])
        if self._task is not None and not self._task.done():
            self._nothing(incident, "it is being done for another incident")
        elif why := self._refusal(event):
            self._nothing(incident, why)
        else:
            self._task = asyncio.get_running_loop().create_task(self._act(incident, time.monotonic() + _SOON))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _refusal(self, event: Mapping[str, Any]) -> str:
        settings, facts = self._settings, self._pod.facts
        if event["outcome"] not in _KILLED:
            return f"the kill ended as {event['outcome'] or 'nobody knows'}"
        if event["sealed"] is not True:
            return "its record was not saved"
        if not abs(time.time() - float(event["wall"])) < _SOON:
            return "it was too long ago"
        if settings.after_kill == "delete-pod":
            if not self._api.reachable:
                return self._api.because
            return "" if self._pod.uid else "the pod's uid is not known"
        if self._pod.group:
            return f"the pod is one of the group {self._pod.group}, which takes a container's end for its own"
        if facts is not None and settings.after_kill_exit_code not in facts.restarts_on:
            return f"no restartPolicyRules of the pod restart all containers on {settings.after_kill_exit_code}"
        return ""

    async def _act(self, incident: str, until: float) -> None:
        action = self._settings.after_kill
        if action == "exit":
            await self._outbox.emptied(_TOLD_FIRST)
        why = self._holds_back(incident) or await self._counted(incident)
        if why:
            self._nothing(incident, why)
            return
        self._log("after the kill", incident, action=action)
        if action == "delete-pod":
            self._outbox.put("delete-pod", lambda: self._delete(incident), max(0.0, until - time.monotonic()))
            return
        while not self._tell({"type": "after_kill", "incident": incident}):
            if time.monotonic() > until:
                self._nothing(incident, "there is no guard to do it")
                return
            await asyncio.sleep(_ASK_AGAIN)

    async def _counted(self, incident: str) -> str:
        """ "" where the volume allows it."""
        future = self._worker.submit(self._limit.take, time.time(), incident)
        await asyncio.wait({future}, timeout=_VOLUME)
        if not future.done():
            future.cancel()
            return f"its count on the volume was not to be had within {_VOLUME:g} s"
        failed = future.exception()
        if failed is not None:
            return f"its count cannot be kept on the volume: {getattr(failed, 'strerror', None) or failed}"
        return future.result()

    async def _delete(self, incident: str) -> Answer:
        if why := self._holds_back(incident):
            self._nothing(incident, why)
            return Answer(200)
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": self._pod.uid}}
        call = Call("DELETE", self._pod.path, json.dumps(options).encode(), patience=_PATIENCE)
        # 404, and 409 for another pod of our name: it is gone already.
        answer = await self._api.ask("delete_pod", call, "Status", "Pod", fine=(202, 404, 409))
        if answer.good:
            self._log("the pod is being deleted", incident, status=answer.status)
        return answer

    def _nothing(self, incident: str, because: str) -> None:
        self._log("nothing is done after the kill", incident, because=because)
