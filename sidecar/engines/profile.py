"""The words for what an engine looks like from outside: a title, a number of ranks, a profile.

Everything in `sidecar.engines` is a pure function of a command line (and of a few named variables of the environment):
no /proc, no clock, no state. Nothing here raises, whatever bytes a process has written over its arguments: what cannot
be told is None. A wrong number of ranks would have a healthy engine killed, so doubt is None too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.model import Role


@dataclass(frozen=True, slots=True)
class Title:
    """A process that says what it is.

    `rank` is its label as `labels.rank_label` builds it ("TP3", "DP0_PP1_TP3"), or the role where there is none.
    `provisional`: the engine may still give it another title.
    """

    role: Role
    rank: str
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """How many processes with one of `roles` this machine should have; `why` is what it was read from."""

    count: int
    roles: tuple[Role, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the engine's own HTTP server listens, by its command line, and what it serves there.

    `host` is one to connect to: a wildcard address is the loopback one. `health` and `metrics` are paths, "" where this
    engine, as it was started, has none. `unhealthy_is_dead`: a 503 of its health check is its own word that it is over,
    and not also a way to say that it is busy.
    """

    host: str
    port: int
    tls: bool = False
    health: str = ""
    metrics: str = ""
    unhealthy_is_dead: bool = False


class Profile(Protocol):
    """One engine, as seen from outside.

    `shm_names`: fnmatch patterns of the names in /dev/shm that such an engine leaves behind when it is killed.
    `environment`: variables to be read from each new process, which `title` needs.
    `server_environment`: variables to be read from a server, which `expected` takes into account; all are optional.
    """

    @property
    def name(self) -> str: ...
    @property
    def shm_names(self) -> tuple[str, ...]: ...
    @property
    def environment(self) -> tuple[str, ...]: ...
    @property
    def server_environment(self) -> tuple[str, ...]: ...

    def title(self, argv: Sequence[str], environ: Mapping[str, str]) -> Title | None:
        """What the process says that it is, or None for anything else."""

    def is_server(self, argv: Sequence[str]) -> bool:
        """Whether this command line is the process that starts the ranks, and not a wrapper around it."""

    def expected(self, argv: Sequence[str], environ: Mapping[str, str]) -> Expected | None:
        """The number of ranks that follows from a server's command line, or None where it is not certain."""

    def endpoint(self, argv: Sequence[str], environ: Mapping[str, str]) -> Endpoint | None:
        """Where this server answers, or None: it has no HTTP server, or one whose answers say nothing of its ranks."""


# What each of them leaves in /dev/shm, whichever engine it is part of.
SHARED_MEMORY = (
    "psm_" + "[0-9a-f]" * 8,  # multiprocessing.shared_memory (CPython: _make_filename)
    "sem.mp-" + "[a-z0-9_]" * 8,  # multiprocessing's locks and queues (CPython: SemLock._make_name)
    "torch_[0-9]*_[0-9]*_[0-9]*",  # tensors that processes share (PyTorch: NewProcessWideShmHandle)
    "nccl-" + "[0-9A-Za-z]" * 6,  # NCCL's transport between ranks of one machine, a mkstemp name
)
