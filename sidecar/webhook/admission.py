"""One admission request to one answer, which always lets the pod through.

    not a pod, not a creation, kube-system or our own namespace, no label ──▶ let through as it is
    else what the namespace enforces and which claims there are (a moment at most) ──▶ sidecar.inject ──▶ a patch

Whatever goes wrong on the way lets the pod through as it is, with a warning to whoever created it, and an Event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from sidecar.inject.words import LABEL, Place
from sidecar.log import Log
from sidecar.webhook import review as reviews
from sidecar.webhook.claims import Claims, claims_wanted
from sidecar.webhook.events import Event, Events, about
from sidecar.webhook.namespaces import SAFEST, Namespaces
from sidecar.webhook.options_file import OptionsFile
from sidecar.webhook.review import Review
from sidecar.webhook.work import Recent, token, work

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
QUIET = frozenset({"AlreadyInjected", "OptedOut", "NoLabel", "NotAPod"})  # what nobody has to be told
LARGE = 64 * 1024  # bytes; a larger review is worked on aside, so that the others are answered meanwhile


@dataclass(frozen=True, slots=True)
class Answer:
    """`outcome` and `reason` are what is counted."""

    body: bytes
    outcome: str
    reason: str


class Admission:
    """Made and used on the event loop. `own_namespace` is where the webhook runs, "" where that is not known."""

    def __init__(
        self, options: OptionsFile, namespaces: Namespaces, claims: Claims, events: Events, executor: Executor,
        own_namespace: str, log: Log,
    ) -> None:  # fmt: skip
        self._options = options
        self._namespaces = namespaces
        self._claims = claims
        self._events = events
        self._executor = executor
        self._never = SYSTEM_NAMESPACES | ({own_namespace} if own_namespace else set())
        self._log = log
        self._recent = Recent()

    async def answer(self, body: bytes) -> Answer:
        """Raises `review.NoReview` where there is nothing that could be answered."""
        large = len(body) > LARGE
        review = await self._aside(reviews.read, body) if large else reviews.read(body)
        if review.version != reviews.VERSION:
            text = f"rankguard: no sidecar: the review has version {review.version[:60]}, not {reviews.VERSION}"
            return Answer(reviews.answer(review, warnings=[text]), "refused", "WrongVersion")
        if (untouched := self._untouched(review)) is not None:
            return Answer(reviews.answer(review), "skipped", untouched)
        try:
            return await self._decide(review, large)
        except Exception as error:  # noqa: BLE001 - a request's outermost place: no bug of ours may block a pod
            self._log("a bug: a pod was let through without its sidecar", namespace=review.namespace,
                      error=f"{type(error).__name__}: {error}")  # fmt: skip
            text = f"no sidecar, because of an error in the webhook: {type(error).__name__}"
            self._tell(review, "InjectionFailed", text)
            return Answer(reviews.answer(review, warnings=[f"rankguard: {text}"]), "error", "InternalError")

    def _untouched(self, review: Review) -> str | None:
        """Why there is nothing to decide, or None."""
        if not review.pod_kind:
            return "NotAPod"
        if review.operation != "CREATE":
            return "NotACreation"
        if review.namespace in self._never:
            return "SystemNamespace"
        return None if _wants(review.pod) else "NoLabel"

    async def _decide(self, review: Review, large: bool) -> Answer:
        options = self._options.current
        wanted = claims_wanted(review.pod, options)
        enforce, claims = self._namespaces.watched(review.namespace), None
        if enforce is None or wanted:  # else there is nothing to wait for
            enforce, claims = await asyncio.gather(
                self._namespaces.enforce(review.namespace), self._claims.ask(review.namespace, wanted)
            )
        warnings = []
        if enforce is None:
            warnings.append(
                "it is not known what Pod Security the namespace enforces, so the sidecar gets the rights of"
                f" {SAFEST!r}; create the pod again once the API server answers"
            )
        place = Place(
            namespace=review.namespace,
            enforce=SAFEST if enforce is None else enforce,
            owner_kind=_owner_kind(review.pod),
            claims=claims,
        )
        worked = (
            await self._aside(work, review.pod, options, place, token())
            if large
            else self._recent.work(review.pod, options, place)
        )
        warnings += worked.warnings
        if not worked.injected and worked.reason not in QUIET:
            text = f"no sidecar: {worked.reason}: {worked.message}"
            warnings.insert(0, text)
            self._tell(review, "InjectionSkipped", text)
        elif warnings and worked.injected:
            self._tell(review, "InjectionIncomplete", "; ".join(warnings))
        lines = [f"rankguard: {text}" for text in warnings]
        body = reviews.answer(review, worked.patch, lines, worked.reason)
        return Answer(body, "injected" if worked.injected else "skipped", worked.reason)

    def _tell(self, review: Review, reason: str, text: str) -> None:
        """An Event, unless it is a trial run, which must leave nothing behind."""
        if not review.dry_run and review.namespace:
            found = about(review.pod, review.namespace, review.name)
            self._events.post(Event(review.namespace, found, reason, text))

    async def _aside(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


def _wants(pod: Any) -> bool:
    """Whether there is the label at all: what its value means is decided where the pod is."""
    return LABEL in _mapping(_mapping(_mapping(pod).get("metadata")).get("labels"))


def _owner_kind(pod: Any) -> str:
    owners = _mapping(_mapping(pod).get("metadata")).get("ownerReferences")
    for owner in map(_mapping, owners if isinstance(owners, list) else []):
        if owner.get("controller") is True and isinstance(owner.get("kind"), str):
            return str(owner["kind"])
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
