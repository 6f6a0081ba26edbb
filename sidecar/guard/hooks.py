"""The kubelet's preStop hook: evidence, then the answer. Never a kill by itself.

It is called when the pod is deleted, and when the kubelet's own liveness probe has given the engine up; it does not
say which (the web finds out as far as it can). Either way the engine is about to be stopped, so what exits from then
on is a drain. A deletion is answered at once, but in a group of pods while requests run: a failure on one node deletes
its peers, and they hold the other half of the story.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.guard.case import Case
from sidecar.messages import Message
from sidecar.model import Incident, Reason, State
from sidecar.policy.machine import Event
from sidecar.system import clock

if TYPE_CHECKING:
    from sidecar.guard.loop import Guard

_PEER_CAPTURES = ("process", "pyspy", "metrics")
_PEER_DEADLINE = 3.0  # seconds; every pod of the group takes that much longer to go
# Seconds after which an engine that was to be stopped, and runs, is watched again: where the API server has said that
# its pod goes, it may have long requests to finish; where nobody has, anybody may have called the hook.
_STOP_COMES = 600.0
_STOP_MAY_COME = 120.0


class Hooks:
    """Answers hooks for one guard. A call is known by the number that the web gave it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._waiting: list[tuple[int, str]] = []  # (call, the incident that it waits for)
        self._captured = ""  # the incident that this generation's hook has made
        self._generation = 0
        self._drained_uncertain = False
        self.drains_until: float | None = None  # monotonic; what exits until then was announced

    def take_up(self, drains_until: float | None) -> None:
        """An earlier guard was told of a stop: it may still come."""
        if drains_until is not None and drains_until > clock.monotonic():
            self._drain(drains_until)

    def called(self, message: Message) -> None:
        """Raises `KeyError` where the message lacks something."""
        hook, deletion, failing = int(message["hook"]), bool(message["deletion"]), bool(message["failing"])
        guard = self._guard
        guard.log("preStop", deletion=deletion, failing=failing, running=bool(message["running"]))
        if guard.verdicts.alive() == 0:
            guard.web.hook_done(hook, "there is no engine")
            return
        certain = bool(message.get("certain"))
        if not (deletion and certain) and self._too_late(message.get("called_at")):
            guard.web.hook_done(hook, "the engine that it was called for is gone")
            return
        case = guard.case or next(iter(guard.sealing), None)
        # What nobody confirms is believed once: else whoever calls it again and again keeps the watch blind.
        drains = guard.state in (State.STARTING, State.SERVING) and (certain or not self._drained_uncertain)
        if deletion and (case is not None or not (message["group"] and message["running"]) or self._captured):
            guard.web.hook_done(hook, "the pod is being deleted: nothing to capture")
        elif case is not None:
            self._waiting.append((hook, case.id))
        elif self._captured:
            guard.web.hook_done(hook, f"captured before: {self._captured}")
        else:
            self._capture(hook, deletion, failing, str(message["group"]))
        if drains:
            self._drained_uncertain = not certain
            self._drain(clock.monotonic() + (_STOP_COMES if certain else _STOP_MAY_COME))

    def pod_goes(self) -> None:
        """The API server says that the pod is being deleted, and no hook has said so: what exits from now on was told
        to. An incident that is open already is no part of that, but its record says it.
        """
        guard = self._guard
        if guard.case is not None:
            guard.case.pod_goes()
        elif guard.state in (State.STARTING, State.SERVING) and guard.verdicts.alive():
            guard.log("the pod is being deleted")
            self._drain(clock.monotonic() + _STOP_COMES)

    def closed(self, case: Case) -> None:
        """A case is closed: whoever waited for it is answered."""
        for hook, _ in [waiting for waiting in self._waiting if waiting[1] == case.id]:
            self._guard.web.hook_done(hook, f"captured: {case.id}")
        self._waiting = [waiting for waiting in self._waiting if waiting[1] != case.id]

    def new_generation(self) -> None:
        """The engine is gone. Its hook's work is done; the next one's is another."""
        self._captured = ""
        self._drained_uncertain = False
        self.drains_until = None
        self._generation += 1

    def resume(self, incident: Incident) -> None:
        """An earlier guard's hook has made this incident: a call makes no second one, and what exits is a drain."""
        self._captured = incident.id
        if self.drains_until is None:
            self._drain(clock.monotonic() + _STOP_MAY_COME)

    def _too_late(self, called_at: object) -> bool:
        """Whether the web, which stood still, has found this call only after its engine was stopped: every process that
        is there now began since. The kubelet has long gone on, and this engine is not to be taken for one that stops.
        """
        ranks = self._guard.verdicts.living()
        return isinstance(called_at, float) and all(clock.began(identity.start) > called_at for identity in ranks)

    def _capture(self, hook: int, deletion: bool, failing: bool, group: str) -> None:
        guard = self._guard
        if deletion:
            because = f"a pod of group {group} was deleted while requests ran"
            case = guard.verdicts.pre_stop(Reason.PEER_FAILED, because, _PEER_CAPTURES, _PEER_DEADLINE, group)
        else:
            because = "the kubelet stops the engine" + (", whose health check failed" if failing else "")
            settings = guard.settings
            case = guard.verdicts.pre_stop(
                Reason.PRE_STOP, because, settings.captures, settings.liveness_deadline, group
            )
        self._captured = case.id
        self._waiting.append((hook, case.id))

    def _drain(self, until: float) -> None:
        guard, generation = self._guard, self._generation
        self.drains_until = until
        guard.remember()
        guard.event(Event.DRAIN)

        def look_again() -> None:
            if generation == self._generation and guard.state is State.DRAINING and not guard.ending.drained:
                guard.log("the stop that was announced did not come")
                self.drains_until = None
                guard.remember()
                guard.event(Event.DRAIN_OVER)

        guard.timers.at(until, look_again)
