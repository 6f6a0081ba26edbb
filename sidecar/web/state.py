"""The engine as the guard last described it, and what follows from that for /readyz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.engines.profile import Endpoint
from sidecar.errors import ProtocolError
from sidecar.masking import mask_text
from sidecar.model import Role
from sidecar.web.counters import clean

MAX_TITLE = 4096  # characters of a command line that are shown


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank. `pid` is 0 where there is none, `start` (clock ticks since boot) 0 where the guard did not say it;
    `container` is a container's id or "".
    """

    role: str
    rank: str
    up: bool
    pid: int
    container: str
    title: str
    start: int = 0


@dataclass(frozen=True, slots=True)
class EngineState:
    """One `state` message. `ready` is the guard's own word on readiness, None where it gave none. `endpoint` is where
    the engine's own HTTP server is, None where that is not known. `failed`: found stuck or dead, and the deadline has
    passed with it still there. `up`: it has answered, by the word of this web or an earlier one. `observes`: the fleet
    switch has it only observe.
    """

    state: str
    engine: str
    expected: int | None
    ranks: tuple[RankState, ...]
    features: Mapping[str, bool] = field(default_factory=dict)
    incident: str = ""
    ready: bool | None = None
    ready_detail: str = ""
    endpoint: Endpoint | None = None
    failed: bool = False
    up: bool = False
    observes: bool = False

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
        endpoint=_endpoint(message.get("endpoint")),
        failed=bool(message.get("failed", False)),
        up=bool(message.get("up", False)),
        observes=bool(message.get("observes", False)),
    )


def _rank(rank: Any) -> RankState:
    if not isinstance(rank, dict):
        raise ProtocolError("a rank is no object")
    pid, start = rank.get("pid") or 0, rank.get("start") or 0
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise ProtocolError("a pid is no number")
    if isinstance(start, bool) or not isinstance(start, int):
        raise ProtocolError("a start time is no number")
    return RankState(
        role=clean(rank.get("role")),
        rank=clean(rank.get("rank")),
        up=bool(rank.get("up")),
        pid=pid,
        container=clean(rank.get("container") or ""),
        title=mask_text(_printable(rank.get("title") or "")),
        start=start,
    )


def _endpoint(value: Any) -> Endpoint | None:
    """An `Endpoint` that `plain` made a dict of. Its words come from the engine's command line and become a URL."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ProtocolError("an endpoint is no object")
    port = value.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ProtocolError("an endpoint's port is no port")
    host, health, metrics = (_word(value.get(name, "")) for name in ("host", "health", "metrics"))
    if not host or any(path and not path.startswith("/") for path in (health, metrics)):
        raise ProtocolError("an endpoint without a host, or with a path that is none")
    return Endpoint(
        host, port, bool(value.get("tls", False)), health, metrics, bool(value.get("unhealthy_is_dead", False))
    )


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TITLE or not value.isascii():
        raise ProtocolError("an endpoint's host or path is no plain text")
    if not all(" " < c <= "~" and c not in "@?#\\" for c in value):
        raise ProtocolError("an endpoint's host or path has characters that no URL of ours has")
    return value


def _printable(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"a text was expected, not {type(value).__name__}")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value[:MAX_TITLE])
