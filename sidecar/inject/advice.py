"""What is right and may still go wrong: said with the injection, and done all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.inject import environment
from sidecar.inject.options import Options
from sidecar.inject.words import Place


def advice(options: Options, metadata: Mapping[str, Any], place: Place, in_pod: bool) -> list[str]:
    """`in_pod`: the evidence goes with the pod."""
    lines = []
    image, digest, _ = options.image.partition("@")
    tag = image.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        lines.append(f"image: {image} may be another one each time: give a version or a digest")
    if options.image_pull_policy == "Always":
        lines.append("image-pull-policy: Always: the engine does not start while the registry cannot be reached")
    if in_pod and environment.in_leader_worker_set(metadata, place):
        lines.append("a LeaderWorkerSet deletes its pods after a kill, and what is in an emptyDir: use a claim")
    return lines
