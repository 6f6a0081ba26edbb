"""One incident, from the decision to the sealed record: freeze, capture, kill, wait, seal.

Each step is entered by an event or by a deadline, whichever comes first, and none of them waits for the volume, the
recorder or the web. The supervisor holds the dead man's switch from before the first SIGSTOP until the kill is done.

    opened -> capturing (frozen) -> reaping (killed) -> sealing -> closed
                         \\-> let go, where nothing is to be killed -/

After a death the freeze comes first. An engine that is alive but stuck is captured while it runs, since a CUDA
coredump needs the process running, and is frozen only for the kill.

The steps hand over to each other and want to be read in one go; the recorder's part is `taking`'s.
"""

from __future__ import annotations

from sidecar.guard.killing import Ended, Killing
from sidecar.guard.links import RecorderLink
from sidecar.guard.story import Story, in_words, pids
from sidecar.guard.surroundings import LIVENESS, RUNNING, Phase, Surroundings
from sidecar.guard.taking import Taking
from sidecar.messages import Message
from sidecar.model import (
    Action,
    Decision,
    Failure,
    Identity,
    Incident,
    Member,
    Plan,
    PodInfo,
    Reason,
    Verdict,
    plain,
)
from sidecar.system import clock

_SEALING = 15.0
_MOST_TOLD = 600  # characters of a text that goes to Kubernetes
_PASS_ON = 0.1  # how long news of further failures is gathered
_SWITCH_MARGIN = 1.0  # after the captures' deadline, the supervisor takes it that the guard hangs


class Case:
    """The life of one incident."""

    def __init__(self, around: Surroundings, incident_id: str, engine: str, pod: PodInfo, decision: Decision,
                 boot_id: str, opened_at: float, state: str = "", verdict: Verdict | None = None,
                 group: str = "") -> None:  # fmt: skip
        self.id = incident_id
        self.decision = decision
        self.earlier_run = False
        self.phase = Phase.OPENED
        self._around = around
        notes = (f"state: {state}",) if state else ()
        self.story = Story(Incident(
            incident_id, decision.reason, engine, pod, decision, boot_id=boot_id, notes=notes, verdict=verdict,
            group=group,
        ))  # fmt: skip
        self._opened_at = opened_at
        # Events that a new guard may have to repeat are numbered apart, so that the same one has the same number.
        self._end_epoch = f"{incident_id}/end"
        self.sealed_as: Message | None = None  # the recorder's word that the record is on the volume
        self._said_that_pod_goes = False
        self._taking = Taking(self, around, opened_at)
        self._killing: Killing | None = None
        self._pass_on_scheduled = False
        self._frozen: dict[Identity, Member] = {}
        self._frozen_plan: Plan | None = None
        self._stopped_before: set[Identity] | None = None  # of what is captured while it runs
        self._switch_fired = False
        # By an earlier guard, or by the switch: these deaths are ours, whenever they are seen.
        self._kill_had_begun = False

    @property
    def recorder(self) -> RecorderLink | None:
        return self._taking.recorder

    def on_recorder(self, message: dict[str, object]) -> None:
        """What our recorder said."""
        self._taking.heard(message)

    def recorder_came(self) -> None:
        """A recorder stands by. If this case has none, it is ours."""
        self._taking.recorder_came()

    def recorder_lost(self) -> None:
        """Our recorder died."""
        self._taking.recorder_lost()

    @property
    def frozen(self) -> bool:
        """Its processes stand still, by our doing."""
        return bool(self._frozen)

    def killed_by_us(self, identity: Identity, at: float) -> bool:
        """From the first SIGKILL on, deaths are our own doing. Where the engine that runs now may be the next one, only
        those that this incident names.
        """
        if self._kill_had_begun and identity in self.story.members:
            return True
        if self._killing is None or at < self._killing.at:
            return False
        at_work = self.phase is Phase.REAPING and not self.earlier_run
        return at_work or identity in self.story.members

    @property
    def captures_running(self) -> bool:
        """Evidence is being taken of an engine that runs on."""
        return self.phase is Phase.CAPTURING and self.decision.reason in RUNNING

    def yields_to_a_death(self, action: Action) -> bool:
        """Whether a rank's death is an incident of its own although this one is open. `action`: what a death asks for.

        What was asked for by hand, or kills nothing, must not swallow a real failure.
        """
        if self.decision.reason is Reason.MANUAL:
            return True
        return self.decision.reason in RUNNING and self.decision.action is not Action.KILL and action is Action.KILL

    # -- opening ------------------------------------------------------------------------------------------------

    def open(self, failures: list[Failure]) -> None:
        """Freeze and start the captures, or kill at once where no captures are wanted."""
        for failure in failures:
            self.story.add_failure(failure)
        now = clock.monotonic()
        self.story.note("detected", f"{self.decision.reason}: {'; '.join(self.decision.because)}", at=now)
        plan = Plan(self.decision.action)
        if self.decision.action is not Action.OBSERVE:
            plan = self._around.herd.plan(self.decision.action, self.story.failed(), now)
            self.story.members = {m.identity: m for m in plan.members}
        self._taking.hold_logs()
        # First the journal, then the counting: whoever takes this up counts it again, and the same number counts once.
        self._journal()
        self._count_all()
        if self.decision.action is Action.OBSERVE:
            self._observe()
            return
        wants_captures = bool(self.decision.captures) and self.decision.deadline > 0 and bool(plan.members)
        if self.decision.reason in RUNNING and (wants_captures or self.decision.action is Action.CAPTURE):
            self._begin_running()
        elif wants_captures or self.decision.action is Action.CAPTURE:
            self._freeze(plan, self.decision.deadline)
            self._taking.begin()
            self._around.leftovers.snapshot(list(self.story.members), budget=0.2)
        else:
            self._freeze(plan, 0.0)  # also here: what forks without end would leave somebody between two looks
            self._kill()
            self.recorder_came()  # only now: it would compete for the processor

    def resume(self, incident: Incident, phase: str, switch_fired: bool, earlier_run: bool) -> None:
        """Take up what an earlier guard has left. What the dead man's switch has not done is done now.

        `earlier_run`: it was left by an earlier run of Rankguard. The engine that runs now may be the next one, so
        nothing but what the incident names, and what belongs to that, is signalled.
        """
        self._taking.resumed = True
        self._switch_fired = switch_fired
        was_killed = phase in (Phase.REAPING, Phase.SEALING) and self.decision.action is Action.KILL
        self._kill_had_begun = switch_fired or was_killed
        self.earlier_run = earlier_run
        self.story = Story(incident)
        fired = "; the dead man's switch had fired" if switch_fired else ""
        self.story.note("guard restarted", f"in phase {phase}{fired}")
        self._around.log("incident taken up again", self.id, phase=phase, switch_fired=switch_fired)
        self._count_all()
        self._taking.hold_logs()
        if self.story.termination is not None or self.decision.action is Action.OBSERVE:
            self._taking.start_recorder(0.0)
            self._seal()
        elif self.decision.reason in RUNNING and phase in (Phase.OPENED, Phase.CAPTURING) and not switch_fired:
            self._begin_running()  # within the deadline that it has had from the beginning
        elif phase == Phase.OPENED and not switch_fired and self.decision.captures:
            # Nothing was stopped yet: there is still a whole story to capture.
            self._opened_at = self._taking.opened_at = clock.monotonic()
            plan = self._around.herd.plan(self.decision.action, set(self.story.members), self._opened_at)
            self._freeze(plan, self.decision.deadline)
            self._taking.begin()
            self._around.leftovers.snapshot(list(self.story.members), budget=0.2)
        elif self.decision.action is Action.KILL:
            self._taking.start_recorder(0.0)
            self._kill()
        else:
            if self.decision.reason not in RUNNING:
                self._frozen = dict(self.story.members)
            self._taking.start_recorder(0.0)
            self._let_go()

    def _count_all(self) -> None:
        """Say what there is to count. A guard that takes the incident up says it again, with the same numbers."""
        for failure in self.story.failures[:1]:
            self._count(failure)
        self._around.web.event("incident", self.id, wall=clock.wall(), **self._told())
        if self.decision.reason in LIVENESS:
            self._around.web.event("liveness_failure", self.id, probe=LIVENESS[self.decision.reason])
        for failure in self.story.failures[1:]:
            self._count(failure)

    def add_failure(self, failure: Failure) -> None:
        """A further process failed; the first by time is the root cause."""
        self.story.add_failure(failure)
        self._count(failure)
        if self.captures_running:
            # It was suspected and is now certain: the rest of the evidence has no more time than after any death.
            self._taking.deadline_in(self._around.death_deadline)
        if self.phase is not Phase.OPENED and not self._pass_on_scheduled:
            # Hundreds may follow within a moment: they are passed on together.
            self._pass_on_scheduled = True
            self._around.timers.at(clock.monotonic() + _PASS_ON, self._pass_on)

    def _pass_on(self) -> None:
        self._pass_on_scheduled = False
        if self.phase not in (Phase.SEALING, Phase.CLOSED):
            self._taking.tell("note")
            self._journal()

    def _count(self, failure: Failure) -> None:
        self._around.web.event(
            "rank_death", self.id, role=str(failure.role), rank=failure.rank, cause=str(failure.cause), at=failure.at
        )

    def _told(self) -> Message:
        """What whoever tells of this incident in Kubernetes has to know, whole in each message."""
        first = self.story.failures[0] if self.story.failures else None
        told: Message = {
            "incident": self.id, "reason": str(self.decision.reason), "action": str(self.decision.action),
            "because": "; ".join(self.decision.because)[:_MOST_TOLD],
            "rank": "", "role": "", "cause": "", "ended": "", "container": "", "deaths": len(self.story.failures),
        }  # fmt: skip
        if first is not None:
            told |= {"rank": first.rank, "role": str(first.role), "cause": str(first.cause)}
            told |= {"ended": in_words(first), "container": first.container}
        return told

    def pod_goes(self) -> None:
        """The pod was being deleted when this began, or is now."""
        if not self._said_that_pod_goes and self.phase not in (Phase.SEALING, Phase.CLOSED):
            self._said_that_pod_goes = True
            self._say("pod deleted", "the API server says that the pod is being deleted", clock.monotonic())

    # -- freeze and capture -------------------------------------------------------------------------------------

    def _begin_running(self) -> None:
        self.phase = Phase.CAPTURING
        self._stopped_before = self._around.herd.stopped(self.story.members)
        self._journal()
        self._taking.begin()

    def _freeze(self, plan: Plan, seconds: float) -> None:
        """Stop everything, for `seconds` at most: then the supervisor takes it that we hang."""
        started = clock.monotonic()
        switch_at = started + seconds + _SWITCH_MARGIN

        def arm(current: Plan) -> bool:
            return self._around.tell_supervisor(
                {"type": "arm", "incident": self.id, "plan": plain(current), "deadline": switch_at}
            )

        sweep = self._around.herd.stop(plan, arm, started)
        self._frozen = {i: member for i, member in sweep.members.items() if i not in sweep.denied}
        self._frozen_plan = Plan(plan.action, tuple(sweep.members.values()), sweep.groups)
        self.story.members |= sweep.members
        took = clock.monotonic() - started
        self.story.note("frozen", f"{len(self._frozen)} processes in {sweep.passes} passes")
        self.phase = Phase.CAPTURING
        self._journal()
        self._around.log("frozen", self.id, processes=len(self._frozen), ms=took * 1000)
        if sweep.denied:
            self._say("freeze denied", pids(sweep.denied), clock.monotonic())

    def _observe(self) -> None:
        self.phase = Phase.CAPTURING
        self._taking.only_record()

    def captures_over(self) -> None:
        """Whatever there is of evidence was taken, or its time is up: what comes next is done now."""
        if self.phase is not Phase.CAPTURING:
            return
        if self.decision.action is Action.KILL:
            self._freeze_and_kill()
        elif self.decision.action is Action.CAPTURE:
            self._let_go()

    # -- kill, wait ---------------------------------------------------------------------------------------------

    def _freeze_and_kill(self) -> None:
        """Kill; what has run on until now is stopped first, so that nothing forks away between two looks."""
        if self._frozen_plan is None and self.decision.reason in RUNNING:
            now = clock.monotonic()
            seeds = set(self.story.members) | self.story.failed()
            plan = self._around.herd.plan(Action.KILL, seeds, now, nothing_else=self.earlier_run)
            self._freeze(plan, 0.0)
            self._around.leftovers.snapshot(list(self.story.members), budget=0.2)
        self._kill()

    def _kill(self) -> None:
        """SIGKILL everything: first what was stopped, then what a new look finds."""
        around = self._around
        self.phase = Phase.REAPING
        around.leftovers.snapshot(list(self.story.members), budget=0.005)
        started = clock.monotonic()
        killing = Killing(around.herd, around.timers, around.reap_timeout, self._say, self._killed)
        self._killing = killing
        if self._switch_fired:  # these are dead by the supervisor's hand, and are ours to account for
            killing.members = dict(self.story.members)
        if self._frozen_plan is not None:  # as it was when everything was stopped: no need to look again
            killing.strike(self._frozen_plan, self.story.members, self._frozen)
        struck = clock.monotonic()
        seeds = set(self.story.members) | self.story.failed()
        plan = around.herd.plan(Action.KILL, seeds, struck, nothing_else=self.earlier_run)
        killing.strike(plan, self.story.members, self._frozen)
        done = struck if self._frozen_plan is not None else clock.monotonic()
        self.story.members |= killing.members
        self.story.note("killed", f"{len(killing.struck)} processes", at=killing.at)
        self._journal()  # before the switch is disarmed: at every moment one of the two says that this is a kill
        around.tell_supervisor({"type": "disarm", "incident": self.id})
        around.log("killed", self.id, processes=len(killing.struck), ms=(done - started) * 1000)
        if killing.denied:
            self._say("kill denied", pids(killing.denied), clock.monotonic())
        self._taking.tell("note")
        killing.wait()

    def hasten(self) -> None:
        """A process went while we wait for them to go."""
        if self._killing is not None:
            self._killing.hasten()

    def _killed(self, ended: Ended) -> None:
        around = self._around
        self.story.termination = ended.termination
        outcome = ended.termination.outcome
        if ended.gone_at is not None:
            self.story.note("gone", f"every process is gone ({outcome})", at=ended.gone_at)
            around.log("gone", self.id, outcome=str(outcome), ms=ended.termination.seconds * 1000)
            around.web.event("failfast", self._end_epoch, seconds=ended.gone_at - self._opened_at)
        else:
            self._say("reap timeout", ended.termination.detail, clock.monotonic())
            around.web.event(
                "reap_timeout", self._end_epoch, wall=clock.wall(), detail=ended.termination.detail[:_MOST_TOLD],
                **self._told(),
            )  # fmt: skip
        around.web.event(
            "terminated", self._end_epoch, outcome=str(outcome), wall=clock.wall(),
            killed=len(ended.termination.killed), seconds=ended.termination.seconds, **self._told(),
        )  # fmt: skip
        self._journal()
        removed, kept = around.leftovers.remove()
        if removed:
            self.story.note("shared memory removed", ", ".join(removed))
        if kept:
            self.story.note("shared memory left", kept)
        around.terminated(self)
        self._seal()

    def hurry(self, why: str) -> None:
        """No time is left for captures: do at once what they hold up."""
        if self.phase is not Phase.CAPTURING:
            return
        self.story.note("captures cut short", why)
        if self.decision.action is Action.KILL:
            self._freeze_and_kill()
        elif self.decision.action is Action.CAPTURE:
            self._let_go()
        else:
            self._seal()

    def _let_go(self) -> None:
        ran_on = self.decision.reason in RUNNING
        if ran_on and self._stopped_before is not None:
            # A py-spy that died with its recorder may have left its target stopped.
            left = self._around.herd.stopped(self.story.members) - self._stopped_before
            self._frozen = {i: member for i, member in self.story.members.items() if i in left}
        self._around.herd.let_go(self._frozen)
        self._frozen = {}
        self._around.leftovers.forget()
        what = "it had run on" if ran_on else "every frozen process runs on"
        self.story.note("let go", f"nothing is to be killed: {what}")
        self.phase = Phase.SEALING
        self._journal()
        self._around.tell_supervisor({"type": "disarm", "incident": self.id})
        self._around.log("let go", self.id)
        self._seal()

    # -- seal ---------------------------------------------------------------------------------------------------

    def finish_observing(self) -> None:
        """The engine is gone, or long enough has passed: what was observed is the record."""
        if self.phase is Phase.CAPTURING and self.decision.action is Action.OBSERVE:
            self._seal()

    def _seal(self) -> None:
        self.phase = Phase.SEALING
        self._around.sealing(self)
        self._journal()
        self._taking.tell("seal")
        now = clock.monotonic()
        self._taking.wait_for_one_to_seal()
        self._around.timers.at(now + _SEALING, self._sealing_took_too_long)

    def _sealing_took_too_long(self) -> None:
        if self.phase is Phase.SEALING:
            self._around.web.event("lost", what="seal")
            self._around.log("lost", self.id, what="seal", detail=f"the record was not sealed within {_SEALING:g} s")
            self.close()

    def close(self) -> None:
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self._taking.close()
        ended, sealed = self.story.termination, self.sealed_as or {}
        closed_epoch = f"{self.id}/closed"
        self._around.web.event(
            "closed", closed_epoch, wall=clock.wall(), sealed=self.sealed_as is not None,
            summary=str(sealed.get("summary", ""))[:_MOST_TOLD], saved=sealed.get("saved", 0),
            outcome=str(ended.outcome) if ended is not None else "", **self._told(),
        )  # fmt: skip
        self._around.web.close_epoch(closed_epoch)
        self._around.tell_supervisor({"type": "journal", "incident": None, "phase": "closed", "closed": self.id})
        self._around.web.close_epoch(self.id)
        self._around.web.close_epoch(self._end_epoch)
        self._around.closed(self)

    # -- telling ------------------------------------------------------------------------------------------------

    def _say(self, event: str, detail: str, at: float) -> None:
        self.story.note(event, detail, at)
        self._around.log(event, self.id, detail=detail)

    def _journal(self) -> None:
        self._around.tell_supervisor(
            {
                "type": "journal",
                "incident": plain(self.story.incident()),
                "phase": str(self.phase),
                "opened_at": self._opened_at,
            }
        )
