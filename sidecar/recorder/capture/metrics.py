"""The engine's own metrics of the last minutes, as the web process scraped them, and its ranks' CPU times:
`metrics/engine.jsonl`.

They come from shared memory, since an engine that hangs or stands still answers no scrape.
"""

from __future__ import annotations

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import Attempt, Piece, Scene, Target

KIND = "engine_metrics"
_FILE = "metrics/engine.jsonl"
_NONE = "no metrics of the engine were read"


def collect(_: Target, scene: Scene, __: float) -> Attempt | tuple[Piece, ...]:
    """All that is kept, oldest first. Skipped where there is nothing, partial where the engine's own are not there."""
    from sidecar.history import CPU_SECONDS, read  # here, since a recorder that stands by has no use for it

    data = read(scene.history_fd) if scene.history_fd >= 0 else b""
    if not data:
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail=_NONE),)
    ours = f'"lines": ["{CPU_SECONDS}{{'.encode()  # a record has either CPU times or the engine's metrics
    if all(ours in record for record in data.splitlines()):
        detail = f"{_NONE}: only the CPU times of its ranks"
        return (Piece(KIND, ArtifactStatus.PARTIAL, _FILE, data, detail),)
    return (Piece(KIND, ArtifactStatus.CAPTURED, _FILE, data),)
