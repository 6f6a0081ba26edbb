"""Injection for one request: the patch, with a hook token of the pod's own in it.

A Deployment's pods come many at once and are the same until they are stored: what was worked out for the last few is
used again for a pod that is equal, with another token. That is most of an answer's time (seen: 2 of 2.8 ms).
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from sidecar.inject.options import Options
from sidecar.inject.patch import json_patch
from sidecar.inject.pod import inject
from sidecar.inject.words import Place

_KEPT = 8


@dataclass(frozen=True, slots=True)
class Worked:
    """What injection made of a pod. `patch` is JSON text, "" for none."""

    patch: str
    injected: bool
    reason: str
    message: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    pod: Any
    options: Options
    place: Place
    worked: Worked


def token() -> str:
    """A new hook token. It has no character that JSON would write in another way."""
    return secrets.token_urlsafe(24)


def work(pod: Any, options: Options, place: Place, hook_token: str) -> Worked:
    """Pure, but for the time that it takes."""
    pod = without_history(pod)
    injection = inject(pod, options, replace(place, token=hook_token))
    patch = json_patch(pod, injection.pod) if injection.pod else []  # {}: it is no pod
    text = json.dumps(patch, separators=(",", ":")) if patch else ""
    return Worked(text, injection.injected, injection.reason, injection.message, tuple(injection.warnings))


class Recent:
    """`work`, with a token of each pod's own, and a memory. Not for several threads."""

    def __init__(self) -> None:
        self._known: deque[_Known] = deque(maxlen=_KEPT)
        self._stand_in = token()  # nobody knows it, so no pod has it in its fields

    def work(self, pod: Any, options: Options, place: Place) -> Worked:
        pod = without_history(pod)
        for known in self._known:
            if known.options is options and known.place == place and known.pod == pod:
                worked = known.worked
                break
        else:
            worked = work(pod, options, place, self._stand_in)
            self._known.appendleft(_Known(pod, options, place, worked))
        return replace(worked, patch=worked.patch.replace(self._stand_in, token()))


def without_history(pod: Any) -> Any:
    """Without managedFields, which are often half of a pod, are nobody's business here, and would be copied."""
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return pod
    return {**pod, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}
