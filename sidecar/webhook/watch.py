"""Following objects of the API server: a watch that is begun again whenever it ends.

Without a resourceVersion a watch begins with what is there already, so no right to list is needed:
https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-watch
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sidecar.log import Log
from sidecar.webhook.api import METADATA, Api, ApiError
from sidecar.webhook.metrics import Metrics

ROUND = 540  # seconds that the API server is to keep one watch
SILENCE = 600.0  # seconds after which a connection counts as dead; a watch has ended by then
FIRST_RETRY, MOST_RETRY = 1.0, 60.0


class Watch:
    """`on_event` gets the type and the object's metadata; it is called on the watch's thread and must not fail.

    `live`: the events come now. `tried`: it has been, or was refused. `path` has no query; `selector` is a field
    selector.
    """

    def __init__(
        self, api: Api, path: str, on_event: Callable[[str, dict[str, Any]], None], metrics: Metrics, log: Log, *,
        operation: str, selector: str = "",
    ) -> None:  # fmt: skip
        chosen = f"&fieldSelector={selector.replace('=', '%3D')}" if selector else ""
        self._path = f"{path}?watch=1&timeoutSeconds={ROUND}{chosen}"
        self._api = api
        self._on_event = on_event
        self._metrics = metrics
        self._log = log
        self._operation = operation
        self._trouble = ""
        self.live = self.tried = False

    def start(self) -> None:
        threading.Thread(target=self.run, name=f"watch {self._operation}", daemon=True).start()

    def run(self) -> None:
        """Watch for ever; for a daemon thread."""
        delay = FIRST_RETRY
        pause = threading.Event()
        while True:
            try:
                for event in self._api.watch(self._path, silence=SILENCE, accept=METADATA):
                    delay = FIRST_RETRY
                    self._take(event)
                because = ""
            except ApiError as error:
                because = str(error)
                self._metrics.api_errors.labels(self._operation).inc()
                if because != self._trouble:
                    self._log("a watch of the API server's has ended; beginning again", what=self._operation,
                              because=because)  # fmt: skip
            self.live, self.tried = False, True
            self._trouble = because
            pause.wait(delay)
            delay = min(delay * 2, MOST_RETRY)

    def _take(self, event: dict[str, Any]) -> None:
        kind, found = str(event.get("type")), event.get("object")
        if kind == "ERROR" or not isinstance(found, dict):
            raise ApiError(0, f"the watch says: {str(found)[:200]}")
        self._trouble = ""
        metadata = found.get("metadata")
        if kind in ("ADDED", "MODIFIED", "DELETED") and isinstance(metadata, dict):
            self._on_event(kind, metadata)
        self.live = self.tried = True
