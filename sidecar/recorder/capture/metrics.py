"""The engine's own metrics of the last minutes, as the web process scraped them: `metrics/engine.jsonl`.

They come from shared memory, since an engine that hangs or stands still answers no scrape.
"""

from __future__ import annotations

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import Attempt, Piece, Scene, Target

KIND = "engine_metrics"


def collect(_: Target, scene: Scene, __: float) -> Attempt | tuple[Piece, ...]:
    """All that is kept, oldest first. Skipped where nothing was scraped."""
    from sidecar.history import read  # here, since a recorder that stands by has no use for it

    data = read(scene.history_fd) if scene.history_fd >= 0 else b""
    if not data:
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail="no metrics of the engine were read"),)
    return (Piece(KIND, ArtifactStatus.CAPTURED, "metrics/engine.jsonl", data),)
