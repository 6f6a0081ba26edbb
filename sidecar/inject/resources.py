"""What the sidecar asks of a node. A pod that is Guaranteed stays so, and nobody's room becomes smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.inject.quantities import number

_CPU_AND_MEMORY = ("cpu", "memory")
_STORAGE = "ephemeral-storage"
_BESIDE_A_VOLUME = "256Mi"  # of storage, where the evidence is not on the node: a log and little else


def sidecar_resources(
    wanted: Mapping[str, Mapping[str, str]],
    containers: Iterable[Mapping[str, Any]],
    pod: Mapping[str, Any] | None,
    dumps_limit: str,
) -> dict[str, dict[str, str]]:
    """`wanted` are the installation's, `pod` the pod's own resources, `dumps_limit` an emptyDir's sizeLimit or ""."""
    others = list(containers)
    requests, limits = dict(wanted.get("requests") or {}), dict(wanted.get("limits") or {})
    if pod and (pod.get("requests") or pod.get("limits")):
        # They hold all of its containers, and the API server refuses a sum of theirs that is more.
        for name in _CPU_AND_MEMORY:
            requests.pop(name, None)
            limits.pop(name, None)
    elif guaranteed(others):
        # Less than a CPU would be a throttle, and a sidecar that is throttled sees a death late.
        cpu = max(limits.get("cpu", "0"), requests.get("cpu", "0"), "1", key=number)
        memory = limits.get("memory") or requests.get("memory") or "192Mi"
        requests |= {"cpu": cpu, "memory": memory}
        limits |= {"cpu": cpu, "memory": memory}
    if _STORAGE in requests:
        requests[_STORAGE] = min(requests[_STORAGE], dumps_limit or _BESIDE_A_VOLUME, key=number)
    if any(_STORAGE in ((each.get("resources") or {}).get("limits") or {}) for each in others):
        # The kubelet holds what the whole pod writes against the sum of the limits that there are: without ours the
        # dumps would take their room from the engine, and where nobody has one, ours would be the engine's too.
        limits[_STORAGE] = max(
            limits.get(_STORAGE, "0"), requests.get(_STORAGE, "0"), dumps_limit or _BESIDE_A_VOLUME, key=number
        )
    else:
        limits.pop(_STORAGE, None)
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def guaranteed(containers: Iterable[Mapping[str, Any]]) -> bool:
    """Whether these alone make a Guaranteed pod: limits of CPU and memory everywhere, and requests that equal them."""
    for container in containers:
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in _CPU_AND_MEMORY:
            limit = number(limits.get(name, ""))
            if limit <= 0 or number(requests.get(name, limits.get(name))) != limit:
                return False
    return True
