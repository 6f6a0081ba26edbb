"""The vocabulary. Every process of Rankguard speaks in these words, and in no others.

Frozen values and enums, stdlib only, no behaviour that touches the world. Times called `at` or `observed_at`
are seconds on the monotonic clock; `wall` is seconds since the epoch. A bare pid is never an identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

SCHEMA = "rankguard.dev/incident/v1"


class Role(StrEnum):
    SCHEDULER = "scheduler"
    WORKER = "worker"
    ENGINE_CORE = "engine_core"
    DETOKENIZER = "detokenizer"
    CONTROLLER = "controller"
    SERVER = "server"


class Reason(StrEnum):
    """Why there is an incident. Fixed by the outer contract."""

    RANK_DIED = "RankDied"
    RANK_MISSING = "RankMissing"
    LIVENESS_FAILED = "LivenessFailed"
    ENGINE_STALLED = "EngineStalled"
    ENGINE_EXITED = "EngineExited"
    PRE_STOP = "PreStop"
    PEER_FAILED = "PeerFailed"
    MANUAL = "Manual"


class Cause(StrEnum):
    """What a process died of. Fixed by the outer contract."""

    OOM_KILLED = "oom_killed"
    SIGKILL = "sigkill"
    SIGSEGV = "sigsegv"
    SIGABRT = "sigabrt"
    SIGBUS = "sigbus"
    SIGTERM = "sigterm"
    OTHER_SIGNAL = "other_signal"
    EXIT_NONZERO = "exit_nonzero"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What to do about a failure.

    `kill`: freeze, capture, kill. `capture`: freeze, capture, let go. `observe`: record only, signal nothing.
    """

    KILL = "kill"
    CAPTURE = "capture"
    OBSERVE = "observe"


class Outcome(StrEnum):
    """What became of a process that was to be terminated. `exited_unreaped` is a zombie: its resources are free."""

    REAPED = "reaped"
    EXITED_UNREAPED = "exited_unreaped"
    STILL_ALIVE = "still_alive"
    ALREADY_GONE = "already_gone"
    DENIED = "denied"


class ArtifactStatus(StrEnum):
    CAPTURED = "captured"
    PARTIAL = "partial"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    SKIPPED = "skipped"


class State(StrEnum):
    """Where the engine stands. The transitions are the table in `policy.machine`."""

    WAITING = "waiting"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    FAILING = "failing"
    RESTARTING = "restarting"


class Liveness(StrEnum):
    """What a look at a living engine says. Only `stuck` and `dead` are failures."""

    IDLE = "idle"
    BUSY = "busy"
    COMPILING = "compiling"
    STUCK = "stuck"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, not a pid: `start` is field 22 of /proc/PID/stat, in clock ticks since boot."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class RankProcess:
    """One watched process of the engine.

    `rank` is the label (`TP3`, `DP0_PP1_TP3`), or the role where there is none. `container` is a container's id, or
    "" on a host without containers. `titled` is False while the engine has not yet named the process.
    """

    identity: Identity
    role: Role
    rank: str
    title: str
    ppid: int
    pgid: int
    sid: int
    container: str = ""
    titled: bool = True


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: exactly one of `code` and `signal` is set, or neither, and then `why_unknown` says why."""

    code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    why_unknown: str = ""

    @property
    def known(self) -> bool:
        return self.code is not None or self.signal is not None


@dataclass(frozen=True, slots=True)
class ProcessExiting:
    """The process has begun to die: the kernel takes it apart, and wait(2) does not know yet."""

    identity: Identity
    at: float
    seen_by: str
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The process is a zombie, or gone. What it held is free."""

    identity: Identity
    at: float
    seen_by: str
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class ProcessReaped:
    """Its parent has collected it: the pid can be used again."""

    identity: Identity
    at: float
    status: ExitStatus


Observation = ProcessExiting | ProcessExited | ProcessReaped


@dataclass(frozen=True, slots=True)
class Failure:
    """One process that failed. The first by `at` is the root cause, the rest is cascade. `container`: its container's
    name, "" where that is not known."""

    role: Role
    rank: str
    pid: int
    start: int
    status: ExitStatus
    cause: Cause
    at: float
    wall: float
    seen_by: str = ""
    detail: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One process in a termination plan. `role` and `rank` are empty for one that only belongs to the engine."""

    identity: Identity
    pgid: int
    sid: int
    ppid: int
    comm: str = ""
    role: str = ""
    rank: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the engine's processes. `groups` are process group ids, in the order in which to signal them."""

    action: Action
    members: tuple[Member, ...] = ()
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from the observations. `captures` are the collectors wanted, `deadline` the seconds they get."""

    reason: Reason
    action: Action
    captures: tuple[str, ...]
    deadline: float
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """One piece of evidence. `path` is relative to the incident's folder, or "" where nothing was written."""

    kind: str
    rank: str
    status: ArtifactStatus
    path: str = ""
    bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One step. `at` is monotonic; `wall` is what people read."""

    at: float
    wall: float
    event: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A process that did not go in time. `wchan` is where the kernel holds it, "" if it may not be read."""

    pid: int
    start: int
    rank: str
    comm: str
    state: str
    wchan: str


@dataclass(frozen=True, slots=True)
class Termination:
    """How the killing ended. `seconds` from the first SIGKILL until the last resource was free."""

    outcome: Outcome
    killed: tuple[Member, ...] = ()
    survivors: tuple[Survivor, ...] = ()
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the engine makes progress, and what says so.

    `because`: the evidence in words. `odd`: labels of the ranks that stand elsewhere than the others, or still.
    `since`: how many seconds there has been no progress.
    """

    liveness: Liveness
    because: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class PodInfo:
    namespace: str = ""
    name: str = ""
    uid: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """The record of one failure, as the guard knows it. The recorder adds artifacts and writes `incident.json`."""

    id: str
    reason: Reason
    engine: str
    pod: PodInfo
    decision: Decision
    failures: tuple[Failure, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()
    members: tuple[Member, ...] = ()
    termination: Termination | None = None
    boot_id: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)
    verdict: Verdict | None = None
    group: str = ""


def plain(value: Any) -> Any:
    """Turn a value of this module into dicts, lists, strings and numbers that JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def failure_from(data: dict[str, Any]) -> Failure:
    """The `Failure` that `plain` made `data` of."""
    return Failure(
        **{**data, "role": Role(data["role"]), "status": ExitStatus(**data["status"]), "cause": Cause(data["cause"])}
    )


def member_from(data: dict[str, Any]) -> Member:
    """The `Member` that `plain` made `data` of."""
    return Member(**{**data, "identity": Identity(**data["identity"])})


def rank_process_from(data: dict[str, Any]) -> RankProcess:
    """The `RankProcess` that `plain` made `data` of."""
    return RankProcess(**{**data, "identity": Identity(**data["identity"]), "role": Role(data["role"])})


def plan_from(data: dict[str, Any]) -> Plan:
    """The `Plan` that `plain` made `data` of."""
    return Plan(
        action=Action(data["action"]),
        members=tuple(member_from(m) for m in data["members"]),
        groups=tuple(data["groups"]),
    )


def termination_from(data: dict[str, Any]) -> Termination:
    """The `Termination` that `plain` made `data` of."""
    return Termination(
        outcome=Outcome(data["outcome"]),
        killed=tuple(member_from(m) for m in data["killed"]),
        survivors=tuple(Survivor(**s) for s in data["survivors"]),
        seconds=data["seconds"],
        detail=data["detail"],
    )


def timeline_entry_from(data: Any) -> TimelineEntry:
    """The `TimelineEntry` that `plain` made `data` of. Raises `TypeError` on anything else."""
    return TimelineEntry(**data)


def verdict_from(data: dict[str, Any]) -> Verdict:
    """The `Verdict` that `plain` made `data` of."""
    return Verdict(Liveness(data["liveness"]), tuple(data["because"]), tuple(data["odd"]), data["since"])


def incident_from(data: dict[str, Any]) -> Incident:
    """The `Incident` that `plain` made `data` of."""
    decision = data["decision"]
    return Incident(
        id=data["id"],
        reason=Reason(data["reason"]),
        engine=data["engine"],
        pod=PodInfo(**data["pod"]),
        decision=Decision(
            reason=Reason(decision["reason"]),
            action=Action(decision["action"]),
            captures=tuple(decision["captures"]),
            deadline=decision["deadline"],
            because=tuple(decision["because"]),
        ),
        failures=tuple(failure_from(f) for f in data["failures"]),
        timeline=tuple(timeline_entry_from(t) for t in data["timeline"]),
        members=tuple(member_from(m) for m in data["members"]),
        termination=termination_from(data["termination"]) if data["termination"] else None,
        boot_id=data["boot_id"],
        notes=tuple(data["notes"]),
        verdict=verdict_from(data["verdict"]) if data.get("verdict") else None,
        group=data.get("group", ""),
    )
