"""Rankguard's own processes: started, introduced to the guard, and started again when they end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar import history
from sidecar.errors import PeerGone
from sidecar.log import Log
from sidecar.messages import Channel, Message
from sidecar.settings import Launch
from sidecar.supervisor import children
from sidecar.supervisor.children import Pause
from sidecar.supervisor.heartbeat import Heartbeat
from sidecar.system import clock

_BEAT_LIMIT = 10.0  # how old the guard's heartbeat may be, in seconds
_WEB_BEAT_LIMIT = 15.0  # the web's: nothing waits for it for seconds, and it may have to wait for a processor
_WEB_STARTS = 30.0  # seconds until its first beat: it imports much
_AGAIN = 1.0
_MOST_RECORDERS = 4  # a volume that hangs holds its recorder for ever; more than this are not started


@dataclass(slots=True)
class Child:
    kind: str
    channel: Channel | None = None
    waits_for_guard: list[int] = field(default_factory=list)  # the guard's end of its channel, until a guard has it


class Workers:
    """Guard, web and recorders. `later(seconds, action)` runs something later; `greet` tells a new guard what an
    earlier one knew; `guard_died` is called at once when the guard has ended.
    """

    def __init__(
        self,
        launch: Launch,
        launch_fd: int,
        log: Log,
        later: Callable[[float, Callable[[], None]], None],
        greet: Callable[[], None],
        guard_died: Callable[[], None],
    ) -> None:
        self.running: dict[int, Child] = {}
        self.guard: Channel | None = None
        self.standby = 0
        self.web_pid = 0
        self.closing = False
        self._launch = launch
        self._launch_fd = launch_fd
        self._log = log
        self._later = later
        self._greet = greet
        self._guard_died = guard_died
        self._guard_pid = 0
        self._untold: list[str] = []  # restarts of which no guard has heard yet
        self._pauses = {kind: Pause() for kind in ("guard", "recorder", "web")}
        self._guard_beat = Heartbeat("guard", _BEAT_LIMIT)
        self._web_beat = Heartbeat("web", _WEB_BEAT_LIMIT)
        # The engine's last metrics: the web writes them, a recorder reads them, and both may end over it.
        self._history_fd = history.create()

    def start_all(self) -> None:
        self._start_guard()
        self._start_web()
        self.start_recorder()

    # -- the guard ----------------------------------------------------------------------------------------------

    def tell_guard(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Tell the guard, if there is one. False if it is there and does not take the message; what it misses by not
        being there it is told by `greet` when it starts again.
        """
        if self.guard is None:
            return True
        try:
            taken = self.guard.send(message, fds)
        except PeerGone:
            return True  # SIGCHLD tells the rest
        if not taken:
            self._log("the guard takes no message", message=message["type"])
        return taken

    def guard_hung_up(self) -> None:
        """Its channel is closed: it has ended, or is about to."""
        if self.guard is not None:
            self.guard.close()
            self.guard = None
        self._guard_died()

    def kill_guard(self, why: str) -> None:
        if self._guard_pid:
            self._log("guard killed", because=why)
            os.kill(self._guard_pid, signal.SIGKILL)  # our own unreaped child: the pid is its own

    def check_heartbeats(self) -> None:
        """Kill a guard, or a web, whose loop has stopped."""
        if self._guard_beat.look() >= 2 and self._guard_pid:
            self._guard_beat.begin()
            self.kill_guard("its heartbeat has stopped")
        if self._web_beat.look() >= 2 and self.web_pid:
            self._log("web killed", because="its heartbeat has stopped")
            os.kill(self.web_pid, signal.SIGKILL)  # our own unreaped child

    @property
    def serving_web(self) -> int:
        """The pid of a web that answers, as far as is known; 0 for none."""
        return 0 if self._web_beat.stale else self.web_pid

    def _start_guard(self) -> None:
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._start_failed("guard", error, self._start_guard)
            return
        try:
            pid = children.start("guard", self._launch, (theirs.fileno(), self._launch_fd, self._guard_beat.fd))
        except OSError as error:
            ours.close()
            self._start_failed("guard", error, self._start_guard)
            return
        finally:
            theirs.close()
        self._pauses["guard"].started = clock.monotonic()
        self._guard_beat.begin()
        self.guard, self._guard_pid = ours, pid
        self.running[pid] = Child("guard", ours)
        # What a new guard is told may be more than the socket's buffer holds, and it reads that before all else.
        ours.sock.setblocking(True)
        self._greet()
        for kind in self._untold:
            self.tell_guard({"type": "restarted", "process": kind})
        self._untold.clear()
        for child in self.running.values():
            self._introduce(child)
        ours.sock.setblocking(False)

    def _introduce(self, child: Child) -> None:
        """Give the guard its end of a recorder's or the web's channel."""
        if self.guard is None or child not in self.running.values():
            return
        if child.kind == "web" and child.channel is not None:
            try:
                guards, webs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError as error:
                self._log("guard and web are not connected", error=error.strerror)
                self._later(_AGAIN, lambda: self._introduce(child))
                return
            try:
                child.channel.send({"type": "guard"}, (webs.fileno(),))
                self.tell_guard({"type": "web"}, (guards.fileno(),))
            except PeerGone:
                pass  # it has just ended, and will be started again
            guards.close()
            webs.close()
        elif child.kind == "recorder":
            for fd in child.waits_for_guard:
                self.tell_guard({"type": "recorder"}, (fd,))
                os.close(fd)
            child.waits_for_guard.clear()

    # -- web and recorder ---------------------------------------------------------------------------------------

    def _start_web(self) -> None:
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._start_failed("web", error, self._start_web)
            return
        listening = tuple(fd for fds in self._launch.listen_fds.values() for fd in fds)
        try:
            fds = (theirs.fileno(), self._launch_fd, self._history_fd, self._web_beat.fd)
            pid = children.start("web", self._launch, fds, listening)
        except OSError as error:
            ours.close()
            self._start_failed("web", error, self._start_web)
            return
        finally:
            theirs.close()
        self._pauses["web"].started = clock.monotonic()
        self._web_beat.begin(_WEB_STARTS)
        self.web_pid = pid
        child = self.running[pid] = Child("web", ours)
        self._introduce(child)

    def start_recorder(self) -> None:
        """Start one to stand by, unless one does."""
        if self.standby or self.closing:
            return
        if sum(child.kind == "recorder" for child in self.running.values()) >= _MOST_RECORDERS:
            self._log("no further recorder is started", because="too many hang, probably on the volume")
            return
        try:
            guards, recorders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._start_failed("recorder", error, self.start_recorder)
            return
        try:
            pid = children.start("recorder", self._launch, (recorders.fileno(), self._launch_fd, self._history_fd))
        except OSError as error:
            guards.close()
            self._start_failed("recorder", error, self.start_recorder)
            return
        finally:
            recorders.close()
        self._pauses["recorder"].started = clock.monotonic()
        self.standby = pid
        child = self.running[pid] = Child("recorder", None, [guards.detach()])
        self._introduce(child)

    def _start_failed(self, kind: str, error: OSError, again: Callable[[], None]) -> None:
        self._log("cannot start", what=kind, error=error.strerror)
        now = clock.monotonic()
        self._pauses[kind].started = now
        self._later(max(1.0, self._pauses[kind].start_at(now) - now), again)

    # -- ends ---------------------------------------------------------------------------------------------------

    def ended(self, pid: int, status: int) -> bool:
        """A child was reaped. False if it is none of ours."""
        child = self.running.pop(pid, None)
        if child is None:
            return False
        if child.channel is not None:
            child.channel.close()
        for fd in child.waits_for_guard:
            os.close(fd)
        if self.closing:
            return True
        if child.kind == "guard":
            self.guard, self._guard_pid = None, 0
            self._guard_died()
        elif child.kind == "web":
            self.web_pid = 0
        elif child.kind == "recorder":
            if pid == self.standby:
                self.standby = 0
            elif status == 0:
                self.start_recorder()  # it has done its work: no pause, and no restart to be counted
                return True
            if status == 0:  # it stood by for a guard that is gone
                self._restart(child.kind)
                return True
        self._log("process ended", what=child.kind, status=os.waitstatus_to_exitcode(status))
        if self.guard is None:
            self._untold.append(child.kind)
        self.tell_guard({"type": "restarted", "process": child.kind})
        self._restart(child.kind)
        return True

    def _restart(self, kind: str) -> None:
        now = clock.monotonic()
        again = {"guard": self._start_guard, "web": self._start_web, "recorder": self.start_recorder}[kind]
        self._later(self._pauses[kind].start_at(now) - now, again)

    def hang_up(self) -> None:
        """Close every channel, which tells each to end."""
        self.closing = True
        for child in self.running.values():
            if child.channel is not None:
                child.channel.close()
        self.guard = None

    def kill_all(self) -> None:
        """SIGKILL whoever is left. They are our own unreaped children."""
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)
