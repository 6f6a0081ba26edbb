"""The engine's processes as one body: found, stopped, killed, and waited for.

Every function here reads /proc anew, since between a death and the kill anything may fork, and signals a process only
by an identity that was just read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sidecar.guard.census import Census
from sidecar.guard.discovery import Discovery
from sidecar.guard.exits import Exits
from sidecar.model import Action, Identity, Member, Outcome, Plan, Role, Survivor
from sidecar.policy.membership import Bounds, Process, closure, group_order
from sidecar.system import signals
from sidecar.system.proc import Proc
from sidecar.system.signals import Sent

_PASSES = 5


@dataclass(slots=True)
class Sweep:
    """What a round of signals reached. `denied` are those we have no right to signal."""

    members: dict[Identity, Member] = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    passes: int = 0
    denied: set[Identity] = field(default_factory=set)


class Herd:
    """Finds and signals everything that belongs to the engine."""

    def __init__(self, proc: Proc, census: Census, discovery: Discovery, exits: Exits, use_pidfd: bool) -> None:
        self._proc = proc
        self._census = census
        self._discovery = discovery
        self._exits = exits
        self._use_pidfd = use_pidfd

    def plan(
        self, action: Action, extra: set[Identity], now: float, full: bool = True, nothing_else: bool = False
    ) -> Plan:
        """Everything alive that belongs to the engine now. `extra`: further seeds, alive or not.

        With `full` every process's parent, group and session are read anew, else only those of new processes.
        `nothing_else`: only what belongs to `extra`, whatever else is known of the engine.
        """
        fresh = self._census.refresh(now) if full else self._census.sweep(now)
        self._discovery.take_in(fresh, now)
        snapshot = self._snapshot()
        bounds = Bounds(
            excluded=frozenset(self._census.own | {i.pid for i in self._discovery.given_up}),
            own_group=os.getpgrp(),
            own_container=self._census.own_container,
            only=self._discovery.bound(),
        )
        seeds = extra if nothing_else else self._discovery.seeds() | extra
        pids = closure(snapshot, seeds, self._discovery.engine_sessions, bounds)
        members = tuple(self._member(pid) for pid in sorted(pids) if not self._census.table[pid].over)
        servers = [i.pid for i, rank in self._discovery.ranks.items() if rank.role is Role.SERVER]
        # Zombies are no members, but a group that holds one of ours is still ours.
        over = [self._member(pid) for pid in pids if self._census.table[pid].over]
        groups = group_order((*members, *over), snapshot, servers, os.getpgrp())
        alive_groups = {m.pgid for m in members}
        return Plan(action, members, tuple(g for g in groups if g in alive_groups))

    def stop(self, plan: Plan, announce: Callable[[Plan], bool], now: float) -> Sweep:
        """SIGSTOP everything, until a pass finds nobody new. `announce` is told each plan before its first signal;
        if it refuses, nothing more is stopped: what nobody could let go again must not be stopped.
        """
        return self._rounds(signal.SIGSTOP, plan, announce, set(), now)

    def kill(self, plan: Plan, extra: set[Identity], now: float, nothing_else: bool = False) -> Sweep:
        """SIGKILL everything, until a pass finds nobody new. `nothing_else` as in `plan`."""
        return self._rounds(signal.SIGKILL, plan, lambda _: True, extra, now, nothing_else)

    def let_go(self, members: dict[Identity, Member]) -> None:
        """SIGCONT to everything that was stopped."""
        for identity in members:
            self._signal(identity, signal.SIGCONT)

    def stopped(self, members: Iterable[Identity]) -> set[Identity]:
        """Those in state T: stopped by a signal, or left so by who had them under ptrace."""
        stats = ((identity, self._proc.stat(identity.pid)) for identity in members)
        return {i for i, stat in stats if stat is not None and stat.identity == i and stat.state == "T"}

    def newcomers(self, killed: dict[Identity, Member], now: float) -> Plan | None:
        """Processes that belong to the killed ones and are not among them; None if nothing was started since."""
        if not self._census.moved():
            return None
        plan = self.plan(Action.KILL, set(killed), now, full=False, nothing_else=True)
        fresh = tuple(m for m in plan.members if m.identity not in killed)
        return Plan(Action.KILL, fresh, plan.groups) if fresh else None

    def holders(self, members: dict[Identity, Member]) -> tuple[list[Member], bool]:
        """(those that still hold resources, whether zombies of the others remain)."""
        holding, zombies = [], False
        for identity, member in members.items():
            stat = self._proc.stat(identity.pid)
            if stat is None or stat.identity != identity:
                continue
            if stat.holds_resources:
                holding.append(member)
            else:
                zombies = True
        return holding, zombies

    def survivors(self, members: list[Member]) -> tuple[Survivor, ...]:
        """What the record says of those that do not go: their state, and where the kernel holds them."""
        found = []
        for member in members:
            stat = self._proc.stat(member.identity.pid)
            if stat is not None and stat.identity == member.identity:
                wchan = self._proc.wchan(member.identity.pid)
                found.append(
                    Survivor(member.identity.pid, member.identity.start, member.rank, stat.comm, stat.state, wchan)
                )
        return tuple(found)

    def _rounds(
        self,
        sig: int,
        plan: Plan,
        announce: Callable[[Plan], bool],
        extra: set[Identity],
        now: float,
        nothing_else: bool = False,
    ) -> Sweep:
        sweep = Sweep(groups=plan.groups)
        done_groups: set[int] = set()
        while sweep.passes < _PASSES:
            fresh = [m for m in plan.members if m.identity not in sweep.members]
            if not fresh and sweep.passes:
                break
            if not announce(plan):
                break
            sweep.passes += 1
            for group in plan.groups:
                if group not in done_groups or any(m.pgid == group for m in fresh):
                    of_it = (m for m in plan.members if m.pgid == group)
                    # Where none of a group may be signalled, each is tried by name, and told as denied.
                    if signals.to_group(self._proc, group, of_it, sig) is not Sent.DENIED:
                        done_groups.add(group)
            for member in fresh:
                sweep.members[member.identity] = member
                # Those whose group was reached as a whole get SIGKILL once more by name; a second SIGSTOP is spared.
                by_name = sig == signal.SIGKILL or member.pgid not in done_groups
                if by_name and self._signal(member.identity, sig) is Sent.DENIED:
                    sweep.denied.add(member.identity)
            if not self._census.moved():
                break
            seeds = set(sweep.members) | extra
            plan = self.plan(plan.action, seeds, now, full=False, nothing_else=nothing_else)
            sweep.groups = plan.groups
        return sweep

    def _signal(self, identity: Identity, sig: int) -> Sent:
        return signals.to_process(self._proc, identity, sig, self._exits.pidfd_of(identity), self._use_pidfd)

    def _snapshot(self) -> dict[int, Process]:
        return {pid: known.as_process() for pid, known in self._census.table.items()}

    def _member(self, pid: int) -> Member:
        known = self._census.table[pid]
        rank = self._discovery.ranks.get(known.identity)
        return Member(
            known.identity, known.pgid, known.sid, known.ppid, known.comm,
            str(rank.role) if rank else "", rank.rank if rank else "",
        )  # fmt: skip


def outcome_of(killed: int, denied: bool, holding: bool, zombies: bool) -> Outcome:
    """The outcome of the whole: the worst of its parts."""
    if holding:
        return Outcome.DENIED if denied else Outcome.STILL_ALIVE
    if not killed:
        return Outcome.ALREADY_GONE
    return Outcome.EXITED_UNREAPED if zombies else Outcome.REAPED
