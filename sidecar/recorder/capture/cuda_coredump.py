"""CUDA coredump of a rank that hangs: what each warp on its GPU was doing, written by the driver in the rank itself.

The driver writes it when a byte comes through a named pipe, if user-triggered coredumps were enabled before CUDA began.
It needs the process running, so of frozen ranks there is none. The work is done by a program of its own
(`sidecar.recorder.coredump`), which puts the dump on the volume itself: it may have gigabytes.
"""

from __future__ import annotations

import json
import time
from typing import Any

from sidecar.masking import mask_text
from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import GONE, Attempt, Ended, Piece, Scene, Target, over_limit, program

KIND = "cuda_coredump"
_MODULE = "sidecar.recorder.coredump.program"
_CAP = 1 << 16
_MARGIN = 0.1  # of the time, at most so many seconds, in which the program ends by itself
_LONGEST_MARGIN = 1.0
_MOST_OTHERS = 64


def collect(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The dump of one rank: `cuda_coredump/<label>.core`. Takes all the time that is left, if it must."""
    if scene.frozen:
        return _none(ArtifactStatus.SKIPPED, "needs a running process: the ranks are frozen")
    stat = scene.proc.stat(target.identity.pid)
    if stat is None or stat.identity != target.identity or stat.exiting:
        return _none(ArtifactStatus.SKIPPED, GONE)
    if not scene.folder:
        return _none(ArtifactStatus.SKIPPED, "the incident has no folder on the volume")
    order = {
        "proc": scene.proc.root,
        "pid": target.identity.pid,
        "start": target.identity.start,
        "others": [other.identity.pid for other in scene.targets[:_MOST_OTHERS] if other is not target],
        "folder": scene.folder,
        "label": target.label,
        "room": scene.room,
        "most": scene.coredump_max_bytes,
        "deadline": time.monotonic() + left - min(_LONGEST_MARGIN, left * _MARGIN),
        "lethal": scene.lethal,
    }
    return Attempt(program(scene, _MODULE, json.dumps(order)), lambda ended: _judge(target, ended), left, _CAP)


def _judge(target: Target, ended: Ended) -> tuple[Piece, ...]:
    if ended.failure:
        return _none(ArtifactStatus.FAILED, ended.failure)
    said = _last_line(ended.out)
    if "status" in said:
        return (_piece(said),)
    step = str(said.get("step", ""))
    if ended.wait_status is None:
        return _none(ArtifactStatus.TIMED_OUT, over_limit(ended) + (f" while {step}" if step else ""))
    lines = ended.err.decode("utf-8", "backslashreplace").splitlines() or ["it said nothing"]
    return _none(ArtifactStatus.FAILED, f"the collector failed{' while ' + step if step else ''}: {lines[-1]}")


def _piece(said: dict[str, Any]) -> Piece:
    written = (int(said["bytes"]), str(said["sha256"])) if said["file"] else None
    status = ArtifactStatus(said["status"])
    return Piece(KIND, status, str(said["file"]), detail=_clean(str(said["detail"])), written=written)


def _none(status: ArtifactStatus, detail: str) -> tuple[Piece, ...]:
    return (Piece(KIND, status, detail=_clean(detail)),)


def _last_line(out: bytes) -> dict[str, Any]:
    """The last whole line of the program's, {} where there is none."""
    lines = out.split(b"\n")[:-1]
    try:
        said = json.loads(lines[-1]) if lines else {}
    except ValueError:
        said = {}
    return said if isinstance(said, dict) else {}


def _clean(text: str) -> str:
    """Paths are chosen by the engine: no line breaks, no escapes, no secrets."""
    return mask_text("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text))
