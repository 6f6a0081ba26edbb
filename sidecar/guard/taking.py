"""The recorder's part in one incident, as its case sees it: who takes the evidence, until when, and what it told.

The kill waits for nothing here but its own deadlines: for the opening record, for a recorder that takes the place of
one that died, for the captures.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sidecar.guard.links import RecorderLink
from sidecar.guard.surroundings import LIVENESS, Phase, Surroundings
from sidecar.guard.timers import Timer
from sidecar.model import Action, plain, timeline_entry_from
from sidecar.system import clock

if TYPE_CHECKING:
    from sidecar.guard.case import Case

_OPENING_RECORD = 0.1  # how long the kill waits for the opening record, in seconds; never longer
_RECORDER_COMES = 1.0  # how long the kill waits for a recorder to take the place of one that died
_RECORDER_SEALS = 10.0  # how long the record waits for one; nothing else does


class Taking:
    """`recorder` is the one at work, None before there is one. `opened_at`: from when the deadline counts."""

    def __init__(self, case: Case, around: Surroundings, opened_at: float) -> None:
        self.recorder: RecorderLink | None = None
        self.opened_at = opened_at
        self.resumed = False
        self._case = case
        self._around = around
        self._done = False
        self._record_opened = False
        self._deadline_timer: Timer | None = None
        self._seal_timer: Timer | None = None
        self._deadline_at: float | None = None
        self._logs: tuple[int, ...] = ()

    def hold_logs(self) -> None:
        """Before a kill, take hold of the termination logs of what it is for: they are to be had even if the engine is
        gone by the time that a recorder comes.
        """
        case = self._case
        if case.decision.action is Action.KILL and not self._logs:
            self._logs = self._around.termination_logs.lend(set(case.story.members) | case.story.failed())

    def close(self) -> None:
        """Nothing more will be written."""
        for fd in self._logs:
            os.close(fd)
        self._logs = ()

    def begin(self) -> None:
        """Have everything taken that is wanted, until the decision's deadline."""
        now = clock.monotonic()
        deadline = self._case.decision.deadline
        left = max(0.0, self.opened_at + deadline - now)
        self.deadline_in(left)
        self.start_recorder(left)
        if self.recorder is None:
            self._around.timers.at(now + min(_RECORDER_COMES, deadline), self._none_to_capture)
        self._around.timers.at(now + _OPENING_RECORD, self._opening_record_waited_for)

    def only_record(self) -> None:
        """Nothing is taken: only what is known is written."""
        self.start_recorder(0.0)
        self._done = self._record_opened = True

    def deadline_in(self, seconds: float) -> None:
        """The captures end by then, or when they were to end before, whichever is sooner."""
        at = clock.monotonic() + seconds
        if self._deadline_at is None or at < self._deadline_at:
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline_at = at
            self._deadline_timer = self._around.timers.at(at, self._deadline)

    def start_recorder(self, seconds: float) -> None:
        """Give the incident to the recorder that stands by, if one does. `seconds` for captures, 0 for none."""
        if self.recorder is not None and self.recorder.alive:
            return
        recorder = self._around.take_recorder()
        if recorder is None:
            return
        self.recorder = recorder
        recorder.begun = True
        case = self._case
        recorder.send(
            {
                "type": "begin", "incident": plain(case.story.incident()),
                "ranks": [plain(rank) for rank in self._around.ranks()], "frozen": case.frozen,
                "resume": self.resumed, "seconds": seconds, "twice": case.decision.reason in LIVENESS,
            },
            self._logs,
        )  # fmt: skip
        self.resumed = True  # whoever comes next takes up what this one has begun

    def tell(self, kind: str) -> None:
        """A `note`, or the `seal`, with all that is known."""
        if self.recorder is not None:
            self.recorder.send({"type": kind, "incident": plain(self._case.story.incident())})

    def recorder_came(self) -> None:
        """A recorder stands by. If this case has none, it is ours."""
        phase = self._case.phase
        if phase is Phase.CLOSED or (self.recorder is not None and self.recorder.alive):
            return
        left = 0.0
        if phase is Phase.CAPTURING and not self._done:
            left = max(0.0, self.opened_at + self._case.decision.deadline - clock.monotonic())
        self.start_recorder(left)
        if phase is Phase.SEALING:
            self.tell("seal")

    def recorder_lost(self) -> None:
        """Our recorder died. The next one resumes; the kill does not wait for it longer than for the first."""
        self._case.story.note("recorder lost", "")
        self._around.log("recorder lost", self._case.id)
        if self._case.phase is Phase.SEALING:
            self._await_one_to_seal()
        elif self._case.phase is Phase.CAPTURING and not self._done:
            self._around.timers.at(clock.monotonic() + _RECORDER_COMES, self._none_to_capture)

    def wait_for_one_to_seal(self) -> None:
        """Without a recorder there is no record; one may still come."""
        if self.recorder is None or not self.recorder.alive:
            self._await_one_to_seal()

    def heard(self, message: dict[str, object]) -> None:
        """What our recorder said."""
        around, case, kind = self._around, self._case, message["type"]
        if kind == "opened":
            self._record_opened = True
            case.story.note("opened", "the opening record is on the volume")
            self._go_on_if_done()
        elif kind == "captured":
            case.story.note("captured", f"{message.get('kind')} {message.get('rank')}: {message.get('status')}")
            around.web.event(
                "captured", kind=message.get("kind"), status=message.get("status"), seconds=message.get("seconds")
            )
            around.log(
                "captured", case.id, kind=message.get("kind"), rank=message.get("rank"), status=message.get("status"),
                seconds=message.get("seconds"),
            )  # fmt: skip
        elif kind == "captures_done":
            self._done = True
            self._go_on_if_done()
        elif kind == "told":
            case.story.keep(timeline_entry_from(message["entry"]))
        elif kind == "lost":
            around.web.event("lost", what=message.get("what"))
            around.log("lost", case.id, what=message.get("what"), detail=message.get("detail"))
        elif kind == "sealed":
            around.web.event("store", dump_bytes=message.get("dump_bytes"), free_bytes=message.get("free_bytes"))
            around.log("sealed", case.id)
            case.sealed_as = message
            case.close()

    def _await_one_to_seal(self) -> None:
        """From now on; a wait that began with an earlier loss is over."""
        if self._seal_timer is not None:
            self._seal_timer.cancel()
        self._seal_timer = self._around.timers.at(clock.monotonic() + _RECORDER_SEALS, self._none_to_seal)

    def _none_to_capture(self) -> None:
        alive = self.recorder is not None and self.recorder.alive
        if not alive and self._case.phase is Phase.CAPTURING and not self._done:
            self._case.story.note("not captured", "there was no recorder")
            self._give_up()

    def _none_to_seal(self) -> None:
        alive = self.recorder is not None and self.recorder.alive
        if not alive and self._case.phase is Phase.SEALING:
            self._around.web.event("lost", what="record")
            self._around.log("lost", self._case.id, what="record", detail="there was no recorder")
            self._case.close()

    def _opening_record_waited_for(self) -> None:
        self._record_opened = True
        self._go_on_if_done()

    def _deadline(self) -> None:
        if self._case.phase is Phase.CAPTURING and not self._done:
            took = clock.monotonic() - self.opened_at
            self._case.story.note("deadline", f"the captures did not end within {took:.3g} s")
            self._around.log("deadline", self._case.id, seconds=took)
            self._give_up()

    def _give_up(self) -> None:
        self._done = self._record_opened = True
        self._go_on_if_done()

    def _go_on_if_done(self) -> None:
        if self._done and self._record_opened:
            self._case.captures_over()
