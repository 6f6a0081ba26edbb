"""All captures of one incident: what to take of whom, in which order, how many at once, and when to give up.

A slot is for a child that computes. One that has run for its entry's `computes` waits for something (a lock, a stopped
thread), so it gives its slot up and keeps only its own time limit: a process that hangs holds up no other's evidence.

Where two snapshots are wanted, the second of a process begins some seconds after its first, and what disturbs it
(`Entry.after`) only after all of those. What a child writes to the volume by itself waits until the incident has its
folder, and gets a fair share of the room that there is.
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

from sidecar.model import ArtifactStatus, Identity, Member, RankProcess
from sidecar.recorder.allowance import Allowance, Share
from sidecar.recorder.capture import COREDUMP, TABLE, Entry, Per, concerns
from sidecar.recorder.capture.base import NEEDS_RUNNING, Attempt, Ended, Piece, Scene, Target
from sidecar.recorder.children import Child, refusal
from sidecar.recorder.reactor import Reactor
from sidecar.system import signals
from sidecar.system.memory import OwnMemory

_MOST_CHILDREN = 48
_REAP_EVERY = 0.002
_RESUME_ANYWAY = 1.0
_BETWEEN_SNAPSHOTS = 2.0  # seconds, and at most a quarter of all the time there is
_VOLUME_PATIENCE = 5.0  # how long what needs the volume waits for it, and at most a quarter of all the time

# Whom a collector works on that runs once for all.
ENGINE = Target(Identity(0, 0), "engine", "engine", "", "engine", is_rank=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one collector and one target. `seconds` from the beginning of its first child, which was `began`."""

    target: Target
    pieces: tuple[Piece, ...]
    seconds: float
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    entry: Entry
    target: Target


@dataclass(slots=True)
class _Running:
    """`share`: bytes of the volume that it may take; `memory`: what it may take of that."""

    job: _Job
    child: Child
    began: float
    share: int
    memory: Share


@dataclass(slots=True)
class _Dying:
    job: _Job
    child: Child
    resume_at: float
    resumed: bool


class Captures:
    """Call `step` and `reap` whenever something was read or `wake_at` has come; before leaving, `abandon`."""

    def __init__(
        self,
        wanted: Iterable[str],
        scene: Scene,
        deadline: float,
        reactor: Reactor,
        have: Container[tuple[str, str]] = (),
        twice: bool = False,
        memory: OwnMemory | None = None,
    ) -> None:
        """`wanted`: names of collectors, for the targets of the scene. `deadline`: monotonic. `have`: what there is
        already, (collector, label). `twice`: take two snapshots of every rank, to see what moves.
        """
        now = time.monotonic()
        patience = max(0.0, deadline - now) / 4
        self.deadline = deadline
        self._scene = scene
        self._reactor = reactor
        self._slots = (os.cpu_count() or 1) + 1  # measured: 8 stacks on 2 cores take 52 ms with 3, 70 with 6
        self.allowance = Allowance(memory or OwnMemory(scene.proc), self._slots)
        self._queue = list(_jobs(set(wanted), scene, have, twice and not scene.frozen))
        self._running: list[_Running] = []
        self._dying: list[_Dying] = []
        self._between = min(_BETWEEN_SNAPSHOTS, patience)
        # (collector, label) -> when its second may begin; one without a first has nothing to wait for.
        self._firsts: dict[tuple[str, str], float] = {}
        self._volume_until = now + min(_VOLUME_PATIENCE, patience)
        self._written = 0

    @property
    def done(self) -> bool:
        return not self._queue and not self._running

    def volume(self, folder: str, room: int) -> None:
        """The incident has its folder (an absolute path), and so many bytes of room, by the last look."""
        if (self._scene.folder, self._scene.room) != (folder, room):
            self._scene = replace(self._scene, folder=folder, room=room)
            self._written = 0  # that look saw it

    def step(self) -> list[Taken]:
        """Collect what has ended, end what is over its limit, begin what there is room for. Never blocks."""
        now = time.monotonic()
        taken: list[Taken] = []
        self._watch_memory(now, taken)
        for running in list(self._running):
            ended = self._explained(running)
            if ended is None and (running.child.cut or now >= min(running.child.limit_at, self.deadline)):
                ended = self._kill(running, now)
            if ended is not None:
                self._finish(running, ended, taken)
        while now < self.deadline and self._has_room(now) and (job := self._next(now)):
            memory = self.allowance.share_for(job.entry, self._shares(now))
            if not memory and (self._running or self._dying):
                break  # when one of those has ended there is more
            self._queue.remove(job)
            share = self._share(job)
            step = self._collect(job, share, self.deadline - now)
            self._continue(job, step, now, share, memory, taken)
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
        due += [self.allowance.next_at()] if self._running else []
        due += [now + _REAP_EVERY for running in self._running if running.child.silent and not running.child.wakes]
        if self._queue:
            due += [
                running.child.began + running.job.entry.computes
                for running in self._running
                if not _waits(running, now)
            ]
            due += [at for at in (*self._firsts.values(), self._volume_until) if at > now]
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

    def _next(self, now: float) -> _Job | None:
        """The first in the queue that may begin."""
        held = {running.job.target.label for running in self._running if running.job.entry.holds}
        held |= {dying.job.target.label for dying in self._dying if dying.job.entry.holds and not dying.resumed}
        at_work = {(running.job.entry.name, running.job.target.label) for running in self._running}
        waiting = {(job.entry.name, job.target.label) for job in self._queue}
        seconds = any(job.entry.second_of for job in self._queue)
        seconds = seconds or any(running.job.entry.second_of for running in self._running)
        for job in self._queue:
            entry, label = job.entry, job.target.label
            first = (entry.second_of, label)
            if entry.holds and label in held:
                continue
            if entry.second_of and (first in waiting or first in at_work or now < self._firsts.get(first, 0.0)):
                continue
            if entry.after and seconds:
                continue
            if entry.most and not (self._scene.folder and self._scene.room) and now < self._volume_until:
                continue
            return job
        return None

    def _share(self, job: _Job) -> int:
        """How many bytes it may take of the volume: no more than what each that still waits could have as well."""
        if not job.entry.most:
            return 0
        most = self._scene.coredump_max_bytes if job.entry.most == COREDUMP else job.entry.most
        left = self._scene.room - self._written - sum(running.share for running in self._running)
        others = sum(bool(waiting.entry.most) for waiting in self._queue)
        return max(0, min(most, left // (others + 1)))

    def _collect(self, job: _Job, share: int, left: float) -> Attempt | tuple[Piece, ...]:
        entry = job.entry
        if entry.running and self._scene.frozen:
            return _none(entry, ArtifactStatus.SKIPPED, f"{NEEDS_RUNNING}: the ranks are frozen")
        if entry.most and not self._scene.folder:
            return _none(entry, ArtifactStatus.FAILED, "the volume was not ready in time")
        return entry.collect(job.target, replace(self._scene, room=share) if entry.most else self._scene, left)

    def _continue(
        self, job: _Job, step: Attempt | tuple[Piece, ...], began: float, share: int, memory: int, taken: list[Taken]
    ) -> None:
        """Begin the attempt, or keep the pieces. `share` and `memory`: bytes of the volume, and of memory, for it."""
        now = time.monotonic()
        if not isinstance(step, Attempt):
            self._firsts[job.entry.name, job.target.label] = now + self._between
            self._written += sum(piece.written[0] for piece in step if piece.written)
            taken.append(Taken(job.target, step, now - began, began))
            return
        limit = min(step.limit, self.deadline - now)
        ended: Ended | None = None
        if limit <= 0:
            ended = Ended(None, seconds=now - began)
        elif not memory:
            ended = Ended(None, failure=self.allowance.refusal())
        else:
            try:
                child = Child(step, limit, self._reactor, memory, self.allowance.output(step.cap))
            except OSError as error:
                ended = Ended(None, failure=refusal(error))
        if ended is not None:
            self._continue(job, step.judge(ended), began, share, memory, taken)
            return
        self._running.append(_Running(job, child, began, share, Share(child.pid, memory, child.inherited)))

    def _finish(self, running: _Running, ended: Ended, taken: list[Taken]) -> None:
        """Its child has ended, or was ended."""
        self._running.remove(running)
        step = running.child.attempt.judge(ended)
        self._continue(running.job, step, running.began, running.share, running.memory.share, taken)

    def _explained(self, running: _Running) -> Ended | None:
        """What a child left that has ended by itself. Where memory was the reason, that is said, and it is not tried
        again.
        """
        ended = running.child.ended()
        if ended is not None and running.child.ran_out:
            return replace(ended, failure=self.allowance.ran_out(running.memory))
        if ended is not None and running.child.killed and (why := self.allowance.kernel_killed()):
            return replace(ended, failure=why)
        return ended

    def _watch_memory(self, now: float, taken: list[Taken]) -> None:
        """End the fattest before the kernel ends us all."""
        found = self.allowance.look([running.memory for running in self._running], now)
        if found is None:
            return
        share, why = found
        running = next(running for running in self._running if running.memory is share)
        self._finish(running, replace(self._kill(running, now), failure=why), taken)

    def _shares(self, now: float) -> list[tuple[Share, bool]]:
        return [(running.memory, _waits(running, now)) for running in self._running]

    def _kill(self, running: _Running, now: float) -> Ended:
        ended = running.child.kill()
        # Its target runs again once it is gone; if it cannot go (D state), SIGCONT is sent all the same.
        self._dying.append(_Dying(running.job, running.child, now + _RESUME_ANYWAY, resumed=False))
        return ended

    def _give_up(self, taken: list[Taken]) -> None:
        for job in self._queue:
            step = self._collect(job, 0, 0.0)
            pieces = step.judge(Ended(None)) if isinstance(step, Attempt) else step
            if isinstance(pieces, Attempt):
                pieces = ()
            taken.append(Taken(job.target, pieces, 0.0))
        self._queue.clear()

    def _resume(self, dying: _Dying) -> None:
        """SIGCONT also takes a SIGSTOP back that the target has not yet come to: then it never stops at all."""
        if dying.child.attempt.pauses and not self._scene.frozen:
            signals.to_process(self._scene.proc, dying.job.target.identity, signal.SIGCONT)
        dying.resumed = True


def _jobs(names: set[str], scene: Scene, have: Container[tuple[str, str]], twice: bool) -> Iterator[_Job]:
    """What is to be done, in the order of the table."""
    for entry in TABLE:
        if (entry.second_of or entry.name) not in names or (entry.second_of and not twice):
            continue
        targets: tuple[Target, ...] = (ENGINE,)
        if entry.per is not Per.ENGINE and not (entry.running and scene.frozen):
            targets = tuple(target for target in scene.targets if concerns(entry, target))
        yield from (_Job(entry, target) for target in targets if (entry.name, target.label) not in have)


def _none(entry: Entry, status: ArtifactStatus, detail: str) -> tuple[Piece, ...]:
    return tuple(Piece(kind, status, detail=detail) for kind in entry.kinds.values())


def _waits(running: _Running, now: float) -> bool:
    return now - running.child.began > running.job.entry.computes


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
