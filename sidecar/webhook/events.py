"""Events that say why a pod did not get its sidecar, or less than it asked for: on what the pod belongs to, since the
pod itself has no uid yet, and perhaps no name.

Posted by one thread, off the way of any answer: what does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sidecar.log import Log
from sidecar.webhook.api import Api, ApiError
from sidecar.webhook.metrics import Metrics

MOST = 256  # that wait to be posted
AGAIN = 600.0  # seconds until the same Event on the same object is posted again: a Deployment makes many equal pods
_MOST_REMEMBERED = 2048
_PATIENCE = 2.0  # seconds for one call
_MESSAGE = 1024  # characters; the API server refuses longer ones
COMPONENT = "rankguard-webhook"


@dataclass(frozen=True, slots=True)
class Event:
    """`about` is an ObjectReference in `namespace`."""

    namespace: str
    about: tuple[tuple[str, str], ...]
    reason: str
    message: str


def about(pod: Any, namespace: str, name: str) -> tuple[tuple[str, str], ...]:
    """What an Event is attached to: the pod's controller, else the pod if it has a name, else the namespace."""
    metadata = _mapping(_mapping(pod).get("metadata"))
    owners = metadata.get("ownerReferences")
    for owner in map(_mapping, owners if isinstance(owners, list) else []):
        fields = [(key, owner.get(key)) for key in ("apiVersion", "kind", "name", "uid")]
        if owner.get("controller") is True and all(isinstance(v, str) and v for _, v in fields):
            return (("namespace", namespace), *((k, str(v)) for k, v in fields))
    name = name or str(metadata.get("name") or "")
    found = {"kind": "Pod", "name": name} if name else {"kind": "Namespace", "name": namespace}
    # In its own namespace, also where it is about the namespace: there is where its users look.
    return (("namespace", namespace), ("apiVersion", "v1"), *found.items())


class Events:
    """`post` is called on the event loop and takes no time. `instance` is our own pod's name."""

    def __init__(self, api: Api, instance: str, metrics: Metrics, log: Log) -> None:
        self._api = api
        self._instance = instance
        self._metrics = metrics
        self._log = log
        self._queue: queue.Queue[Event] = queue.Queue(MOST)
        self._posted: dict[Event, float] = {}
        self._trouble = ""

    def start(self) -> None:
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def post(self, event: Event) -> None:
        if not self._api.reachable:
            return
        now = time.monotonic()
        if now - self._posted.get(event, -AGAIN) < AGAIN:
            self._metrics.events.labels("repeated").inc()
            return
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._metrics.events.labels("dropped").inc()
            return
        self._posted.pop(event, None)
        self._posted[event] = now
        while len(self._posted) > _MOST_REMEMBERED:
            del self._posted[next(iter(self._posted))]

    def _run(self) -> None:
        while True:
            event = self._queue.get()
            path = f"/api/v1/namespaces/{quote(event.namespace, safe='')}/events"
            try:
                self._api.call("POST", path, body(event, self._instance, time.time()), seconds=_PATIENCE)
                self._metrics.events.labels("sent").inc()
                self._trouble = ""
            except ApiError as error:
                self._metrics.events.labels("failed").inc()
                self._metrics.api_errors.labels("event").inc()
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._log("an Event could not be posted", namespace=event.namespace, because=error)


def body(event: Event, instance: str, wall: float) -> dict[str, Any]:
    """The Event as the API server takes it (core v1)."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
    reference = dict(event.about)
    prefix = "".join(c for c in reference["name"].lower() if c.isascii() and (c.isalnum() or c in "-.")).strip("-.")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{prefix[:200] or 'pod'}.", "namespace": event.namespace},
        "involvedObject": reference,
        "type": "Warning",
        "reason": event.reason,
        "message": event.message[:_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance or COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
