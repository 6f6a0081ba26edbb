"""AdmissionReview, admission.k8s.io/v1: reading a request, writing an answer. Pure.

Every answer that can be given allows: https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERSION = "admission.k8s.io/v1"
_GROUP = "admission.k8s.io/"
MOST_WARNINGS = 8
MOST_WARNING = 240  # characters of one; the API server cuts at 256, and drops what is above 4096 in all


@dataclass(frozen=True, slots=True)
class Review:
    """One request. `namespace` is the request's: a pod's own may be unset until it is stored. `pod` is what is to be
    created, whatever it is.
    """

    uid: str
    version: str
    operation: str
    pod_kind: bool
    namespace: str
    name: str
    dry_run: bool
    pod: Any


class NoReview(ValueError):
    """A body that cannot be answered as a review: there is no uid to answer to. The text says why."""


def read(body: bytes) -> Review:
    """Raises `NoReview`."""
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoReview("the body is no JSON") from error
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise NoReview("the body is no AdmissionReview")
    version, request = _text(review.get("apiVersion")), review.get("request")
    if not version.startswith(_GROUP):
        raise NoReview(f"the apiVersion is not {VERSION}")
    if not isinstance(request, dict) or not _text(request.get("uid")):
        raise NoReview("there is no request with a uid in it")
    kind = request.get("kind")
    kind = kind if isinstance(kind, dict) else {}
    core = (_text(kind.get("group")), kind.get("version"), kind.get("kind")) == ("", "v1", "Pod")
    return Review(
        uid=request["uid"],
        version=version,
        operation=_text(request.get("operation")),
        pod_kind=core and not request.get("subResource"),
        namespace=_text(request.get("namespace")),
        name=_text(request.get("name")),
        dry_run=request.get("dryRun") is True,
        pod=request.get("object"),
    )


def answer(review: Review, patch: str = "", warnings: Sequence[str] = (), reason: str = "") -> bytes:
    """Allow it. `patch` is JSON text. The API server takes an answer in the version of its request alone."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(patch.encode()).decode()
    if warnings:
        response["warnings"] = [_line(warning) for warning in warnings[:MOST_WARNINGS]]
    if reason:
        response["auditAnnotations"] = {"rankguard": reason}
    return json.dumps({"apiVersion": review.version, "kind": "AdmissionReview", "response": response}).encode()


def _line(text: str) -> str:
    """A warning becomes an HTTP header that kubectl prints: one line, printable."""
    line = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= MOST_WARNING else line[: MOST_WARNING - 1] + "…"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
