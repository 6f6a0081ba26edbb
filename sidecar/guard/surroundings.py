"""What an incident's case works with, and the phases that it goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sidecar.guard.herd import Herd
from sidecar.guard.links import RecorderLink, WebLink
from sidecar.guard.shm import Leftovers
from sidecar.guard.termination_logs import TerminationLogs
from sidecar.guard.timers import Timers
from sidecar.log import Log
from sidecar.model import RankProcess, Reason

if TYPE_CHECKING:
    from sidecar.guard.case import Case


# What is captured while the engine runs on; and by which probe it was found, for the count of liveness failures.
LIVENESS = {Reason.ENGINE_STALLED: "progress", Reason.LIVENESS_FAILED: "http", Reason.PRE_STOP: "prestop"}
RUNNING = (*LIVENESS, Reason.PEER_FAILED)


class Phase(StrEnum):
    OPENED = "opened"
    CAPTURING = "capturing"
    REAPING = "reaping"
    SEALING = "sealing"
    CLOSED = "closed"


@dataclass(slots=True)
class Surroundings:
    """What a case works with. `tell_supervisor` sends a message and returns whether it was taken."""

    herd: Herd
    timers: Timers
    web: WebLink
    log: Log
    leftovers: Leftovers
    termination_logs: TerminationLogs
    tell_supervisor: Callable[[dict[str, object]], bool]
    take_recorder: Callable[[], RecorderLink | None]
    ranks: Callable[[], list[RankProcess]]
    terminated: Callable[[Case], None]
    sealing: Callable[[Case], None]
    closed: Callable[[Case], None]
    reap_timeout: float
    death_deadline: float
