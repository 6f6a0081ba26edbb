"""Python and native stacks in one, by `py-spy dump --native`: where in a library a rank waits.

It pauses its target for as long as it reads symbols, and fails on one that is stopped already (seen with 0.4.3). There
is no other way to fall back to: the plain stacks are taken before these, and why these are missing is recorded.
"""

from __future__ import annotations

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import NEEDS_RUNNING, Attempt, Piece, Scene, Target
from sidecar.recorder.capture.pyspy import NATIVE, judge, obstacle_of

_LIMIT = 20.0
_SHARE = 0.4  # of the time that is left, so that a coredump still gets some


def collect(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """Stacks of all threads: `pyspy_native/<label>.json` and `pyspy_native/<label>.txt`."""
    obstacle = obstacle_of(NATIVE, target, scene)
    if obstacle:
        return obstacle
    stat = scene.proc.stat(target.identity.pid)
    if scene.frozen or stat is None or stat.state in ("T", "t"):
        return NATIVE.both(ArtifactStatus.SKIPPED, f"{NEEDS_RUNNING}: it is stopped")
    return Attempt(
        work=(scene.pyspy, "dump", "--json", "--native", "--pid", str(target.identity.pid)),
        judge=lambda ended: judge(NATIVE, target, scene, "", ended),
        limit=min(_LIMIT, left * _SHARE),
        pauses=True,
    )
