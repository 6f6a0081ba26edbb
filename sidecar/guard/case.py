"""One incident, from the decision to the sealed record: freeze, capture, kill, wait, seal.

Each step is entered by an event or by a deadline, whichever comes first, and none of them waits for the volume, the
recorder or the web. The supervisor holds the dead man's switch from before the first SIGSTOP until the kill is done.

    opened -> capturing (frozen) -> reaping (killed) -> sealing -> closed
                         \\-> let go, where nothing is to be killed -/

Over 400 lines, since the steps hand over to each other and want to be read in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sidecar.guard.herd import Herd
from sidecar.guard.killing import Ended, Killing
from sidecar.guard.links import RecorderLink, WebLink
from sidecar.guard.shm import Leftovers
from sidecar.guard.story import Story, pids
from sidecar.guard.timers import Timer, Timers
from sidecar.log import Log
from sidecar.model import (
    Action,
    Decision,
    Failure,
    Identity,
    Incident,
    Member,
    Plan,
    PodInfo,
    RankProcess,
    plain,
)
from sidecar.system import clock

_OPENING_RECORD = 0.1  # how long the kill waits for the opening record, in seconds; never longer
_RECORDER_COMES = 1.0  # how long the kill waits for a recorder to take the place of one that died
_RECORDER_SEALS = 10.0  # how long the record waits for one; nothing else does
_SEALING = 15.0
_PASS_ON = 0.1  # how long news of further failures is gathered
_SWITCH_MARGIN = 1.0  # after the captures' deadline, the supervisor takes it that the guard hangs


class Phase(StrEnum):
    OPENED = "opened"
    CAPTURING = "capturing"
    REAPING = "reaping"
    SEALING = "sealing"
    CLOSED = "closed"


@dataclass(slots=True)
class Surroundings:
    """What a case works with. `tell_supervisor` sends a message and returns whether it was taken."""

    herd: Herd
    timers: Timers
    web: WebLink
    log: Log
    leftovers: Leftovers
    tell_supervisor: Callable[[dict[str, object]], bool]
    take_recorder: Callable[[], RecorderLink | None]
    ranks: Callable[[], list[RankProcess]]
    terminated: Callable[[Case], None]
    sealing: Callable[[Case], None]
    closed: Callable[[Case], None]
    reap_timeout: float


class Case:
    """The life of one incident."""

    def __init__(self, around: Surroundings, incident_id: str, engine: str, pod: PodInfo, decision: Decision,
                 boot_id: str, opened_at: float, state: str = "") -> None:  # fmt: skip
        self.id = incident_id
        self.decision = decision
        self.earlier_run = False
        self.phase = Phase.OPENED
        self._around = around
        notes = (f"state: {state}",) if state else ()
        self.story = Story(Incident(incident_id, decision.reason, engine, pod, decision, boot_id=boot_id, notes=notes))
        self._opened_at = opened_at
        # Events that a new guard may have to repeat are numbered apart, so that the same one has the same number.
        self._end_epoch = f"{incident_id}/end"
        self._recorder: RecorderLink | None = None
        self._killing: Killing | None = None
        self._pass_on_scheduled = False
        self._frozen: dict[Identity, Member] = {}
        self._frozen_plan: Plan | None = None
        self._captures_done = False
        self._record_opened = False
        self._deadline_timer: Timer | None = None
        self._resumed = False
        self._switch_fired = False
        self._kill_had_begun = (
            False  # by an earlier guard, or by the switch: these deaths are ours, whenever they are seen
        )

    @property
    def recorder(self) -> RecorderLink | None:
        return self._recorder

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
        # First the journal, then the counting: whoever takes this up counts it again, and the same number counts once.
        self._journal()
        self._count_all()
        if self.decision.action is Action.OBSERVE:
            self._observe()
            return
        wants_captures = bool(self.decision.captures) and self.decision.deadline > 0 and bool(plan.members)
        if wants_captures or self.decision.action is Action.CAPTURE:
            self._freeze(plan)
            self._begin_captures()
        else:
            self._freeze(plan)  # also here: what forks without end would leave somebody between two looks
            self._kill()
            self.recorder_came()  # only now: it would compete for the processor

    def resume(self, incident: Incident, phase: str, switch_fired: bool, earlier_run: bool) -> None:
        """Take up what an earlier guard has left. What the dead man's switch has not done is done now.

        `earlier_run`: it was left by an earlier run of Rankguard. The engine that runs now may be the next one, so
        nothing but what the incident names, and what belongs to that, is signalled.
        """
        self._resumed = True
        self._switch_fired = switch_fired
        was_killed = phase in (Phase.REAPING, Phase.SEALING) and self.decision.action is Action.KILL
        self._kill_had_begun = switch_fired or was_killed
        self.earlier_run = earlier_run
        self.story = Story(incident)
        fired = "; the dead man's switch had fired" if switch_fired else ""
        self.story.note("guard restarted", f"in phase {phase}{fired}")
        self._around.log("incident taken up again", self.id, phase=phase, switch_fired=switch_fired)
        self._count_all()
        if self.story.termination is not None or self.decision.action is Action.OBSERVE:
            self._start_recorder(0.0)
            self._seal()
        elif phase == Phase.OPENED and not switch_fired and self.decision.captures:
            # Nothing was stopped yet: there is still a whole story to capture.
            self._opened_at = clock.monotonic()
            self._freeze(self._around.herd.plan(self.decision.action, set(self.story.members), self._opened_at))
            self._begin_captures()
        elif self.decision.action is Action.KILL:
            self._start_recorder(0.0)
            self._kill()
        else:
            self._frozen = dict(self.story.members)
            self._start_recorder(0.0)
            self._let_go()

    def _count_all(self) -> None:
        """Say what there is to count. A guard that takes the incident up says it again, with the same numbers."""
        for failure in self.story.failures[:1]:
            self._count(failure)
        self._around.web.event("incident", self.id, reason=str(self.decision.reason), wall=clock.wall())
        for failure in self.story.failures[1:]:
            self._count(failure)

    def add_failure(self, failure: Failure) -> None:
        """A further process failed; the first by time is the root cause."""
        self.story.add_failure(failure)
        self._count(failure)
        if self.phase is not Phase.OPENED and not self._pass_on_scheduled:
            # Hundreds may follow within a moment: they are passed on together.
            self._pass_on_scheduled = True
            self._around.timers.at(clock.monotonic() + _PASS_ON, self._pass_on)

    def _pass_on(self) -> None:
        self._pass_on_scheduled = False
        if self.phase not in (Phase.SEALING, Phase.CLOSED):
            self._tell_recorder("note")
            self._journal()

    def _count(self, failure: Failure) -> None:
        self._around.web.event(
            "rank_death", self.id, role=str(failure.role), rank=failure.rank, cause=str(failure.cause), at=failure.at
        )

    # -- freeze and capture -------------------------------------------------------------------------------------

    def _freeze(self, plan: Plan) -> None:
        started = clock.monotonic()
        switch_at = started + self.decision.deadline + _SWITCH_MARGIN

        def arm(current: Plan) -> bool:
            return self._around.tell_supervisor(
                {"type": "arm", "incident": self.id, "plan": plain(current), "deadline": switch_at}
            )

        sweep = self._around.herd.stop(plan, arm, started)
        self._frozen = dict(sweep.members)
        self._frozen_plan = Plan(plan.action, tuple(sweep.members.values()), sweep.groups)
        self.story.members |= sweep.members
        took = clock.monotonic() - started
        self.story.note("frozen", f"{len(sweep.members)} processes in {sweep.passes} passes")
        self.phase = Phase.CAPTURING
        self._journal()
        self._around.log("frozen", self.id, processes=len(sweep.members), ms=took * 1000)
        if sweep.denied:
            self.story.note("freeze denied", pids(sweep.denied))

    def _begin_captures(self) -> None:
        now = clock.monotonic()
        self._deadline_timer = self._around.timers.at(self._opened_at + self.decision.deadline, self._deadline)
        self._start_recorder(max(0.0, self._opened_at + self.decision.deadline - now))
        if self._recorder is None:
            self._around.timers.at(now + min(_RECORDER_COMES, self.decision.deadline), self._no_recorder_came)
        self._around.timers.at(now + _OPENING_RECORD, self._opening_record_waited_for)
        self._around.leftovers.snapshot(list(self.story.members), budget=0.2)

    def _observe(self) -> None:
        self.phase = Phase.CAPTURING
        self._start_recorder(0.0)
        self._captures_done = self._record_opened = True

    def _start_recorder(self, seconds: float) -> None:
        if self._recorder is not None and self._recorder.alive:
            return
        recorder = self._around.take_recorder()
        if recorder is None:
            return
        self._recorder = recorder
        recorder.begun = True
        ranks = [plain(rank) for rank in self._around.ranks()]
        recorder.send(
            {
                "type": "begin", "incident": plain(self.story.incident()), "ranks": ranks,
                "frozen": bool(self._frozen), "resume": self._resumed, "seconds": seconds,
            }
        )  # fmt: skip
        self._resumed = True  # whoever comes next takes up what this one has begun

    def recorder_came(self) -> None:
        """A recorder stands by. If this case has none, it is ours."""
        if self.phase is Phase.CLOSED or (self._recorder is not None and self._recorder.alive):
            return
        left = 0.0
        if self.phase is Phase.CAPTURING and not self._captures_done:
            left = max(0.0, self._opened_at + self.decision.deadline - clock.monotonic())
        self._start_recorder(left)
        if self.phase is Phase.SEALING:
            self._tell_recorder("seal")

    def recorder_lost(self) -> None:
        """Our recorder died. The next one resumes; the kill does not wait for it longer than for the first."""
        self.story.note("recorder lost", "")
        self._around.log("recorder lost", self.id)
        now = clock.monotonic()
        if self.phase is Phase.SEALING:
            self._around.timers.at(now + _RECORDER_SEALS, self._no_recorder_came)
        elif self.phase is Phase.CAPTURING and not self._captures_done:
            self._around.timers.at(now + _RECORDER_COMES, self._no_recorder_came)

    def on_recorder(self, message: dict[str, object]) -> None:
        """What our recorder said."""
        kind = message["type"]
        if kind == "opened":
            self._record_opened = True
            self.story.note("opened", "the opening record is on the volume")
            self._go_on_if_done()
        elif kind == "captured":
            self.story.note("captured", f"{message.get('kind')} {message.get('rank')}: {message.get('status')}")
            self._around.web.event(
                "captured", kind=message.get("kind"), status=message.get("status"), seconds=message.get("seconds")
            )
            self._around.log(
                "captured", self.id, kind=message.get("kind"), rank=message.get("rank"), status=message.get("status"),
                seconds=message.get("seconds"),
            )  # fmt: skip
        elif kind == "captures_done":
            self._captures_done = True
            self._go_on_if_done()
        elif kind == "lost":
            self._around.web.event("lost", what=message.get("what"))
            self._around.log("lost", self.id, what=message.get("what"), detail=message.get("detail"))
        elif kind == "sealed":
            self._around.web.event("store", dump_bytes=message.get("dump_bytes"), free_bytes=message.get("free_bytes"))
            self._around.log("sealed", self.id)
            self._close()

    def _no_recorder_came(self) -> None:
        if self._recorder is not None and self._recorder.alive:
            return
        if self.phase is Phase.CAPTURING and not self._captures_done:
            self.story.note("not captured", "there was no recorder")
            self._captures_done = self._record_opened = True
            self._go_on_if_done()
        elif self.phase is Phase.SEALING:
            self._around.web.event("lost", what="record")
            self._around.log("lost", self.id, what="record", detail="there was no recorder")
            self._close()

    def _opening_record_waited_for(self) -> None:
        self._record_opened = True
        self._go_on_if_done()

    def _deadline(self) -> None:
        if self.phase is Phase.CAPTURING and not self._captures_done:
            self.story.note("deadline", f"the captures did not end within {self.decision.deadline:g} s")
            self._around.log("deadline", self.id, seconds=self.decision.deadline)
            self._captures_done = self._record_opened = True
            self._go_on_if_done()

    def _go_on_if_done(self) -> None:
        if self.phase is not Phase.CAPTURING or not (self._captures_done and self._record_opened):
            return
        if self.decision.action is Action.KILL:
            self._kill()
        elif self.decision.action is Action.CAPTURE:
            self._let_go()

    # -- kill, wait ---------------------------------------------------------------------------------------------

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
        self.story.note("killed", f"{len(killing.members)} processes", at=killing.at)
        self._journal()  # before the switch is disarmed: at every moment one of the two says that this is a kill
        around.tell_supervisor({"type": "disarm", "incident": self.id})
        around.log("killed", self.id, processes=len(killing.members), ms=(done - started) * 1000)
        self._tell_recorder("note")
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
            around.web.event("reap_timeout", self._end_epoch)
        around.web.event("terminated", self._end_epoch, outcome=str(outcome))
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
            self._kill()
        elif self.decision.action is Action.CAPTURE:
            self._let_go()
        else:
            self._seal()

    def _let_go(self) -> None:
        self._around.herd.let_go(self._frozen)
        self._frozen = {}
        self._around.leftovers.forget()
        self.story.note("let go", "nothing is to be killed: every frozen process runs on")
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
        self._tell_recorder("seal")
        now = clock.monotonic()
        if self._recorder is None or not self._recorder.alive:
            self._around.timers.at(now + _RECORDER_SEALS, self._no_recorder_came)
        self._around.timers.at(now + _SEALING, self._sealing_took_too_long)

    def _sealing_took_too_long(self) -> None:
        if self.phase is Phase.SEALING:
            self._around.web.event("lost", what="seal")
            self._around.log("lost", self.id, what="seal", detail=f"the record was not sealed within {_SEALING:g} s")
            self._close()

    def _close(self) -> None:
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
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

    def _tell_recorder(self, kind: str) -> None:
        if self._recorder is not None:
            self._recorder.send({"type": kind, "incident": plain(self.story.incident())})
