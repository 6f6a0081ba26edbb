"""How much a pod keeps on its volume: from its settings, and how its sidecar says so in the counters file that it
leaves there. Older readers of that file do not look at these keys."""

from __future__ import annotations

from typing import Any

from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping
from sidecar.settings import Settings

# The names in the file, and the fields that they stand for.
LIMITS = {
    "max_incidents": "max_count",
    "max_bytes": "max_bytes",
    "max_age_seconds": "max_age",
    "volume_limit": "volume_limit",
    "free_floor": "free_floor",
    "headroom": "headroom",
}


def keeping_of(settings: Settings) -> Keeping:
    return Keeping(
        max_count=settings.dump_max_incidents,
        max_bytes=settings.dump_max_bytes,
        max_age=settings.dump_max_age,
        volume_limit=settings.dump_volume_limit,
        free_floor=settings.dump_free_floor,
        headroom=settings.coredump_max_bytes if "cuda_coredump" in settings.captures else 0,
    )


def about(pod: PodInfo, keeping: Keeping) -> dict[str, Any]:
    """What a sidecar says of itself beside its counts; `sidecar.dumps.owners` reads it."""
    return {
        "pod": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
        "keeps": {name: getattr(keeping, field) for name, field in LIMITS.items()},
    }
