"""All captures of one incident: what to take of whom, in which order, how many at once, and when to give up.

A slot is for a child that computes. One that has run for `_PATIENCE` waits for something (a lock, a stopped thread),
so it gives its slot up and keeps only its own time limit: a process that hangs holds up no other's evidence.
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass

from sidecar.model import Identity, Member, RankProcess
from sidecar.recorder.capture import TABLE, Entry
from sidecar.recorder.capture.base import Attempt, Ended, Piece, Scene, Target
from sidecar.recorder.children import Child, refusal
from sidecar.recorder.reactor import Reactor
from sidecar.system import signals

_PATIENCE = 0.1
_MOST_CHILDREN = 48
_REAP_EVERY = 0.002
_RESUME_ANYWAY = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one collector and one target. `seconds` from the beginning of its first child."""

    target: Target
    pieces: tuple[Piece, ...]
    seconds: float


@dataclass(slots=True)
class _Running:
    entry: Entry
    target: Target
    child: Child
    began: float


@dataclass(slots=True)
class _Dying:
    target: Target
    child: Child
    resume_at: float
    resumed: bool


class Captures:
    """Call `step` and `reap` whenever something was read or `wake_at` has come; before leaving, `abandon`."""

    def __init__(
        self,
        wanted: Iterable[str],
        targets: Iterable[Target],
        scene: Scene,
        deadline: float,
        reactor: Reactor,
        have: Container[tuple[str, str]] = (),
    ) -> None:
        """`wanted`: names of collectors. `deadline`: monotonic. `have`: what there is already, (collector, label)."""
        names = set(wanted)
        targets = tuple(targets)
        self._scene = scene
        self.deadline = deadline
        self._reactor = reactor
        self._slots = (os.cpu_count() or 1) + 1  # measured: 8 stacks on 2 cores take 52 ms with 3, 70 with 6
        self._queue = deque(
            (entry, target)
            for entry in TABLE
            if entry.name in names
            for target in targets
            if (target.is_rank or not entry.ranks_only) and (entry.name, target.label) not in have
        )
        self._running: list[_Running] = []
        self._dying: list[_Dying] = []

    @property
    def done(self) -> bool:
        return not self._queue and not self._running

    def step(self) -> list[Taken]:
        """Collect what has ended, end what is over its limit, begin what there is room for. Never blocks."""
        now = time.monotonic()
        taken: list[Taken] = []
        for running in list(self._running):
            ended = running.child.ended()
            if ended is None and (running.child.cut or now >= min(running.child.limit_at, self.deadline)):
                ended = self._kill(running, now)
            if ended is not None:
                self._running.remove(running)
                self._conclude(running.entry, running.target, running.child.attempt, ended, running.began, taken)
        while self._queue and now < self.deadline and self._has_room(now):
            entry, target = self._queue.popleft()
            self._continue(entry, target, entry.collect(target, self._scene, self.deadline - now), now, taken)
            now = time.monotonic()
        if now >= self.deadline:
            self._give_up(taken)
        return taken

    def cut_short(self, deadline: float) -> None:
        """Be done by then at the latest."""
        self.deadline = min(self.deadline, deadline)

    def wake_at(self) -> float:
        """Monotonic time of the next `step` or `reap` that is due without anything being read."""
        now = time.monotonic()
        due = [self.deadline] if not self.done else []
        due += [running.child.limit_at for running in self._running]
        due += [now + _REAP_EVERY for running in self._running if running.child.silent and not running.child.wakes]
        if self._queue:
            due += [running.child.began + _PATIENCE for running in self._running if not _waits(running, now)]
        due += [dying.resume_at for dying in self._dying if not dying.resumed]
        due += [now + 10 * _REAP_EVERY for dying in self._dying if not dying.child.wakes]
        return min(due, default=math.inf)

    def reap(self) -> None:
        """Collect the children that were ended, and let their targets run again. Never blocks."""
        now = time.monotonic()
        for dying in list(self._dying):
            gone = dying.child.reap()
            if gone or (now >= dying.resume_at and not dying.resumed):
                self._resume(dying)
            if gone:
                self._dying.remove(dying)

    def abandon(self) -> None:
        """The last thing before the process leaves: no target stays stopped because of us."""
        for running in list(self._running):
            self._kill(running, time.monotonic())
        for dying in self._dying:
            self._resume(dying)

    def _has_room(self, now: float) -> bool:
        computing = sum(not _waits(running, now) for running in self._running)
        return computing < self._slots and len(self._running) < _MOST_CHILDREN

    def _continue(
        self, entry: Entry, target: Target, step: Attempt | tuple[Piece, ...], began: float, taken: list[Taken]
    ) -> None:
        """Begin the attempt, or keep the pieces."""
        if not isinstance(step, Attempt):
            taken.append(Taken(target, step, time.monotonic() - began))
            return
        limit = min(step.limit, self.deadline - time.monotonic())
        if limit <= 0:
            ended = Ended(None, seconds=time.monotonic() - began)
            self._conclude(entry, target, step, ended, began, taken)
            return
        try:
            child = Child(step, limit, self._reactor)
        except OSError as error:
            self._conclude(entry, target, step, Ended(None, failure=refusal(error)), began, taken)
            return
        self._running.append(_Running(entry, target, child, began))

    def _conclude(
        self, entry: Entry, target: Target, attempt: Attempt, ended: Ended, began: float, taken: list[Taken]
    ) -> None:
        self._continue(entry, target, attempt.judge(ended), began, taken)

    def _kill(self, running: _Running, now: float) -> Ended:
        ended = running.child.kill()
        # Its target runs again once it is gone; if it cannot go (D state), SIGCONT is sent all the same.
        self._dying.append(_Dying(running.target, running.child, now + _RESUME_ANYWAY, resumed=False))
        return ended

    def _give_up(self, taken: list[Taken]) -> None:
        while self._queue:
            entry, target = self._queue.popleft()
            step = entry.collect(target, self._scene, 0.0)
            pieces = step.judge(Ended(None)) if isinstance(step, Attempt) else step
            if isinstance(pieces, Attempt):
                pieces = ()
            taken.append(Taken(target, pieces, 0.0))

    def _resume(self, dying: _Dying) -> None:
        """SIGCONT also takes a SIGSTOP back that the target has not yet come to: then it never stops at all."""
        if dying.child.attempt.pauses and not self._scene.frozen:
            signals.to_process(self._scene.proc, dying.target.identity, signal.SIGCONT)
        dying.resumed = True


def _waits(running: _Running, now: float) -> bool:
    return now - running.child.began > _PATIENCE


def targets_of(ranks: Iterable[RankProcess], members: Iterable[Member]) -> tuple[Target, ...]:
    """Every rank, then every other process of the engine, each once and each with a label of its own."""
    targets: dict[Identity, Target] = {}
    used: set[str] = set()

    def add(identity: Identity, role: str, rank: str, title: str, wish: str, is_rank: bool) -> None:
        if identity in targets:
            return
        label = _safe(wish)
        while label in used:
            label = f"{label}-{identity.pid}"
        used.add(label)
        targets[identity] = Target(identity, role, rank, title, label, is_rank)

    for rank in ranks:
        add(rank.identity, rank.role.value, rank.rank, rank.title, rank.rank, True)
    for member in members:
        wish = member.rank or f"{member.comm}-{member.identity.pid}"
        add(member.identity, member.role, member.rank, member.comm, wish, bool(member.role))
    return tuple(targets.values())


def _safe(label: str) -> str:
    """A file name: no separators, no leading dot, at most 64 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", label[:64]).lstrip(".") or "process"
