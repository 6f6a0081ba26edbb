"""The guard's own classes beside real processes: a real epoll, real pidfds, each kernel feature masked where asked."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sidecar_process import Sidecar, eventually

from sidecar.demo.standin import StandIn
from sidecar.engines.table import profiles
from sidecar.guard.census import Census
from sidecar.guard.discovery import Discovery
from sidecar.guard.exits import Exits
from sidecar.guard.herd import Herd
from sidecar.model import Identity, Observation
from sidecar.system.features import probe
from sidecar.system.proc import Proc

ALL_MASKS: tuple[tuple[str, ...], ...] = ((), ("thread_pidfd",), ("pidfd_hup",), ("pidfd_info",), ("pidfd",))


def mask_name(masked: tuple[str, ...]) -> str:
    return "without " + ",".join(masked) if masked else "all features"


class Lookout:
    """`Exits` in a loop like the guard's: descriptors first, then the held stats. Use as a context manager.

    Without `pidfd_hup` a hang-up is kept from it, as an older kernel would not have told of it.
    """

    def __init__(self, masked: tuple[str, ...] = ()) -> None:
        self.proc = Proc()
        self.features = probe(masked)
        self.epoll = select.epoll()
        self.exits = Exits(self.proc, self.features, self.epoll)
        self.seen: list[Observation] = []

    def __enter__(self) -> Lookout:
        return self

    def __exit__(self, *_: object) -> None:
        for identity in list(self.exits.watched):
            self.exits.forget(identity)
        self.epoll.close()
        self.proc.close()

    def watch(self, identity: Identity) -> None:
        self.seen += self.exits.watch(identity, time.monotonic())

    def look(self, seconds: float = 0.01, stats: bool = True) -> list[Observation]:
        """One round, with or without the reading of held stats. Returns what it saw."""
        seen: list[Observation] = []
        for fd, mask in self.epoll.poll(seconds):
            if not self.features.pidfd_hup and mask & select.EPOLLHUP:
                mask &= ~select.EPOLLHUP
                if any(w.pidfd == fd and w.exited for w in self.exits.watched.values()):
                    continue  # the second wake-up of a pidfd, which such a kernel does not give
            seen += self.exits.on_event(fd, mask, time.monotonic())
        if stats:
            seen += self.exits.poll(list(self.exits.watched))
        self.seen += seen
        return seen

    def until(self, kind: type[Any], timeout: float = 20.0) -> Any:
        """Go on until something of this kind was seen, and return the first. Raises `AssertionError`."""
        end = time.monotonic() + timeout
        while True:
            found = [observation for observation in self.seen if isinstance(observation, kind)]
            if found:
                return found[0]
            assert time.monotonic() < end, f"no {kind.__name__} among {self.seen}"
            self.look()


class Scout:
    """`Census`, `Discovery` and `Herd` over the real /proc, bound to one root or to none."""

    def __init__(self, root: Identity | None, engine: str = "auto", use_pidfd: bool = True) -> None:
        self.proc = Proc()
        kinds = profiles(engine, None)
        environment = tuple(sorted({name for profile in kinds for name in profile.environment}))
        self.epoll = select.epoll()
        self.exits = Exits(self.proc, probe(() if use_pidfd else ("pidfd",)), self.epoll)
        self.census = Census(self.proc, os.getpid(), environment)
        self.discovery = Discovery(self.census, kinds, None, root, root is not None, "")
        self.herd = Herd(self.proc, self.census, self.discovery, self.exits, use_pidfd)

    def __enter__(self) -> Scout:
        return self

    def __exit__(self, *_: object) -> None:
        self.epoll.close()
        self.proc.close()

    def rank(self, pid: int, condition: Callable[[Any], bool] = lambda rank: True) -> Any:
        """Look until this process is a rank for which `condition` holds, and return that rank."""

        def found() -> Any:
            self.discovery.look(time.monotonic())
            ranks = [rank for identity, rank in self.discovery.ranks.items() if identity.pid == pid]
            return ranks[0] if ranks and condition(ranks[0]) else None

        return eventually(found, f"a rank with pid {pid}")


@contextmanager
def watched(tmp_path: Path, *flags: str, **options: Any) -> Iterator[tuple[StandIn, Sidecar]]:
    """A stand-in engine and a sidecar that watches its tree, both just started."""
    with StandIn(**options) as engine, beside(tmp_path, engine.process.pid, *flags) as sidecar:
        yield engine, sidecar


@contextmanager
def beside(tmp_path: Path, root: int, *flags: str) -> Iterator[Sidecar]:
    """A sidecar bound to the tree of `root`. First evidence is the process state alone, unless the flags say more."""
    captures = () if "--captures" in flags else ("--captures", "process")
    with Sidecar(tmp_path / "dumps", "--root-pid", str(root), *captures, *flags) as sidecar:
        yield sidecar


def stands_by(sidecar: Sidecar) -> Sidecar:
    """Wait for a recorder, whatever the engine's state: without one there is no record."""
    eventually(sidecar.standby, f"a recorder that stands by\n{sidecar.log()}")
    return sidecar


def held_by_guard(sidecar: Sidecar) -> set[int]:
    """The pids and thread ids of which the guard holds a pidfd; fdinfo names whom a pidfd is of."""
    held: set[int] = set()
    guard = sidecar.worker("guard")
    for path in Path(f"/proc/{guard}/fdinfo").iterdir() if guard else ():
        with suppress(FileNotFoundError):
            held |= {int(line[5:]) for line in path.read_text().splitlines() if line.startswith("Pid:\t")}
    return held
