"""What the other processes say to the guard, and what the guard makes of it."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from sidecar.checking import well_formed
from sidecar.errors import PeerGone, ProtocolError
from sidecar.guard.case import Case
from sidecar.guard.links import RecorderLink, messages
from sidecar.guard.surroundings import Phase
from sidecar.messages import Channel, Message
from sidecar.model import Identity, incident_from, verdict_from
from sidecar.system import clock
from sidecar.system.proc import status_from_wait

if TYPE_CHECKING:
    from sidecar.guard.loop import Guard

_MOST_CONTAINERS = 256
_TAKE_UP_AGAIN = (
    20.0,
    600.0,
)  # seconds between two tries to finish a record that a bad volume left open: first, at most


class Peers:
    """The supervisor, the recorders and the web, as one guard hears them."""

    def __init__(self, guard: Guard) -> None:
        self.standby: RecorderLink | None = None
        self._guard = guard
        self._recorders: dict[int, RecorderLink] = {}
        self._taken_up: dict[
            str, tuple[float, float]
        ] = {}  # how long to wait after the next time, and when that may be

    def hear(self, fd: int) -> None:
        """Take what waits on one descriptor."""
        web = self._guard.web.channel
        if fd == self._guard.control.fileno():
            self._hear_supervisor()
        elif fd in self._recorders:
            self._hear_recorder(self._recorders[fd])
        elif web is not None and fd == web.fileno():
            self._hear_web(web)

    def take_recorder(self) -> RecorderLink | None:
        """The recorder that stands by, if one does."""
        link, self.standby = self.standby, None
        return link

    # -- the supervisor -----------------------------------------------------------------------------------------

    def _hear_supervisor(self) -> None:
        try:
            for message, fds in messages(self._guard.control):
                self._from_supervisor(message, fds)
        except ProtocolError as error:
            self._guard.log("a message of the supervisor cannot be read", error=str(error))
        except PeerGone:
            self._supervisor_lost()

    def _from_supervisor(self, message: Message, fds: list[int]) -> None:
        guard = self._guard
        kind = message["type"]
        if kind == "recorder":
            self._recorders[fds[0]] = RecorderLink(Channel.from_fd(fds[0]))
            guard.epoll.register(fds[0], select.EPOLLIN)
        elif kind == "web":
            self._drop_web()
            channel = Channel.from_fd(fds[0])
            guard.epoll.register(fds[0], select.EPOLLIN)
            guard.web.connect(channel)
        elif kind == "reaped":
            identity = Identity(**message["identity"])
            if identity == guard.ending.root:
                guard.ending.root_status = status_from_wait(message["wait_status"])
            guard.verdicts.take(guard.exits.was_reaped(identity, message["wait_status"], clock.monotonic()))
            guard.ending.check()
        elif kind == "drain":
            guard.log("draining", signal=message.get("signal"))
            guard.ending.drain()
        elif kind == "restarted":
            guard.web.event("process_restart", process=message["process"])

    def _supervisor_lost(self) -> None:
        """The container's root process is gone, and we have moments. What is frozen must not stay so."""
        guard = self._guard
        guard.log("supervisor lost")
        guard.epoll.unregister(guard.control.fileno())
        if guard.case is not None:
            guard.case.hurry("the supervisor is gone")
        guard.ending.stop()

    # -- recorders ----------------------------------------------------------------------------------------------

    def _hear_recorder(self, link: RecorderLink) -> None:
        try:
            for message, fds in messages(link.channel):
                _close(fds)
                if message["type"] == "standing_by":
                    self._stands_by(link, message)
                elif (case := self._case_of(link)) is not None:
                    case.on_recorder(message)
        except (PeerGone, ProtocolError):
            fd = link.channel.fileno()
            self._guard.epoll.unregister(fd)
            del self._recorders[fd]
            link.channel.close()
            link.alive = False
            if self.standby is link:
                self.standby = None
            case = self._case_of(link)
            if case is not None and case.phase is not Phase.CLOSED:
                case.recorder_lost()

    def _case_of(self, link: RecorderLink) -> Case | None:
        """The case that a recorder works on. Asked for each message: it may have been given one by the last."""
        return next((case for case in self._guard.open_cases() if case.recorder is link), None)

    def _stands_by(self, link: RecorderLink, message: Message) -> None:
        guard = self._guard
        if message.get("dump_bytes", -1) >= 0:
            guard.web.event("store", dump_bytes=message["dump_bytes"], free_bytes=message.get("free_bytes", -1))
        if not link.begun and self.standby is None:
            self.standby = link
            guard.log("recorder stands by")
            for case in self._guard.open_cases():
                case.recorder_came()
        for data in message.get("unfinished", []):
            self._take_up(data)

    def _take_up(self, data: dict[str, object]) -> None:
        """An earlier life of this sidecar left an incident open on the volume: finish what it had decided."""
        guard = self._guard
        try:
            incident = incident_from(data)
            if not well_formed(incident):
                raise ValueError("something in it is not of its type")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            guard.log("an unfinished incident cannot be read", error=repr(error))
            return
        # From another boot no identity means anything; with a case open, the next recorder says it again.
        if incident.boot_id != guard.boot_id or guard.open_cases():
            return
        now = clock.monotonic()
        pause, due = self._taken_up.get(incident.id, (_TAKE_UP_AGAIN[0], 0.0))
        if now < due:  # it could not be sealed, and so soon it can hardly be
            guard.timers.at(due, lambda: self._take_up(data))
            return
        self._taken_up[incident.id] = min(2 * pause, _TAKE_UP_AGAIN[1]), now + pause
        guard.resume(incident, "left open by an earlier run", now, earlier_run=True)

    # -- the web ------------------------------------------------------------------------------------------------

    def _hear_web(self, channel: Channel) -> None:
        try:
            for message, fds in messages(channel):
                _close(fds)
                if message["type"] == "ack":
                    self._guard.web.acknowledged(str(message.get("epoch")), int(message.get("seq", 0)))
                    self._guard.web.flush()
                elif message["type"] == "manual":
                    self._guard.verdicts.manual()
                elif message["type"] == "up" and not self._guard.up:
                    self._take_up_word(message)
                elif message["type"] == "liveness":
                    about = [Identity(**identity) for identity in message["ranks"]]
                    self._guard.verdicts.liveness(verdict_from(message["verdict"]), about)
                elif message["type"] == "hook":
                    self._guard.hooks.called(message)
                elif message["type"] in ("fleet", "containers", "deleting", "after_kill"):
                    self._take_from_cluster(message)
        except (PeerGone, ProtocolError):
            self._drop_web()
        except (KeyError, TypeError, ValueError) as error:
            self._guard.log("a message of the web makes no sense", error=repr(error))

    def _take_from_cluster(self, message: Message) -> None:
        """What the web has learnt of Kubernetes. Raises `KeyError` or `TypeError` where it makes no sense."""
        guard = self._guard
        if message["type"] == "fleet":
            if not isinstance(message["observe"], bool):
                raise TypeError("neither on nor off")
            guard.set_observes(message["observe"])
        elif message["type"] == "containers":
            if not isinstance(message["names"], dict):
                raise TypeError("no names by containers")
            names = message["names"].items()
            guard.container_names = {str(i)[:128]: str(name)[:63] for i, name in list(names)[:_MOST_CONTAINERS]}
        elif message["type"] == "deleting":
            guard.hooks.pod_goes()
        elif message["type"] == "after_kill":
            guard.ending.exit_after_kill(str(message["incident"]))

    def _take_up_word(self, message: Message) -> None:
        """It answered; but what is said of an engine that has ended does not hold for the next one."""
        guard = self._guard
        about = [Identity(**identity) for identity in message["ranks"]]
        if any(i in guard.discovery.ranks and not guard.verdicts.is_over(i) for i in about):
            guard.up = True
            guard.mark_changed()

    def _drop_web(self) -> None:
        if self._guard.web.channel is not None:
            self._guard.epoll.unregister(self._guard.web.channel.fileno())
            self._guard.web.disconnect()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
