"""The analysis of an incident, at its sealing: out of the way of the kill, in a child, and within a limit of time.

The record waits for it, for at most `analysis.LIMIT` seconds, and is sealed without it where it fails.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

from sidecar.model import plain
from sidecar.recorder.capture import analysis
from sidecar.recorder.capture.base import Scene
from sidecar.recorder.captures import Captures, Taken
from sidecar.recorder.reactor import Reactor
from sidecar.recorder.work import Work
from sidecar.system.memory import OwnMemory

_MOST_VERDICT = 64 * 1024


class Explaining:
    """Call `step` whenever something was read or `wake_at` has come."""

    def __init__(self, work: Work, scene: Scene, apart: float, reactor: Reactor, memory: OwnMemory) -> None:
        """`scene`: with the incident's targets and folder. `apart`: seconds between the two snapshots of a rank."""
        self._work = work
        self._began = time.monotonic()
        asked = replace(scene, question=_question(work, scene, apart))
        deadline = self._began + analysis.LIMIT
        work.give_up_at += analysis.LIMIT  # the time it takes is not the volume's
        self._captures = Captures((analysis.NAME,), asked, deadline, reactor, memory=memory)

    def step(self) -> None:
        """What it has found goes into the work, which is `explained` when it is over. Never blocks."""
        for taken in self._captures.step():
            self._keep(taken)
        self._captures.reap()
        if self._captures.done and not self._work.explained:
            self._work.explained = True
            self._work.give_up_at -= max(0.0, self._began + analysis.LIMIT - time.monotonic())

    def wake_at(self) -> float:
        return math.inf if self._work.explained else self._captures.wake_at()

    def abandon(self) -> None:
        self._captures.abandon()

    def _keep(self, taken: Taken) -> None:
        for piece in taken.pieces:
            if piece.kind == analysis.VERDICT and len(piece.data) <= _MOST_VERDICT:
                self._work.finding = json.loads(piece.data)
        artifacts = tuple(piece for piece in taken.pieces if piece.kind != analysis.VERDICT)
        self._work.evidence.add(replace(taken, pieces=artifacts))


def _question(work: Work, scene: Scene, apart: float) -> str:
    incident = work.incident
    return json.dumps({
        "engine": incident.engine,
        "reason": incident.reason.value,
        "failures": [plain(failure) for failure in incident.failures],
        "because": list(incident.decision.because),
        "liveness": plain(incident.verdict) if incident.verdict else None,
        "frozen": work.frozen,
        "apart": apart,
        "ranks": [
            {"rank": one.rank or one.label, "label": one.label, "role": one.role, "pid": one.identity.pid}
            for one in scene.targets if one.is_rank
        ],
    })  # fmt: skip
