"""What was seen of a living engine: answers to probes, scraped numbers, and closer looks at its ranks. Values only.

Times called `at` are monotonic seconds. `None` for a number means that nobody knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.policy.stacks import Spot


class Answer(StrEnum):
    """What became of one health check."""

    OK = "ok"
    UNHEALTHY = "unhealthy"  # any other status than 2xx; on some engines also a way to say that they are busy
    OVER = "over"  # a 503 of an engine that says so only when it is over
    TIMEOUT = "timeout"
    REFUSED = "refused"  # nobody listens any more
    UNKNOWN = "unknown"  # nothing was learnt: no URL, a name that does not resolve, an error of our own


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One health check, begun at `at`. `detail` is for people: `503`, `no answer in 5 s`."""

    at: float
    answer: Answer
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Scrape:
    """One reading of the engine's own metrics.

    `moved` changes whenever the engine gets on with its work: the sum of its counters of work done and of gauges that
    only a running scheduler sets. It may fall.
    """

    at: float
    running: float | None = None
    waiting: float | None = None
    moved: float | None = None


@dataclass(frozen=True, slots=True)
class RankLook:
    """One rank in one look. `state` is /proc/PID/stat's letter; `traced`: somebody else has it under ptrace.

    `cpu` is its CPU time so far, of all its threads, in seconds; `switches` its voluntary context switches so far, of
    all its threads. `spot` is where its main thread stands, None where its stack could not be read. `wchan` is where
    the kernel holds its main thread, "" where it runs or that may not be read.
    """

    rank: str
    role: str
    state: str
    traced: bool = False
    cpu: float = 0.0
    switches: int | None = None
    wchan: str = ""
    spot: Spot | None = None


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that the engine started, told by its name (nvcc, ptxas, cc1plus, ninja, ...). `cpu` in seconds."""

    pid: int
    name: str
    cpu: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it. `utilisation` 0 to 1; `power` as a share of its limit, None where it is not told."""

    index: int
    utilisation: float
    power: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at all ranks. `gpus` is () where there is no NVML.

    `quick`: a look at states and CPU times only; nobody tried to read a stack, so that it stands in for no closer look.
    """

    at: float
    ranks: tuple[RankLook, ...]
    compilers: tuple[Compiler, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    quick: bool = False
