"""The API server as the web's other parts ask it: without an answer there is a reason, one log line a change, and a
count; never an exception, and never a wait on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.log import Log
from sidecar.settings import Settings
from sidecar.web.kubernetes.asking import Asking, Call

WARM_UP = 30.0  # seconds for the first look, with the import
_MORE = 0.5  # seconds that a call may take beyond its patience, for the thread
_LONGEST_REASON = 200
# By operation (`counters.OPERATIONS`): what there is not while it fails.
_LOST = {
    "get_pod": "the API server does not tell about the pod",
    "create_event": "no Event can be made",
    "patch_event": "no Event can be brought up to date",
    "patch_pod": "the pod's annotation cannot be set",
    "delete_pod": "the pod cannot be deleted",
    "get_configmap": "the fleet switch cannot be read; its last word holds",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 where none came, `trouble` why it will not do ("" where it will), `found` the object in it."""

    status: int
    trouble: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.trouble

    @property
    def worth_another_try(self) -> bool:
        """It may be another time; a token is rotated, a server comes back."""
        return bool(self.trouble) and (self.status in (0, 401, 408, 429) or self.status >= 500)


class Api:
    """`count` is told the operation of each call that failed. `environ` and `folder`, the service account's, say where
    the API server is. `because` is why it cannot be asked at all, "" where it can.
    """

    def __init__(
        self, settings: Settings, log: Log, count: Callable[[str], None], environ: Mapping[str, str] = os.environ
    ) -> None:
        folder = settings.service_account_dir
        self._log = log
        self._count = count
        self._troubles: dict[str, str] = {}
        # What somebody waits for does not stand behind what nobody waits for.
        self._looking = Asking("kubernetes-look", environ, folder)
        self._telling = Asking("kubernetes-tell", environ, folder)
        self.because = ""
        if not environ.get("KUBERNETES_SERVICE_HOST") or not os.path.exists(os.path.join(folder, "token")):
            self.because = "there is no service account's token"
        elif not settings.pod_namespace or not settings.pod_name:
            self.because = "pod_namespace or pod_name is not set"
            log("the API server is not asked about the pod", because=self.because)

    @property
    def reachable(self) -> bool:
        return not self.because

    async def warm(self) -> None:
        """Return when the library is there, so that no call's time is spent on that; after a while all the same."""
        await asyncio.wait({self._telling.worker.submit(self._telling.load)}, timeout=WARM_UP)

    async def ask(
        self, operation: str, call: Call, *kinds: str, fine: tuple[int, ...] = (), first: bool = False,
        seconds: float | None = None,
    ) -> Answer:  # fmt: skip
        """Never raises. What will do is a 200 or 201 with an object of one of these `kinds`, and the statuses in
        `fine`. `first`: somebody waits for it. `seconds`: how long the caller waits, where that is not the call's
        patience.
        """
        asking = self._looking if first else self._telling
        limit = call.patience + _MORE if seconds is None else seconds
        future = asking.worker.submit(asking.ask, call)
        await asyncio.wait({future}, timeout=limit)
        if not future.done():
            future.cancel()
            return self._judged(operation, Answer(0, f"it did not answer within {limit:g} s"))
        failed = future.exception()
        if failed is not None:
            return self._judged(operation, Answer(0, f"{type(failed).__name__}: {failed}"))
        status, body = future.result()
        if status not in (200, 201):
            return self._judged(operation, Answer(status, "" if status in fine else _trouble(status, body)))
        try:
            return self._judged(operation, Answer(status, found=_object(body, kinds)))
        except ValueError as error:
            return self._judged(operation, Answer(status, f"its answer is no {kinds[-1]}: {error}"))

    def _judged(self, operation: str, answer: Answer) -> Answer:
        """Log and count what came of it."""
        before = self._troubles.get(operation, "")
        if answer.trouble:
            self._count(operation)
            if answer.trouble != before:
                self._log(_LOST[operation], because=answer.trouble)
        elif before:
            self._log("the API server answers again", operation=operation)
        self._troubles[operation] = answer.trouble
        return answer

    def troubles(self) -> dict[str, str]:
        """By operation: what is wrong now."""
        return {operation: trouble for operation, trouble in self._troubles.items() if trouble}


def _object(body: bytes, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The object in an answer. Raises `ValueError` where it is of none of these kinds."""
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict) or found.get("kind") not in kinds or not isinstance(found.get("metadata"), dict):
        raise ValueError("it is JSON of another kind")
    return found


def _trouble(status: int, body: bytes) -> str:
    told = {
        401: "the token is not taken: it has expired, or a clock is wrong",
        403: "the service account has no right to",
    }.get(status, "")
    try:
        said = _object(body, ("Status",)).get("message")
    except ValueError:
        said = None
    reason = "".join(c if c.isprintable() else " " for c in said[:_LONGEST_REASON]) if isinstance(said, str) else ""
    return f"status {status}" + "".join(f": {words}" for words in (told, reason) if words)
