"""Brings Events and the annotation to the API server, by way of the outbox.

first of a reason ──▶ create ──201──▶ known, count 1
                         └──409──▶ an earlier life of ours has made it: patch, which tells its count
a further one     ──▶ patch its count ──404──▶ it has expired: create
                         └──403──▶ no right to patch: from now on one Event for each incident
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

from sidecar.log import Log
from sidecar.web.kubernetes.api import Answer, Api
from sidecar.web.kubernetes.asking import MERGE, Call
from sidecar.web.kubernetes.events import ANNOTATION, About, Report, event_again, event_body, event_name
from sidecar.web.kubernetes.outbox import Outbox

PATIENCE = 10.0  # seconds; nobody waits


class Teller:
    """`about` gives our pod as it is known at the time. Made and used on the event loop."""

    def __init__(self, api: Api, outbox: Outbox, log: Log, about: Callable[[], About], pod_path: str) -> None:
        self._api = api
        self._outbox = outbox
        self._log = log
        self._about = about
        self._pod_path = pod_path
        self._counts: dict[str, int] = {}  # by the Event's name
        self._patches = True

    def tell(self, report: Report) -> None:
        """Make an Event of it."""
        self._outbox.put(f"Event {report.reason} {report.incident}".strip(), lambda: self._event(report))

    def annotate(self, text: str) -> None:
        """Set the pod's annotation."""
        self._outbox.put("annotation", lambda: self._annotation(text))

    async def _event(self, report: Report) -> Answer:
        about = self._about()
        name = event_name(about, report.reason)
        if not self._patches:
            return await self._create(report, about, event_name(about, report.reason, report.incident))
        if name not in self._counts:
            answer = await self._create(report, about, name)
            if answer.status != 409:
                if answer.good:
                    self._counts[name] = 1
                return answer
            answer = await self._patch(report, about, name, None)
            if answer.status == 200 and answer.good:
                count = answer.found.get("count")
                self._counts[name] = count if isinstance(count, int) and not isinstance(count, bool) else 1
                if answer.found.get("message") == report.message:
                    return answer  # it is this one: only the answer was lost
        if name in self._counts:
            count = self._counts[name] + 1
            answer = await self._patch(report, about, name, count)
            if answer.status == 200 and answer.good:
                self._counts[name] = count
                return answer
        if answer.status == 403:
            self._patches = False
            self._log("each incident has Events of its own", because="there is no right to patch an Event's count")
            return await self._create(report, about, event_name(about, report.reason, report.incident))
        if answer.status == 404:
            self._counts.pop(name, None)
            return await self._create(report, about, name)
        return answer

    async def _create(self, report: Report, about: About, name: str) -> Answer:
        body = json.dumps(event_body(report, about, name)).encode()
        call = Call("POST", _events(about), body, patience=PATIENCE)
        return await self._api.ask("create_event", call, "Event", fine=(202, 409))

    async def _patch(self, report: Report, about: About, name: str, count: int | None) -> Answer:
        body = json.dumps(event_again(report, count)).encode()
        call = Call("PATCH", f"{_events(about)}/{quote(name, safe='')}", body, MERGE, patience=PATIENCE)
        return await self._api.ask("patch_event", call, "Event", fine=(403, 404))

    async def _annotation(self, text: str) -> Answer:
        about = self._about()
        metadata: dict[str, object] = {"annotations": {ANNOTATION: text}}
        if about.uid:
            metadata["uid"] = about.uid  # a pod that has taken our name refuses it
        body = json.dumps({"metadata": metadata}).encode()
        call = Call("PATCH", self._pod_path, body, MERGE, patience=PATIENCE)
        return await self._api.ask("patch_pod", call, "Pod")


def _events(about: About) -> str:
    return f"/api/v1/namespaces/{quote(about.namespace, safe='')}/events"
