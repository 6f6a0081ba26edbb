"""What the API server says of our own pod: whether it is being deleted, which group of pods it is part of, and which
container has which name.

Auxiliary: with no token, no rights, or an API server that is slow, nothing is known and the caller decides without.
The first look is taken at the start, since it imports the client library, and a hook has no time for that.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from sidecar.settings import Settings
from sidecar.web.kubernetes.api import WARM_UP, Api
from sidecar.web.kubernetes.asking import PATIENCE, Call

_NO_HURRY = 10.0  # seconds

# The metadata alone. An API server that cannot leave the rest out sends the whole pod, which will do too.
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_KINDS = ("PartialObjectMetadata", "Pod")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_MOST_CONTAINERS = 256

# https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/
_LWS = "leaderworkerset.sigs.k8s.io/"
_JOBSET = "jobset.sigs.k8s.io/jobset-name"


@dataclass(frozen=True, slots=True)
class PodLook:
    """`group` is the name of the group whose pods fail together, "" for a pod of its own."""

    deleting: bool
    group: str = ""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What else the whole pod says. `containers`: names by the container's id. `restarts_on`: the exit codes of any
    container by which its rules restart all of them.
    """

    uid: str = ""
    containers: Mapping[str, str] = field(default_factory=dict)
    restarts_on: frozenset[int] = frozenset()


class PodStatus:
    """Asks about our own pod. Made and used on the event loop. `facts` is None until the whole pod was seen."""

    def __init__(self, settings: Settings, api: Api, environ: Mapping[str, str] = os.environ) -> None:
        self.facts: PodFacts | None = None
        self._settings = settings
        self._api = api
        self._environ = environ
        self._warming: asyncio.Task[PodLook | None] | None = None
        self._last: PodLook | None = None

    @property
    def group(self) -> str:
        """The group by what is known without asking: an earlier answer, the setting, the environment."""
        known = self._last.group if self._last is not None else ""
        return known or self._settings.pod_group or group_in_environment(self._environ)

    @property
    def uid(self) -> str:
        """ "" where neither the settings nor the pod have said it."""
        return self._settings.pod_uid or (self.facts.uid if self.facts is not None else "")

    @property
    def path(self) -> str:
        settings = self._settings
        return f"/api/v1/namespaces/{quote(settings.pod_namespace, safe='')}/pods/{quote(settings.pod_name, safe='')}"

    def start(self) -> None:
        """Import the client and ask once, in the background. That learns the group, and says early what is wrong."""
        if self._api.reachable and self._warming is None:
            self._warming = asyncio.ensure_future(self._look(whole=True))

    async def look(self) -> PodLook | None:
        """What the API server says now, or None where it does not say within `PATIENCE` seconds. Never raises."""
        return await self._look(whole=False) if self._api.reachable else None

    async def whole(self) -> PodFacts | None:
        """The same for the rest of the pod; what is known of it is `facts`. None where nothing new was said."""
        looked = await self._look(whole=True) if self._api.reachable else None
        return self.facts if looked is not None else None

    async def _look(self, whole: bool) -> PodLook | None:
        """`whole`: nobody waits for it."""
        call = Call("GET", self.path, patience=_NO_HURRY) if whole else Call("GET", self.path, accept=_METADATA)
        fine = (404,) if self._last is not None else ()
        seconds = WARM_UP if whole else PATIENCE
        answer = await self._api.ask("get_pod", call, *_KINDS, fine=fine, first=not whole, seconds=seconds)
        if not answer.good:
            return None
        if self._last is not None and answer.status == 404:
            return PodLook(deleting=True, group=self._last.group)  # it was there before: deleted by force
        pod = answer.found
        self._last = pod_in(pod, self._settings.pod_uid)
        if pod["kind"] == "Pod" and isinstance(pod.get("status"), dict):
            self.facts = facts_in(pod)
        return self._last


def pod_in(pod: Mapping[str, Any], uid: str = "") -> PodLook:
    """`uid` is ours: a pod of our name with another one has taken our place."""
    metadata = pod["metadata"]
    replaced = bool(uid) and metadata.get("uid", uid) != uid
    deleting = metadata.get("deletionTimestamp") is not None or replaced
    return PodLook(deleting, _group(_texts(metadata.get("labels")), _texts(metadata.get("annotations"))))


def facts_in(pod: Mapping[str, Any]) -> PodFacts:
    """Whatever of it is there and makes sense."""
    names: dict[str, str] = {}
    status, spec = pod.get("status"), pod.get("spec")
    for row in _rows(status, "initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        # <runtime>://<id>, and "" before the container's first start.
        name, container = row.get("name"), str(row.get("containerID") or "").rpartition("://")[2]
        if container and isinstance(name, str) and _NAME.fullmatch(name) and len(names) < _MOST_CONTAINERS:
            names[container] = name
    codes: set[int] = set()
    for row in _rows(spec, "initContainers", "containers"):
        for rule in _rows(row, "restartPolicyRules"):
            exits = rule.get("exitCodes")
            if rule.get("action") != "RestartAllContainers" or not isinstance(exits, dict):
                continue
            values = [v for v in exits.get("values") or () if isinstance(v, int)]
            codes.update(values if exits.get("operator") == "In" else set(range(1, 256)).difference(values))
    uid = pod["metadata"].get("uid")
    return PodFacts(uid if isinstance(uid, str) else "", names, frozenset(codes))


def group_in_environment(environ: Mapping[str, str]) -> str:
    """A LeaderWorkerSet tells every container of its pods, ours too, where the group's leader is."""
    if environ.get("LWS_GROUP_SIZE") == "1":
        return ""
    return _named(environ.get("LWS_LEADER_ADDRESS", "").partition(".")[0])


def _group(labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    """The group in a pod's labels. A LeaderWorkerSet restarts one of its groups, whose name is that of its leader's
    pod; a JobSet all of its jobs.
    """
    name, index = labels.get(_LWS + "name", ""), labels.get(_LWS + "group-index", "")
    if name and index:
        return "" if annotations.get(_LWS + "size") == "1" else _named(f"{name}-{index}")
    return _named(name or labels.get(_JOBSET, ""))


def _named(text: str) -> str:
    """`text` if it is a name, else "": it goes into a record and a log."""
    return text if _NAME.fullmatch(text) else ""


def _texts(value: Any) -> dict[str, str]:
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}


def _rows(holder: Any, *keys: str) -> list[dict[str, Any]]:
    """The objects in these lists, whatever else is there."""
    lists = [holder.get(key) for key in keys] if isinstance(holder, dict) else []
    return [row for rows in lists if isinstance(rows, list) for row in rows if isinstance(row, dict)]
