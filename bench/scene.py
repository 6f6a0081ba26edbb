"""Processes that die, and everybody who watches them: each death is seen by all observers at once.

The bench sits in the supervisor's place of one or more real guards, and starts the peers beside them: a bare loop of
pidfds in epoll, and psutil looking every so often. It kills by pidfd, notes the time just before, and collects from
each observer the time at which it knew.
"""

from __future__ import annotations

import math
import os
import random
import signal
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.children import Child, program
from bench.pump import Late, Pump, now
from bench.seat import GuardSeat, WebSeat, launch_for
from bench.usage import Used, used

GUARD, BARE, POLL, SLOW_POLL = "guard", "bare loop", "psutil 100 ms", "psutil 1 s"
PEERS: dict[str, list[str]] = {
    BARE: program("watch_pidfd"),
    POLL: program("watch_psutil", 0.1),
    SLOW_POLL: program("watch_psutil", 1.0),
}
_BIRTH = 60.0  # limits in seconds: a process is born; the guard has found everybody; everybody has seen a death
_FOUND = 20.0
_SEEN = 15.0


@dataclass(slots=True)
class Death:
    """One death. `seen` has the latency of each observer, in seconds; `told` when each guard had reported it, `used`
    what it had used from the death until then.
    """

    pid: int
    at: float
    before: dict[str, Used]
    used: dict[str, Used] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    by: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Rank:
    pid: int
    pidfd: int
    watched_by: set[str] = field(default_factory=set)


class Scene:
    """`size` watched processes, kept at that number. A context manager that leaves nothing behind.

    `guards` are the guards by name, with the kernel features that each does without.
    """

    def __init__(
        self, size: int, dump_dir: str, guards: Mapping[str, tuple[str, ...]], peers: Sequence[str] = tuple(PEERS),
        memory_mib: int = 0, threads: int = 2, listen_fds: dict[str, tuple[int, ...]] | None = None,
    ) -> None:  # fmt: skip
        self.size = size
        self.deaths: list[Death] = []
        self.guard_used = Used(0, 0, 0)
        self.peer_used = Used(0, 0, 0)
        self._guards = dict(guards)
        self._token = f"bench-{uuid.uuid4().hex[:8]}"
        self._launches = {
            name: launch_for(dump_dir, rf"^{self._token} (?P<N>\d+)$", masked, listen_fds)
            for name, masked in guards.items()
        }
        self._stack = ExitStack()
        self._pump = Pump()
        self._stack.callback(self._pump.close)
        self._ranks: dict[int, Rank] = {}
        self._stack.callback(self._close_pidfds)
        self._open: dict[int, Death] = {}
        self._unreaped: set[int] = set()
        self._born = 0
        self._asked = 0
        self._seats: dict[str, GuardSeat] = {}
        self._web: WebSeat | None = None
        self._random = random.Random(size)
        try:
            self._nursery = self._stack.enter_context(
                Child(program("nursery", "--threads", threads, "--memory-mib", memory_mib))
            )
            self._pump.add_lines(self._nursery.out, self._from_nursery)
            self._peers: dict[str, Child] = {}
            for name in peers:
                child = self._peers[name] = self._stack.enter_context(Child(PEERS[name]))
                self._pump.add_lines(child.out, partial(self._from_peer, name))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def launch(self) -> Any:
        return next(iter(self._launches.values()))

    def attach(self, web: WebSeat) -> None:
        """Connect each guard from now on with this web."""
        self._web = web

    # -- what a benchmark does ----------------------------------------------------------------------------------

    def fill(self) -> None:
        """Bring the number of living ranks to `size`."""
        while self._asked < self.size:
            self._spawn()
        self._pump.until(lambda: len(self._ranks) >= self.size, _BIRTH, f"{self.size} ranks are born")

    def kill_some(self, count: int, pause: tuple[float, float], refill: bool = True) -> None:
        """One life of the guards: they find the ranks, then `count` deaths, `pause` (least, most) seconds apart.

        A rank is killed only once all observers watch it, and replaced at once where `refill`.
        """
        self.fill()
        with ExitStack() as life:
            for name, launch in self._launches.items():
                seat = self._seats[name] = life.enter_context(GuardSeat(self._pump, launch))
                if self._web is not None:
                    seat.introduce(self._web.channel)
            self._pump.until(lambda: len(self._ready()) >= self.size, _FOUND, "every observer watches every rank")
            self._pump.run(0.3)  # let the discovery's work end
            before = self._usage()
            for _ in range(count):
                self._pump.run(self._random.uniform(*pause))
                self._pump.until(lambda: bool(self._ready()), _FOUND, "some rank is watched by all")
                self._kill(self._random.choice(self._ready()))
                if refill:
                    self._spawn()
            try:
                self._pump.until(self._all_seen, _SEEN, "all deaths are seen")
            except Late:
                pass  # an observer that missed one is a result: its latency stays unknown
            self._collect()
            after = self._usage()
            self.guard_used += after[0] - before[0]
            self.peer_used += after[1] - before[1]
        self._seats.clear()
        for pid in self._unreaped:
            self._nursery.say("reap", pid)
        self._unreaped.clear()
        self._open.clear()

    def latencies(self, observer: str) -> list[float]:
        """In seconds, infinite where the observer never knew."""
        return [death.seen.get(observer, math.inf) for death in self.deaths]

    def told(self, guard: str = GUARD) -> list[float]:
        return [death.told.get(guard, math.inf) for death in self.deaths]

    # -- inside -------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._asked += 1
        self._born += 1
        self._nursery.say("spawn", self._born, self._token, self._born)

    def _from_nursery(self, text: str, _: float) -> None:
        pid = int(text.split()[2])
        self._ranks[pid] = Rank(pid, os.pidfd_open(pid))
        for child in self._peers.values():
            child.say("watch", pid)

    def _from_peer(self, name: str, text: str, _: float) -> None:
        what, pid_text, *rest = text.split()
        pid = int(pid_text)
        if what == "watching" and pid in self._ranks:
            self._ranks[pid].watched_by.add(name)
        elif what == "dead" and pid in self._open:
            self._open[pid].seen[name] = float(rest[0]) - self._open[pid].at

    def _ready(self) -> list[Rank]:
        return [
            rank
            for rank in self._ranks.values()
            if len(rank.watched_by) == len(self._peers) and all(rank.pid in s.watched for s in self._seats.values())
        ]

    def _kill(self, rank: Rank) -> None:
        del self._ranks[rank.pid]
        self._asked -= 1
        self._unreaped.add(rank.pid)
        before = {name: seat.used() for name, seat in self._seats.items()}
        death = self._open[rank.pid] = Death(rank.pid, now(), before)
        signal.pidfd_send_signal(rank.pidfd, signal.SIGKILL)
        self.deaths.append(death)
        os.close(rank.pidfd)

    def _all_seen(self) -> bool:
        return all(
            len(death.seen) == len(self._peers) and all(pid in seat.seen for seat in self._seats.values())
            for pid, death in self._open.items()
        )

    def _collect(self) -> None:
        for pid, death in self._open.items():
            for name, seat in self._seats.items():
                seen = seat.seen.get(pid)
                if seen is None:
                    continue
                death.told[name] = seen.told - death.at
                # Where the report did not say when, or says a time before the death, its arrival is an upper bound.
                death.seen[name] = seen.at - death.at if seen.at >= death.at else seen.told - death.at
                death.by[name] = seen.by
                death.used[name] = seen.used - death.before[name]

    def _usage(self) -> tuple[Used, Used]:
        guard = next(iter(self._seats.values())).used()
        return guard, used(self._peers[BARE].pid) if BARE in self._peers else Used(0, 0, 0)

    def _close_pidfds(self) -> None:
        for rank in self._ranks.values():
            os.close(rank.pidfd)
        self._ranks.clear()
