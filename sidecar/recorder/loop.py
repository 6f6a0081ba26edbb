"""The recorder's main thread: it answers the guard, whatever the volume does.

    standing by -> working -> sealing -> gone
                          \\-> leaving -> gone      the guard is lost: write what is known, unsealed

Captures begin the moment the guard asks and go to memory; `volume` brings them to the volume on a thread of its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from typing import Any

from sidecar.errors import PeerGone, ProtocolError
from sidecar.log import Log
from sidecar.messages import Channel, Message
from sidecar.model import Action, Reason, TimelineEntry, incident_from, plain, rank_process_from
from sidecar.recorder.capture.base import Scene
from sidecar.recorder.captures import Captures, Taken, targets_of
from sidecar.recorder.evidence import MEMORY_LIMIT
from sidecar.recorder.explaining import Explaining
from sidecar.recorder.last_word import TOLD, LastWord, line_of, told
from sidecar.recorder.motion import MOST_OF_ALL, Motion
from sidecar.recorder.reactor import Reactor
from sidecar.recorder.store import Store
from sidecar.recorder.volume import Volume
from sidecar.recorder.work import Work
from sidecar.system.memory import OwnMemory

_EARLIER_PATIENCE = 0.5  # how long a resumed incident's captures wait to learn what there is already
_QUIET = 1.0  # how long the captures have the interpreter to themselves, but for the opening record
_SEAL_PATIENCE = 5.0  # how long a volume that refuses is tried again at the end
_GUARD_LOST_CAPTURES = 0.5  # what is under way may still end
_GUARD_LOST = 2.0
_TOLD_FIRST = 0.05  # how long the volume waits for the termination logs to be written
_HARMLESS = (Reason.PRE_STOP, Reason.PEER_FAILED, Reason.MANUAL)  # nothing is killed for these


class Recorder:
    """Runs until its incident is sealed or its guard is gone; `run` gives the exit status."""

    def __init__(
        self, channel: Channel, store: Store, log: Log, scene: Scene, dump_dir: str, memory: OwnMemory
    ) -> None:
        """`scene` is what holds for every incident; `dump_dir` the folder that `store` writes to."""
        self._channel = channel
        self._log = log
        self._scene = scene
        self._dump_dir = os.path.abspath(dump_dir)
        self._memory = memory
        self._motion = Motion()
        self._reactor = Reactor()
        self._reactor.add(channel.fileno(), self._on_channel)
        self._outbox: deque[Message] = deque()
        self._guard_is_lost = False
        self._work: Work | None = None
        self._last_word: LastWord | None = None
        self._explaining: Explaining | None = None
        self._volume = Volume(store, self._reactor, log, self._tell)
        self._told_done = False

    def run(self) -> int:
        while self._volume.exit_status is None:
            if self._work is not None:
                self._step_last_word(self._work)
                self._step_captures(self._work)
                self._step_explaining(self._work)
            self._volume.step()
            self._flush()
            if self._volume.exit_status is None:
                self._reactor.wait(self._wake_at() - time.monotonic())
        self._flush()  # the last words
        if self._work is not None and self._work.captures is not None:
            self._work.captures.abandon()
        if self._explaining is not None:
            self._explaining.abandon()
        return self._volume.exit_status

    def _wake_at(self) -> float:
        due = self._volume.wake_at()
        if self._work is None:
            return due
        if self._last_word is not None:
            due = min(due, self._last_word.wake_at())
        if self._explaining is not None:
            due = min(due, self._explaining.wake_at())
        captures = self._work.captures
        return min(due, captures.wake_at() if captures else self._work.captures_at)

    # -- the guard ----------------------------------------------------------------------------------------------------

    def _on_channel(self) -> None:
        try:
            while self._volume.exit_status is None:
                received = self._channel.receive()
                if received is None:
                    return
                message, fds = received
                try:
                    self._on_message(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except PeerGone:
            self._guard_lost()
        except ProtocolError as error:
            self._log("unreadable message from the guard", error=str(error))

    def _on_message(self, message: Message, fds: list[int]) -> None:
        try:
            if message["type"] == "begin" and self._work is None:
                self._begin(message, fds)
            elif message["type"] == "note" and self._work is not None:
                self._work.incident = incident_from(message["incident"])
                self._work.dirty = True
            elif message["type"] == "seal" and self._work is not None:
                self._work.incident = incident_from(message["incident"])
                self._seal(self._work)
            else:
                self._log("a message from the guard has no place here", type=message["type"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._log("a message from the guard makes no sense", error=f"{type(error).__name__}: {error}")

    def _begin(self, message: Message, termination_logs: list[int]) -> None:
        now = time.monotonic()
        incident = incident_from(message["incident"])
        asked = float(message["seconds"]) > 0 and not self._volume.throttled(incident)
        self._work = Work(
            incident=incident,
            wanted=incident.decision.captures if asked else (),
            ranks=tuple(rank_process_from(rank) for rank in message["ranks"]),
            frozen=bool(message["frozen"]),
            deadline=now + float(message["seconds"]),
            quiet_until=now + _QUIET,
            captures_at=now + (_EARLIER_PATIENCE if message["resume"] else 0.0),
            twice=bool(message.get("twice")),
        )
        self._tell_the_kubelet(self._work, termination_logs)
        self._step_captures(self._work)
        self._volume.begin(self._work)

    def _tell_the_kubelet(self, work: Work, logs: list[int]) -> None:
        """Before all else, since the containers may be gone in a moment; and once for an incident."""
        incident = work.incident
        if not logs or any(entry.event == TOLD for entry in incident.timeline):
            return
        line = line_of(incident, self._dump_dir)
        try:
            self._last_word = LastWord(logs, line, incident.id, self._reactor)
        except (OSError, RuntimeError) as error:
            self._told(work, told([str(error)] * len(logs)))
            return
        logs.clear()  # they are its own now
        work.telling = True
        work.told_by = time.monotonic() + _TOLD_FIRST
        self._step_last_word(work)

    def _step_last_word(self, work: Work) -> None:
        entry = self._last_word.step() if self._last_word is not None else None
        if entry is not None:
            work.telling = False
            self._told(work, entry)

    def _told(self, work: Work, entry: TimelineEntry) -> None:
        """In the record in any case, and known to the guard, which has it from us for the next recorder."""
        work.own.append(entry)
        work.dirty = True
        self._log(entry.event, work.incident.id, detail=entry.detail)
        self._tell("told", entry=plain(entry))

    def _seal(self, work: Work) -> None:
        work.sealing = True
        work.give_up_at = time.monotonic() + _SEAL_PATIENCE
        self._hurry(work, 0.0)  # nobody waits for captures any more

    def _guard_lost(self) -> None:
        self._guard_is_lost = True
        self._reactor.remove(self._channel.fileno())
        self._outbox.clear()
        work = self._work
        if work is None:
            self._volume.exit_status = 0
            return
        now = time.monotonic()
        self._log("guard lost", work.incident.id)
        work.note("guard lost", "the recorder writes what it knows")
        work.leaving = work.explained = True
        work.give_up_at = now + _GUARD_LOST
        self._hurry(work, now + _GUARD_LOST_CAPTURES)

    def _hurry(self, work: Work, deadline: float) -> None:
        work.captures_at = 0.0
        work.deadline = min(work.deadline, deadline)
        if work.captures is not None:
            work.captures.cut_short(work.deadline)

    def _tell(self, kind: str, /, **content: Any) -> None:
        if not self._guard_is_lost:
            self._outbox.append({"type": kind, **content})

    def _flush(self) -> None:
        """Send what the socket takes; the rest when it takes more."""
        if self._guard_is_lost:
            return
        try:
            while self._outbox and self._channel.send(self._outbox[0]):
                self._outbox.popleft()
            self._reactor.want_write(self._channel.fileno(), bool(self._outbox))
        except PeerGone:
            self._guard_lost()

    # -- captures -----------------------------------------------------------------------------------------------------

    def _step_captures(self, work: Work) -> None:
        if work.captures is None:
            if time.monotonic() < work.captures_at and not work.opened:
                return
            scene = self._scene_of(work)
            have = work.evidence.have()
            work.captures = Captures(work.wanted, scene, work.deadline, self._reactor, have, work.twice, self._memory)
            work.evidence.bound(work.captures.allowance.kept(MEMORY_LIMIT))
            self._motion.bound(work.captures.allowance.kept(MOST_OF_ALL))
        if work.opened:
            work.captures.volume(os.path.join(self._dump_dir, work.incident.id), self._volume.room)
        for taken in work.captures.step():
            self._keep(work, taken)
        work.captures.reap()
        if work.captures.done and not self._told_done:
            self._told_done = True
            self._tell("captures_done")
            count = len(work.evidence.artifacts())
            work.note("captures done", f"{count} artifacts")
            self._log("captures done", work.incident.id, artifacts=count)
            self._flush()  # the guard may go on while we look at the stacks
            line = self._motion.line(work.incident.engine)
            if line:
                work.notes.append(line)
                work.dirty = True

    def _scene_of(self, work: Work) -> Scene:
        return replace(
            self._scene,
            frozen=work.frozen,
            lethal=work.incident.decision.action is Action.KILL and work.incident.reason not in _HARMLESS,
            targets=targets_of(work.ranks, work.incident.members),
        )

    def _step_explaining(self, work: Work) -> None:
        """When nothing is left to be done but to seal."""
        if self._explaining is None and work.sealing and work.captured and not (work.explained or work.telling):
            if not self._volume.holds_all(work):
                return
            folder = os.path.join(self._dump_dir, work.incident.id)
            scene = replace(self._scene_of(work), folder=folder)
            self._explaining = Explaining(work, scene, self._motion.apart, self._reactor, self._memory)
        if self._explaining is not None:
            self._explaining.step()

    def _keep(self, work: Work, taken: Taken) -> None:
        if work.twice:
            self._motion.keep(taken)
        for artifact in work.evidence.add(taken):
            self._tell(
                "captured", kind=artifact.kind, rank=artifact.rank, status=artifact.status.value,
                seconds=artifact.seconds,
            )  # fmt: skip
        work.dirty = True
