"""The dead man's switch: what the guard has begun is finished, even if the guard is not there any more.

Before its first SIGSTOP the guard hands over the plan and a deadline; the pidfds of the ranks it has handed over at
discovery. If the guard dies, or the deadline passes, everything in the plan gets SIGKILL, or SIGCONT where nothing was
to be killed. So nothing ever stays stopped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from sidecar.errors import OutOfDescriptors
from sidecar.log import Log
from sidecar.model import Action, Identity, Plan, RankProcess
from sidecar.system import signals
from sidecar.system.proc import Proc

_SPARE = 4


class Switch:
    """Holds the ranks' pidfds, and the plan while one is armed."""

    def __init__(self, proc: Proc, log: Log) -> None:
        self.ranks: dict[Identity, tuple[RankProcess, int]] = {}
        self.deadline: float | None = None
        self.fired = False
        self._proc = proc
        self._log = log
        self._plan: Plan | None = None
        self._incident = ""
        self._spare: list[int] = []
        self._keep_spare()

    def watch(self, ranks: Iterable[RankProcess], fds: Iterable[int], most: int = 1 << 30) -> None:
        """Keep these ranks and a pidfd of each, `most` of them; a rank that is known gets its new label."""
        for rank, fd in zip(ranks, fds, strict=True):
            self._close(rank.identity)
            if len(self.ranks) >= most:
                os.close(fd)  # a new guard has to find it again; without a descriptor there would be no new guard
            else:
                self.ranks[rank.identity] = (rank, fd)

    def forget(self, identities: Iterable[Identity]) -> None:
        for identity in identities:
            self._close(identity)

    def arm(self, incident: str, plan: Plan, deadline: float) -> None:
        self._incident, self._plan, self.deadline = incident, plan, deadline
        self.fired = False

    def disarm(self, incident: str) -> None:
        """The plan of this incident was carried out. One that was armed since stays armed."""
        if incident == self._incident:
            self._plan = self.deadline = None

    def fire(self, why: str) -> None:
        """Carry the plan out, if one is armed. Groups first, in the plan's order, then each process by itself."""
        plan = self._plan
        if plan is None:
            return
        self._plan = self.deadline = None
        self.fired = True
        self._close_spare()
        sig = signal.SIGKILL if plan.action is Action.KILL else signal.SIGCONT
        short = 0  # signals that could not be sent, since no descriptor is left to check whose they would be
        for group in plan.groups:
            try:
                signals.to_group(self._proc, group, (m for m in plan.members if m.pgid == group), sig)
            except OutOfDescriptors:
                pass  # its members are next, of most of which we hold a pidfd
        for member in plan.members:
            held = self.ranks.get(member.identity)
            try:
                signals.to_process(self._proc, member.identity, sig, held[1] if held else -1)
            except OutOfDescriptors:
                short += 1
        self._log(
            "dead man's switch fired", self._incident, because=why, signal=sig.name, processes=len(plan.members),
            no_descriptor_for=short or None,
        )  # fmt: skip
        self._keep_spare()

    def _keep_spare(self) -> None:
        """To check whom we signal takes up to two descriptors: hold some, for the day when there are no others."""
        try:
            while len(self._spare) < _SPARE:
                self._spare += os.pipe2(os.O_CLOEXEC)
        except OSError:
            pass

    def _close_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def _close(self, identity: Identity) -> None:
        held = self.ranks.pop(identity, None)
        if held is not None:
            os.close(held[1])
