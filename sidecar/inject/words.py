"""The words of injection: where a pod is, what came of it, and the names that are ours on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

PREFIX = "rankguard.dev/"
LABEL = PREFIX + "inject"
INJECTED, SKIPPED, WARNINGS = PREFIX + "injected", PREFIX + "skipped", PREFIX + "warnings"
LAST_INCIDENT = PREFIX + "last-incident"  # the sidecar's own
SIDECAR = "rankguard"
LWS, JOBSET = "leaderworkerset.sigs.k8s.io/", "jobset.sigs.k8s.io/"


class ClaimState(StrEnum):
    """What is known of a PersistentVolumeClaim."""

    OK = "ok"
    MISSING = "missing"
    NOT_SHARED = "not ReadWriteMany"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is known of a pod beside itself.

    `enforce` is the value of its namespace's label pod-security.kubernetes.io/enforce, "" where there is none.
    `owner_kind` is its controller's kind. `group_size` is a LeaderWorkerSet's, 0 where it is not known. `claims` has
    the claims of the pod's namespace by name; a name that is not among them, or no mapping at all: not known. `token`
    is what the hook is to be called with. `labelled`: only a pod with our label is injected.
    """

    namespace: str = ""
    enforce: str = ""
    owner_kind: str = ""
    group_size: int = 0
    claims: Mapping[str, ClaimState] | None = None
    token: str = field(default="", repr=False)
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class Injection:
    """What came of it. `pod` is a new value, with the reason as an annotation where nothing was injected.

    `reason` is a CamelCase word, `message` one sentence.
    """

    pod: dict[str, Any]
    injected: bool
    reason: str
    message: str
    warnings: tuple[str, ...] = ()


class Skip(Exception):
    """Why a pod is left as it is. Never leaves this package."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
