"""The kill of one incident and the wait until everything is gone.

A zombie has given back what it held, so it is gone; one whose threads still run is not. What does not go in time is
named, with its state and where the kernel holds it, and the wait ends: the guard has a next engine to watch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.guard.herd import Herd, Sweep, outcome_of
from sidecar.guard.timers import Timers
from sidecar.model import Action, Identity, Member, Plan, Termination
from sidecar.system import clock

_WARNING = 10.0  # seconds after which it is said that something is still there
_ZOMBIES_GO = 0.1  # how long a zombie may take to be reaped before the outcome says that it was not
_FIRST_POLL = 0.002
_LAST_POLL = 0.25


@dataclass(slots=True)
class Ended:
    """How it ended. `gone_at` is monotonic, None if something is still there."""

    termination: Termination
    gone_at: float | None


class Killing:
    """One kill. `say(event, detail, at)` puts a line into the record and the log; `end` is called once."""

    def __init__(
        self,
        herd: Herd,
        timers: Timers,
        reap_timeout: float,
        say: Callable[[str, str, float], None],
        end: Callable[[Ended], None],
    ) -> None:
        self.members: dict[Identity, Member] = {}
        self.denied: set[Identity] = set()  # of these, the ones that we have no right to signal
        self.at = 0.0
        self._herd = herd
        self._timers = timers
        self._reap_timeout = reap_timeout
        self._say = say
        self._end = end
        self._poll_every = _FIRST_POLL
        self._zombies_since = 0.0
        self._warned = False

    @property
    def struck(self) -> tuple[Member, ...]:
        """Those that were sent SIGKILL."""
        return tuple(member for identity, member in self.members.items() if identity not in self.denied)

    def strike(self, plan: Plan, known: dict[Identity, Member], stopped: dict[Identity, Member]) -> None:
        """SIGKILL everything in the plan and whoever joins it meanwhile. May be called again with a newer plan.

        `known` are the engine's processes as last seen; `stopped` are those that we have stopped, which are ours to
        end even if nothing ties them to the engine any more.
        """
        now = clock.monotonic()
        self.at = self.at or now
        self._count_in(self._herd.kill(plan, set(known), now))
        strays = tuple(member for identity, member in stopped.items() if identity not in self.members)
        if strays:
            self._count_in(self._herd.kill(Plan(Action.KILL, strays), set(), now))

    def wait(self) -> None:
        """Look whether all is gone, and again until it is or the time is over."""
        now = clock.monotonic()
        newcomers = self._herd.newcomers(self.members, now)
        if newcomers is not None:
            self._count_in(self._herd.kill(newcomers, set(self.members), now, nothing_else=True))
        holding, zombies = self._herd.holders(self.members)
        waited = now - self.at
        if not holding:
            self._zombies_since = self._zombies_since or now
            if not zombies or now - self._zombies_since >= _ZOMBIES_GO:
                self._gone(zombies)
                return
        elif waited >= self._reap_timeout:
            self._timed_out(holding, waited)
            return
        elif waited >= _WARNING and not self._warned:
            self._warned = True
            self._say("still there", self._describe(holding), now)
        self._timers.at(now + self._poll_every, self.wait)
        self._poll_every = min(self._poll_every * 1.3, _LAST_POLL)

    def hasten(self) -> None:
        """One of them went: the others may follow at any moment, so look often again."""
        self._poll_every = _FIRST_POLL

    def _count_in(self, sweep: Sweep) -> None:
        self.members |= sweep.members
        self.denied |= sweep.denied

    def _gone(self, zombies: bool) -> None:
        outcome = outcome_of(len(self.members), bool(self.denied), holding=False, zombies=zombies)
        seconds = self._zombies_since - self.at
        self._end(Ended(Termination(outcome, self.struck, (), seconds), self._zombies_since))

    def _timed_out(self, holding: list[Member], waited: float) -> None:
        denied = any(m.identity in self.denied for m in holding)
        outcome = outcome_of(len(self.members), denied, holding=True, zombies=False)
        survivors = self._herd.survivors(holding)
        detail = self._describe(holding)
        if any(s.state == "D" for s in survivors):
            detail += "; a process in uninterruptible sleep (D) cannot be killed: the node needs a drain"
        self._end(Ended(Termination(outcome, self.struck, survivors, waited, detail), None))

    def _describe(self, holding: list[Member]) -> str:
        return ", ".join(
            f"{s.rank or s.comm} (pid {s.pid}, state {s.state}, in {s.wchan or '?'})"
            for s in self._herd.survivors(holding)
        )
