"""The engine as the guard last described it, and what follows from that for /readyz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import ProtocolError
from sidecar.masking import mask_text
from sidecar.model import Role
from sidecar.web.counters import clean

MAX_TITLE = 4096  # characters of a command line that are shown


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank. `pid` is 0 where there is none; `container` a container's id or ""."""

    role: str
    rank: str
    up: bool
    pid: int
    container: str
    title: str


@dataclass(frozen=True, slots=True)
class EngineState:
    """One `state` message. `ready` is the guard's own word on readiness, None where it gave none."""

    state: str
    engine: str
    expected: int | None
    ranks: tuple[RankState, ...]
    features: Mapping[str, bool] = field(default_factory=dict)
    incident: str = ""
    ready: bool | None = None
    ready_detail: str = ""

    def counted(self) -> tuple[RankState, ...]:
        """The ranks that the expected number counts: workers and schedulers, or engine cores where there are none."""
        ranks = tuple(r for r in self.ranks if r.role in (Role.SCHEDULER, Role.WORKER))
        return ranks or tuple(r for r in self.ranks if r.role == Role.ENGINE_CORE)

    def readiness(self) -> tuple[bool, str]:
        """Whether all expected ranks are up, and a line that says so: `6 of 8 ranks up: missing TP3`."""
        counted = self.counted()
        # A rank that died and came back is there twice; it is up.
        up = {r.rank for r in counted if r.up}
        down = sorted({r.rank for r in counted} - up)
        missing = f": missing {', '.join(down)}" if down else ""
        if self.ready is not None:
            # The guard knows how this engine counts its ranks; it says how many are up, not which are not.
            line = self.ready_detail or ("ready" if self.ready else "not ready")
            return self.ready, line if self.ready or "missing" in line else line + missing
        if self.expected is None:
            return True, f"{len(up)} ranks up; how many there should be is not known"
        ready = len(up) >= self.expected
        return ready, f"{len(up)} of {self.expected} ranks up" + ("" if ready else missing)


def state_from(message: Mapping[str, Any]) -> EngineState:
    """The state in a message. Raises `ProtocolError` where it is none."""
    expected, ready = message.get("expected"), message.get("ready")
    ranks, features = message.get("ranks"), message.get("features", {})
    if expected is not None and (isinstance(expected, bool) or not isinstance(expected, int) or expected < 0):
        raise ProtocolError("the expected number of ranks is no number")
    if not isinstance(ranks, list) or not isinstance(features, dict):
        raise ProtocolError("a state without ranks or features")
    return EngineState(
        state=clean(message.get("state")),
        engine=clean(message.get("engine") or ""),
        expected=expected,
        ranks=tuple(_rank(rank) for rank in ranks),
        features={clean(name): bool(there) for name, there in features.items()},
        incident=clean(message.get("incident") or ""),
        ready=None if ready is None else bool(ready),
        ready_detail=_printable(message.get("ready_detail") or ""),
    )


def _rank(rank: Any) -> RankState:
    if not isinstance(rank, dict):
        raise ProtocolError("a rank is no object")
    pid = rank.get("pid") or 0
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise ProtocolError("a pid is no number")
    return RankState(
        role=clean(rank.get("role")),
        rank=clean(rank.get("rank")),
        up=bool(rank.get("up")),
        pid=pid,
        container=clean(rank.get("container") or ""),
        title=mask_text(_printable(rank.get("title") or "")),
    )


def _printable(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"a text was expected, not {type(value).__name__}")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value[:MAX_TITLE])
