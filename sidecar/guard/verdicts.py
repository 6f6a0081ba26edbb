"""From observations to a decision: which exits are failures, which one was first, and what follows.

The rules are in `policy`; here they meet the guard's state. An exit is told once, however many ways saw it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.guard.case import Case
from sidecar.guard.entrypoints import Entrypoints
from sidecar.guard.memory_kills import MemoryKills
from sidecar.guard.surroundings import Surroundings
from sidecar.guard.timers import Timer
from sidecar.model import (
    Action,
    Decision,
    ExitStatus,
    Failure,
    Identity,
    Incident,
    Liveness,
    Observation,
    ProcessExited,
    ProcessReaped,
    RankProcess,
    Reason,
    State,
    Verdict,
)
from sidecar.policy.deaths import Exit, Judgement, Meaning, cause_of, judge_held, meaning, reason_for
from sidecar.policy.machine import Event
from sidecar.policy.startup import Expectation, counted
from sidecar.system import clock

if TYPE_CHECKING:
    from sidecar.guard.loop import Guard

_KILL_TAKES = 10.0  # seconds that a kill has after the captures before /livez says that the engine is still there
_STATUS_COMES = 0.1  # how long an unknown exit status may still become known, in seconds


class Verdicts:
    """Judges exits for one guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._over: dict[Identity, RankProcess] = {}
        self._held: list[Exit] = []
        self._failed: list[Exit] = []  # of the observations that are being taken
        self._unknown: dict[Identity, tuple[Exit, str]] = {}
        self._told: set[Identity] = set()
        self.found_failed = False  # the web has found this engine stuck or dead, and an incident was made of it
        self._death_recorded = False  # an incident was made of a death of this engine, or of ranks that never came
        self._judging: Timer | None = None
        self.memory = MemoryKills(guard.proc, guard.remember)
        self._entrypoints = Entrypoints(guard.census, guard.exits)

    # -- watching -----------------------------------------------------------------------------------------------

    def watch_container(self, rank: RankProcess, now: float) -> list[Observation]:
        """Watch what the rank's container tells of its end: its memory events and its entrypoint.

        Returns what is to be said at once.
        """
        self.memory.watch(rank)
        return self._entrypoints.watch(rank, now)

    def already_told(self, identities: Iterable[Identity]) -> None:
        """An earlier guard has told of these exits."""
        self._told.update(identities)

    def is_over(self, identity: Identity) -> bool:
        return identity in self._over

    def alive(self) -> int:
        """How many watched processes of the engine still run."""
        return len(self.living())

    def living(self) -> list[Identity]:
        """They themselves."""
        return [identity for identity in self._guard.discovery.ranks if identity not in self._over]

    def new_generation(self) -> None:
        """The engine is gone; nothing of it is held against the next one."""
        self.memory.new_generation()
        self._entrypoints.new_generation()
        self.found_failed = False
        self._death_recorded = False
        self._over.clear()
        self._told.clear()
        self._unknown.clear()
        self._held.clear()
        self._cancel_judging()

    # -- observations -------------------------------------------------------------------------------------------

    def take(self, observations: Sequence[Observation]) -> None:
        """Judge what was seen, in the order in which it was seen."""
        if not observations:
            return
        for observation in observations:
            self._entrypoints.take(observation)
            self._take_one(observation)
        self._open_for_failed()
        case = self._guard.case
        if case is not None:
            case.hasten()
            if case.captures_running and self.alive() == 0:
                case.hurry("nothing of the engine is left to capture")
        self._judge_held()

    def _take_one(self, observation: Observation) -> None:
        identity = observation.identity
        rank = self._guard.discovery.ranks.get(identity) or self._over.get(identity)
        if rank is None:
            return
        seen_by = "reaped" if isinstance(observation, ProcessReaped) else observation.seen_by
        if identity not in self._over:
            self._over[identity] = rank
            self._guard.mark_changed()
        exit_ = Exit(identity, rank.role, rank.rank, rank.titled, observation.status, observation.at)
        if identity in self._unknown and observation.status.known:
            first, by = self._unknown.pop(identity)
            self._tell(Exit(identity, rank.role, rank.rank, rank.titled, observation.status, first.at), by)
        elif identity not in self._told:
            self._told.add(identity)
            if observation.status.known:
                self._tell(exit_, seen_by)
            else:
                self._unknown[identity] = (exit_, seen_by)
                self._guard.timers.at(observation.at + _STATUS_COMES, lambda: self._give_up_on(identity))
        elif isinstance(observation, ProcessExited | ProcessReaped) and observation.status.known:
            self._correct(identity, observation.status)

    def _give_up_on(self, identity: Identity) -> None:
        waiting = self._unknown.pop(identity, None)
        if waiting is not None:
            self._tell(*waiting)
            self._open_for_failed()
            self._judge_held()

    def _correct(self, identity: Identity, status: ExitStatus) -> None:
        case = self._guard.case
        if case is None:
            return
        for failure in case.story.failures:
            if (failure.pid, failure.start) == (identity.pid, identity.start) and not failure.status.known:
                case.story.correct_failure(self._failure(
                    Exit(identity, failure.role, failure.rank, True, status, failure.at), failure.seen_by))  # fmt: skip

    def _tell(self, exit_: Exit, seen_by: str) -> None:
        """One exit, told once."""
        guard = self._guard
        if any(case.killed_by_us(exit_.identity, exit_.at) for case in guard.open_cases()):
            return  # our own doing
        case = guard.case
        if case is not None and case.earlier_run and exit_.identity not in case.story.members:
            guard.set_aside(case)
        elif case is not None and case.yields_to_a_death(guard.on_rank_death) and (guard.state is not State.DRAINING):
            case.hurry("a process failed meanwhile")
        if guard.state is State.DRAINING:
            guard.log("exited in the drain", rank=exit_.rank, status=_words(exit_.status))
            return
        if guard.case is not None:
            guard.log("rank died", guard.case.id, rank=exit_.rank, status=_words(exit_.status), cascade=True)
            guard.case.add_failure(self._failure(exit_, seen_by))
            self._death_recorded = True
            return
        if self._failed:  # it comes after a failure, whatever it means by itself; the moment may be the same
            self._failed.append(replace(exit_, seen_by=seen_by))
            return
        what = meaning(exit_)
        rank = self._over.get(exit_.identity)
        if what is Meaning.FAILURE and rank is not None and self._entrypoints.explains(exit_, rank.container):
            what = Meaning.HELD
        if what is Meaning.NOTHING:
            guard.log("helper ended", rank=exit_.rank)
            guard.let_be(exit_.identity)
        elif what is Meaning.HELD:
            guard.log("exited", rank=exit_.rank, status=_words(exit_.status), pending="clean if the rest follows")
            self._held.append(replace(exit_, seen_by=seen_by))
        elif guard.state is State.FAILING and self._death_recorded:
            self._count_only(self._failure(exit_, seen_by))
        else:
            self._failed.append(replace(exit_, seen_by=seen_by))

    def _open_for_failed(self) -> None:
        """One incident of all that was seen to fail at once: with nothing left to kill it may be over in a moment."""
        if self._failed:
            failed, self._failed = self._failed, []
            self._fail([*self._held, *failed], failed[0].seen_by)

    def _count_only(self, failure: Failure) -> None:
        """The incident of a first death is sealed and the engine was left alone: what follows is counted and logged."""
        self._guard.log("rank died", rank=failure.rank, cause=str(failure.cause), cascade=True)
        self._guard.web.event(
            "rank_death", role=str(failure.role), rank=failure.rank, cause=str(failure.cause), at=failure.at
        )

    def _judge_held(self) -> None:
        guard = self._guard
        alive = self.alive()
        leaves_alone = guard.case is None or guard.case.decision.action is Action.OBSERVE
        if alive == 0 and leaves_alone and self._over and not self._unknown:
            if self._held:
                guard.log("engine stopped", because="every process has left as one does that was told to")
            guard.engine_gone()
            return
        if not self._held or guard.case is not None or guard.state is State.DRAINING:
            return
        now = clock.monotonic()
        grace = guard.settings.exit_grace
        if judge_held(self._held, alive, now, grace) is Judgement.FAILURE:
            self._fail(list(self._held), "exit grace")
        elif self._judging is None:
            self._judging = guard.timers.at(self._held[0].at + grace, self._judge_again)

    def look_again(self) -> None:
        """See what follows from the exits so far."""
        self._judge_held()

    def _judge_again(self) -> None:
        self._judging = None
        self._judge_held()

    def _cancel_judging(self) -> None:
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None

    # -- decisions ----------------------------------------------------------------------------------------------

    def _fail(self, exits: list[Exit], seen_by: str) -> None:
        exits.sort(key=lambda e: e.at)
        self._death_recorded = True
        self._held.clear()
        self._cancel_judging()
        first = exits[0]
        failures = [self._failure(e, e.seen_by or seen_by) for e in exits]
        guard = self._guard
        reason = reason_for(first)
        because = tuple(f"{e.rank} {_words(e.status)}" for e in exits)
        case = guard.new_case(reason, guard.on_rank_death, first.rank, because, failures[0].at)
        root = failures[0]
        guard.log(
            "rank died",
            case.id,
            rank=root.rank,
            cause=str(root.cause),
            status=_words(root.status),
            seen_by=root.seen_by,
        )
        for other in failures[1:]:
            guard.log("rank died", case.id, rank=other.rank, status=_words(other.status), cascade=True)
        self._open(case, failures)

    def ranks_missing(self, expectation: Expectation) -> None:
        """The start-up limit has passed with fewer ranks than expected."""
        guard = self._guard
        count = counted(guard.discovery.roles(), expectation)
        limit = guard.settings.startup_timeout
        because = (f"{count} of {expectation.count} ranks ({expectation.why}) after {limit:g} s",)
        case = guard.new_case(
            Reason.RANK_MISSING,
            guard.on_rank_death,
            f"{count}of{expectation.count}",
            because,
            clock.monotonic(),
        )
        guard.log("rank missing", case.id, ranks=count, expected=expectation.count)
        self._death_recorded = True
        self._open(case, [])

    def liveness(self, verdict: Verdict, about: Iterable[Identity]) -> None:
        """The web's word on an engine that lives: stuck or dead, or not any more."""
        guard = self._guard
        if verdict.liveness not in (Liveness.STUCK, Liveness.DEAD):
            if self.found_failed:
                guard.log("the engine makes progress again", verdict=str(verdict.liveness))
                self.found_failed = False
                guard.remember()
            guard.set_failed(False)
            return
        alive = [i for i in about if i in guard.discovery.ranks and i not in self._over]
        if self.found_failed or not alive or guard.case is not None or guard.state is State.DRAINING:
            return  # told before, about another generation, or while something else is done about it
        self.found_failed = True
        if guard.state is State.SERVING:
            self._death_recorded = False  # it had mended itself since
        guard.remember()
        settings = guard.settings
        reason = Reason.ENGINE_STALLED if verdict.liveness is Liveness.STUCK else Reason.LIVENESS_FAILED
        about_whom = verdict.odd[0] if len(verdict.odd) == 1 else ""
        now = clock.monotonic()
        case = guard.new_case(
            reason, guard.on_liveness_failure, about_whom, verdict.because, now,
            deadline=settings.liveness_seconds, verdict=verdict,
        )  # fmt: skip
        guard.log("liveness failed", case.id, verdict=str(verdict.liveness), because="; ".join(verdict.because))
        self._look_whether_it_stays(case.decision, alive, now)
        self._open(case, [], fails=case.decision.action is Action.KILL)

    def resumed(self, incident: Incident, opened_at: float) -> None:
        """An earlier guard has opened this incident of the engine that is watched now."""
        if incident.reason in (Reason.ENGINE_STALLED, Reason.LIVENESS_FAILED):
            self.found_failed = True
            self._look_whether_it_stays(incident.decision, list(self._guard.discovery.ranks), opened_at)
        self._death_recorded = bool(incident.failures) or incident.reason is Reason.RANK_MISSING

    def _look_whether_it_stays(self, decision: Decision, about: Iterable[Identity], opened_at: float) -> None:
        takes = _KILL_TAKES if decision.action is Action.KILL else 0.0
        identities = set(about)
        self._guard.timers.at(opened_at + decision.deadline + takes, lambda: self._still_failed(identities))

    def _still_failed(self, about: set[Identity]) -> None:
        """The deadline of a liveness failure has passed: /livez tells if the same engine is there, and as it was."""
        guard = self._guard
        if self.found_failed and any(i in guard.discovery.ranks and i not in self._over for i in about):
            guard.set_failed(True)

    def pre_stop(self, reason: Reason, because: str, captures: tuple[str, ...], deadline: float, group: str) -> Case:
        """The kubelet is about to stop the engine: save what there is. Nothing is killed, since it will be."""
        guard = self._guard
        observes = guard.on_liveness_failure is Action.OBSERVE
        case = guard.new_case(
            reason, Action.OBSERVE if observes else Action.CAPTURE, "", (because,), clock.monotonic(),
            deadline=deadline, captures=captures, group=group,
        )  # fmt: skip
        guard.log("stop hook", case.id, reason=str(reason), because=because)
        guard.open_case(case)
        case.open([])
        if observes:
            case.finish_observing()  # nobody waits for what follows
        return case

    def manual(self) -> None:
        """A person asked for a capture. Nothing is killed."""
        guard = self._guard
        if guard.case is not None or self.alive() == 0:
            guard.log("manual capture refused", because="an incident is open" if guard.case else "there is no engine")
            return
        case = guard.new_case(Reason.MANUAL, Action.CAPTURE, "", ("asked for by a person",), clock.monotonic())
        guard.log("manual capture", case.id)
        guard.open_case(case)
        case.open([])

    def _open(self, case: Case, failures: list[Failure], fails: bool = True) -> None:
        """`fails`: this gives wrap mode's exit status, unless something failed before."""
        guard = self._guard
        if fails:
            guard.ending.failed(failures)
        guard.open_case(case)
        guard.event(Event.FAILURE)
        case.open(failures)
        if case.decision.action is Action.OBSERVE:
            guard.observe_for_a_while(case)

    def make_case(
        self, around: Surroundings, reason: Reason, action: Action, rank: str, because: tuple[str, ...], at: float,
        deadline: float | None = None, captures: tuple[str, ...] | None = None, verdict: Verdict | None = None,
        group: str = "",
    ) -> Case:  # fmt: skip
        """A case with its id: sortable time, reason, and whom it is about. What is not told is as after a death."""
        guard = self._guard
        settings = guard.settings
        decision = Decision(
            reason, action, settings.captures if captures is None else captures,
            settings.death_deadline if deadline is None else deadline, because,
        )  # fmt: skip
        words = [clock.id_stamp(clock.wall() - (clock.monotonic() - at)), reason.lower()]
        words += [re.sub(r"[^a-z0-9]+", "-", rank.lower()).strip("-")[:40]] if rank else []
        return Case(
            around, "-".join(w for w in words if w), guard.discovery.engine or settings.engine, settings.pod, decision,
            guard.boot_id, clock.monotonic(), str(guard.state), verdict, group or settings.pod_group,
        )  # fmt: skip

    def _failure(self, exit_: Exit, seen_by: str) -> Failure:
        rank = self._over.get(exit_.identity)
        limit = self.memory.explains(exit_.identity, rank.container if rank is not None else "", exit_.status)
        wall = clock.wall() - (clock.monotonic() - exit_.at)
        detail = "exited with 0 while the others ran on" if exit_.status.code == 0 else exit_.status.why_unknown
        return Failure(
            exit_.role, exit_.rank, exit_.identity.pid, exit_.identity.start, exit_.status,
            cause_of(exit_.status, limit is not None), exit_.at, wall, seen_by, limit or detail,
            self._guard.container_names.get(rank.container, "") if rank is not None else "",
        )  # fmt: skip


def _words(status: ExitStatus) -> str:
    if status.signal is not None:
        return f"signal {status.signal}"
    if status.code is not None:
        return f"exit status {status.code}"
    return f"unknown ({status.why_unknown})"
