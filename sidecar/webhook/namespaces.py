"""The level of Pod Security that a namespace enforces, which decides what rights a sidecar may have in it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any
from urllib.parse import quote

from sidecar.log import Log
from sidecar.webhook.api import METADATA, Api, ApiError
from sidecar.webhook.lookups import Lookups
from sidecar.webhook.metrics import Metrics
from sidecar.webhook.watch import Watch

ENFORCE = "pod-security.kubernetes.io/enforce"
# Where nothing is known. A pod with more rights than its namespace allows is refused by the API server, and no engine
# may be kept from starting by us.
SAFEST = "restricted"
_PATIENCE = 2.0  # seconds for one call
_FRESH, _STALE = 10.0, 600.0  # seconds
_SETTLING = 10.0  # seconds that the start waits for the watch; the client's import takes one of them
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Namespaces:
    """Known from a watch; one that the watch has not told of, or while there is no watch, is asked for."""

    def __init__(self, api: Api, executor: Executor, metrics: Metrics, log: Log) -> None:
        self._api = api
        self._metrics = metrics
        self._watch = Watch(api, "/api/v1/namespaces", self._on_event, metrics, log, operation="namespaces")
        self._watched: dict[str, str] = {}
        self._started = 0.0
        self._lookups: Lookups[str, str] = Lookups(
            self._get, executor, self._on_error, fresh=lambda _: _FRESH, stale=_STALE
        )

    def start(self) -> None:
        self._started = time.monotonic()
        self._watch.start()

    @property
    def settled(self) -> bool:
        """Whether the first requests find what there is to be known."""
        return not self._started or self._watch.tried or time.monotonic() - self._started > _SETTLING

    def watched(self, name: str) -> str | None:
        """What the watch told, None where that is nothing."""
        return self._watched.get(name) if self._watch.live else None

    async def enforce(self, name: str) -> str | None:
        """The label's value, "" for none; None where it is not known. Takes a moment at most and never raises."""
        if (told := self.watched(name)) is not None:
            return told
        if not self._api.reachable or not _NAME.fullmatch(name):
            return None
        found = await self._lookups.ask(name)
        return found if found is not None else self._watched.get(name)

    def _on_event(self, kind: str, metadata: Mapping[str, Any]) -> None:
        """On the watch's thread; one assignment at a time, so readers need no lock."""
        name = str(metadata.get("name"))
        if kind == "DELETED":
            self._watched.pop(name, None)
        else:
            self._watched[name] = _enforce(metadata)

    def _get(self, name: str) -> str:
        path = f"/api/v1/namespaces/{quote(name, safe='')}"
        found = self._api.call("GET", path, seconds=_PATIENCE, accept=METADATA)
        metadata = found.get("metadata")
        return _enforce(metadata if isinstance(metadata, dict) else {})

    def _on_error(self, _: ApiError) -> None:
        self._metrics.api_errors.labels("namespace").inc()


def _enforce(metadata: Mapping[str, Any]) -> str:
    labels = metadata.get("labels")
    value = labels.get(ENFORCE, "") if isinstance(labels, dict) else ""
    return value if isinstance(value, str) else ""
