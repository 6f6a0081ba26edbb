"""What the verdict is made of, and what it is. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.model import Failure, Reason, Verdict
from sidecar.policy.stacks import Spot


class Judgement(StrEnum):
    """What the evidence says of the engine as a whole."""

    DIED = "died"
    STUCK = "stuck"  # found so by the engine's numbers, and its stacks say the same; or something holds it for good
    STILL = "still"  # it stood still between two snapshots, which a healthy engine may do for so long
    BUSY = "busy"  # something computes, or moves
    COMPILING = "compiling"
    IDLE = "idle"
    UNKNOWN = "unknown"


class Confidence(StrEnum):
    """How sure the sentence is of what it names as the reason."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    NONE = "none"  # nothing is named


class Motion(StrEnum):
    """What a main thread did between two snapshots."""

    MOVED = "moved"
    STILL = "still"  # the same place, and it slept all the while
    SPUN = "spun"  # the same place, at the cost of a whole core
    SAME = "same"  # the same place; whether it was elsewhere meanwhile cannot be told
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank. `first` and `second`: where its main thread stood in the two snapshots; `caller`: who called that.

    `library`: whose collective it is in. `native`: a collective that only its native stack shows. `holder`: the thread
    that held the GIL in both snapshots at the same place. `locked`: threads that wait for a lock, with their places.
    `cpu`: cores used between the two process states, by all threads; `wakes`: how often the main thread was run
    meanwhile. `state` and `wchan`: the kernel's words for the main thread, by the last look.
    """

    label: str
    role: str
    pid: int
    first: Spot | None = None
    second: Spot | None = None
    caller: str = ""
    library: str = ""
    native: str = ""
    holder: str = ""
    locked: tuple[str, ...] = ()
    cpu: float | None = None
    wakes: int | None = None
    state: str = ""
    wchan: str = ""

    @property
    def spot(self) -> Spot | None:
        return self.second or self.first


@dataclass(frozen=True, slots=True)
class Behind:
    """A rank that has launched fewer collectives than others, `launched` of `most`; `most` is 0 for one that does not
    answer. `source`: who says so.
    """

    pid: int
    launched: int
    most: int
    source: str = "NCCL RAS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`apart`: seconds between the two snapshots, 0 where there is one. `frozen`: the ranks stood because of us."""

    reason: Reason
    ranks: tuple[Rank, ...]
    failures: tuple[Failure, ...] = ()
    because: tuple[str, ...] = ()
    liveness: Verdict | None = None
    frozen: bool = False
    apart: float = 0.0
    behind: tuple[Behind, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and what it rests on. `apart`: the ranks that stand elsewhere than those that wait for them."""

    sentence: str
    judgement: Judgement
    confidence: Confidence
    reasons: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
