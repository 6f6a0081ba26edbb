"""One pure function, pod -> pod: the sidecar, and what the pod needs for it. Used by the webhook and by
`rankguard inject`, and mirrored by the admission policy; docs/injection.md has its rules.
"""

from __future__ import annotations

import copy
from typing import Any

from sidecar.inject.options import Options
from sidecar.inject.words import INJECTED, LABEL, SIDECAR, ClaimState, Injection, Place, Skip
from sidecar.version import VERSION

__all__ = ["ClaimState", "Injection", "Place", "inject"]


def inject(pod: Any, options: Options, place: Place) -> Injection:
    """The pod with the sidecar, or why it has none. `pod` itself is never changed, and nothing is raised."""
    if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
        return Injection({}, False, "NotAPod", "it has no spec")
    after = copy.deepcopy(pod)
    try:
        spec = after["spec"]
        containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
        if any(each.get("name") == SIDECAR for each in containers):
            raise Skip("AlreadyInjected", "it has a container rankguard")
        if place.labelled and ((pod.get("metadata") or {}).get("labels") or {}).get(LABEL) != "true":
            raise Skip("NoLabel", f"it has no label {LABEL}: true")
    except Skip as skip:
        return Injection(copy.deepcopy(pod), False, skip.reason, skip.message)
    spec["shareProcessNamespace"] = True
    spec["initContainers"] = [
        {"name": SIDECAR, "image": options.image, "args": ["run"], "restartPolicy": "Always"},
        *(spec.get("initContainers") or []),
    ]
    after.setdefault("metadata", {}).setdefault("annotations", {})[INJECTED] = VERSION
    return Injection(after, True, "Injected", f"the sidecar of version {VERSION} was added")
