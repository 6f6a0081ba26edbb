"""The one incident that a recorder works on, as its two halves share it: the captures and the volume."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from sidecar.model import Incident, RankProcess, TimelineEntry
from sidecar.recorder.captures import Captures
from sidecar.recorder.evidence import Evidence


@dataclass(slots=True)
class Work:
    """Times are monotonic seconds. `deadline` and `captures_at`: when captures end, and begin, at the latest.

    Until `quiet_until`, or until all is captured, only the opening record is written: the engine stands still
    meanwhile, and two threads share one interpreter. `wanted` are the captures that the guard has asked of this
    recorder; one that takes over late is asked for none. `twice`: two snapshots, to see what moves. `sealing`: the
    guard has said its last word. `telling`: the termination logs are being written; until `told_by` the volume waits.
    `explained`: the analysis is over, with or without a `finding`. `leaving`: the guard is lost. `dirty`: the record on
    the volume is not what is known. `own` are the recorder's own steps in the timeline.
    """

    incident: Incident
    ranks: tuple[RankProcess, ...]
    wanted: tuple[str, ...]
    frozen: bool
    deadline: float
    captures_at: float
    quiet_until: float
    captures: Captures | None = None
    evidence: Evidence = field(default_factory=Evidence)
    twice: bool = False
    own: list[TimelineEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    opened: bool = False
    sealing: bool = False
    explained: bool = False
    finding: dict[str, Any] | None = None
    leaving: bool = False
    telling: bool = False
    told_by: float = 0.0
    dirty: bool = False
    give_up_at: float = math.inf

    @property
    def captured(self) -> bool:
        return self.captures is not None and self.captures.done

    def note(self, event: str, detail: str) -> None:
        self.own.append(TimelineEntry(time.monotonic(), time.time(), event, detail))
        self.dirty = True
