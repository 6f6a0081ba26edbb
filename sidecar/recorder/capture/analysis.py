"""The analysis of what was captured: `analysis/stacks.txt`, `stacks.json` and `speedscope.json`, and the verdict.

Not asked for by name: the recorder runs it at the sealing, when all else is on the volume. It needs no process any
more. The work is done by a program of its own (`sidecar.recorder.analysis.program`), which may hang or run out of
memory.
"""

from __future__ import annotations

import json

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import MIB, Attempt, Ended, Piece, Scene, Target, over_limit, program

NAME = "analysis"
KINDS = {"txt": "analysis_text", "json": "analysis_json"}
VERDICT = "verdict"  # the kind of the piece that is no artifact: its data goes into the record
LIMIT = 4.0
_CAP = 12 * MIB
_MOST_HEADER = 64 * 1024
_MOST_ORDER = 100_000  # bytes of one argument; the kernel takes 128 KiB


def collect(_: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """What is to be explained stands in `scene.question`: see `examine` in that program."""
    limit = min(LIMIT, left)
    order = json.dumps({**json.loads(scene.question or "{}"), "folder": scene.folder, "seconds": limit})
    if len(order) > _MOST_ORDER:
        return _without("more ranks than can be told of")
    work = program(scene, "sidecar.recorder.analysis.program", order, bare=True)
    return Attempt(work=work, judge=_judge, limit=limit, cap=_CAP)


def _judge(ended: Ended) -> tuple[Piece, ...]:
    head, found, rest = ended.out.partition(b"\n")
    try:
        if not found or len(head) > _MOST_HEADER:
            raise ValueError("no answer")
        said = json.loads(head)
        pieces = [Piece(VERDICT, ArtifactStatus.CAPTURED, data=json.dumps(said["verdict"]).encode())]
        for name, size in said["files"]:
            data, rest = rest[:size], rest[size:]
            pieces.append(_file(name, data, whole=len(data) == size))
    except (ValueError, TypeError, KeyError, RecursionError):
        return _without(_why(ended), ArtifactStatus.TIMED_OUT if _hung(ended) else ArtifactStatus.FAILED)
    return tuple(pieces)


def _file(name: str, data: bytes, whole: bool) -> Piece:
    kind = KINDS[name.rpartition(".")[2]] if name != "speedscope.json" else "analysis_speedscope"
    if not whole:
        return Piece(kind, ArtifactStatus.FAILED, detail="more than may be kept")
    return Piece(kind, ArtifactStatus.CAPTURED, f"{NAME}/{name}", data)


def _without(why: str, status: ArtifactStatus = ArtifactStatus.FAILED) -> tuple[Piece, ...]:
    return (Piece(KINDS["txt"], status, detail=why),)


def _hung(ended: Ended) -> bool:
    return ended.wait_status is None and not ended.cut and not ended.failure


def _why(ended: Ended) -> str:
    if ended.failure:
        return ended.failure
    if ended.cut:
        return "the analysis wrote more than is kept"
    if ended.wait_status is None:
        return f"the analysis was {over_limit(ended)}"
    said = ended.err.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2][:200]
    return f"the analysis ended with {ended.wait_status:#x}: {''.join(c for c in said if c.isprintable())}"
