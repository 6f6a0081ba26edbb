"""How it ends: in wrap mode with the command and all that it started, in attach mode when we are told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.model import Action, ExitStatus, Failure, Identity, Plan
from sidecar.policy.deaths import wrap_exit_status
from sidecar.policy.machine import Event
from sidecar.system import clock

if TYPE_CHECKING:
    from sidecar.guard.loop import Guard

_LOOK_AGAIN = 0.25  # seconds


class Ending:
    """`root` is the wrapped command's process, None in attach mode; `root_status` is set once it was reaped."""

    def __init__(self, guard: Guard) -> None:
        self.root: Identity | None = None
        self.root_status: ExitStatus | None = None
        self.finished = False
        self.ended_by_us = False
        self._guard = guard
        self.drained = False
        self._stopping = False
        self._first_failure: ExitStatus | None = None
        self._deadline: float | None = None

    def failed(self, failures: list[Failure]) -> None:
        """An incident begins. The first failure of all gives wrap mode's exit status."""
        if self._first_failure is None:
            self._first_failure = failures[0].status if failures else ExitStatus(code=1)

    def drain(self) -> None:
        """A stop was asked for: in wrap mode of the engine, in attach mode of us."""
        if self.root is None:
            self.stop()
            return
        if not self.drained:
            self.drained = True
            self._guard.event(Event.DRAIN)
        self.check()

    def stop(self) -> None:
        """End as soon as no incident is open."""
        self._stopping = True
        self.check()

    def exit_after_kill(self, incident: str) -> None:
        """End our own container, so that the pod's rules restart all of them. Never while anything is left to do, and
        only where the settings say so: the word of another process is no reason by itself.
        """
        guard = self._guard
        settings = guard.settings
        busy = guard.case is not None or bool(guard.sealing)
        if settings.after_kill != "exit" or self.root is not None or self._stopping or busy:
            because = "an incident is open" if busy else "it is not for us to end"
            guard.log("not ended after the kill", incident, because=because)
            return
        guard.log("ending after the kill", incident, status=settings.after_kill_exit_code)
        self._finish(settings.after_kill_exit_code)

    def check(self) -> None:
        """See whether it is over. Cheap where it is not."""
        guard = self._guard
        if self.finished or guard.case is not None or guard.sealing:
            return
        if self._stopping:
            self._finish(0)
        elif self.root is not None and self.root_status is not None and self._nothing_left(self.root):
            self._finish(wrap_exit_status(self.root_status, self.drained, self._first_failure, self.ended_by_us))

    def _finish(self, status: int) -> None:
        self.finished = True
        self._guard.tell_supervisor({"type": "finished", "exit_status": status})

    def _nothing_left(self, root: Identity) -> bool:
        """Whether the command has left nothing behind; after the grace, what it left is ended, as a container's
        runtime would.
        """
        guard = self._guard
        now = clock.monotonic()
        left = guard.herd.plan(Action.KILL, {root}, now).members
        if not left:
            return True
        if self._deadline is None:
            self._deadline = now + guard.settings.exit_grace
        if now >= self._deadline:
            guard.log("ending what the command left behind", processes=len(left))
            guard.herd.kill(Plan(Action.KILL, left), set(), now)
            return True
        guard.timers.at(now + _LOOK_AGAIN, self.check)
        return False
