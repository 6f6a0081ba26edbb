"""The supervisor: the container's root process, which everything else may die without.

It starts guard, recorder and web and starts them again, holds what a new guard needs, has the dead man's switch, and
answers /livez while there is no web. In wrap mode it is the engine's parent too. It does nothing else: the fewer lines,
the fewer ways to end.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

from sidecar.errors import OutOfDescriptors, PeerGone, ProtocolError
from sidecar.log import Log
from sidecar.messages import Message
from sidecar.model import Identity, plain, plan_from, rank_process_from
from sidecar.settings import Launch
from sidecar.supervisor.engine import Engine
from sidecar.supervisor.livez import Livez
from sidecar.supervisor.switch import Switch
from sidecar.supervisor.workers import Workers
from sidecar.system import clock
from sidecar.system.limits import descriptor_limit, raise_descriptor_limit
from sidecar.system.proc import Proc
from sidecar.system.subreaper import become_subreaper

_BEAT_CHECK = 5.0  # how often the heartbeats of guard and web are looked at, in seconds
_FD_BATCH = 200
_FOR_OURSELVES = 64  # descriptors that the ranks' pidfds leave free
_TELL_AGAIN = 0.1
_MOST_MISHAPS, _MISHAPS_WITHIN = 20, 60.0  # with so many within so many seconds, we end after all
_MOST_OF_ERROR = 700
_LAST_WORDS = 2.0  # how long our processes get to end by themselves
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Supervisor:
    def __init__(self, launch: Launch, launch_fd: int, proc: Proc, log: Log) -> None:
        self._launch = launch
        self._proc = proc
        self._log = log
        self._switch = Switch(proc, log)
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._workers = Workers(launch, launch_fd, log, self._in, self._greet, self._guard_died)
        self._livez = Livez(launch.listen_fds.get("listen", ()))
        self._journal: Message | None = None
        self._remembered: Message = {}
        self._engine: Engine | None = None
        self._drained = False
        self._stops = 0
        self._exit_status: int | None = None
        self._mishaps: list[float] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until it is over. Returns the exit status."""
        for number in (*_STOPS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        if self._launch.command:
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._say_where()
        if self._launch.command:
            become_subreaper()
            try:
                self._engine = Engine.start(self._launch, self._proc)
            except OSError as error:
                self._log("the command cannot be started", command=self._launch.command[0], error=error.strerror)
                return 127 if isinstance(error, FileNotFoundError) else 126
            self._log("command started", pid=self._engine.identity.pid)
        raise_descriptor_limit()  # not before the command was started, which keeps its own
        self._workers.start_all()
        self._in(_BEAT_CHECK, self._check_heartbeats)
        while self._exit_status is None:
            try:
                self._round()
            except Exception:  # the outermost loop: our end is the container's  # noqa: BLE001
                self._mishap(traceback.format_exc())
        self._end_workers()
        return self._exit_status

    def _mishap(self, error: str) -> None:
        """A mistake of ours in one round is no reason to end: a restart of this container can take a whole group down.
        One that does not stop is, since nothing would be watched.
        """
        now = clock.monotonic()
        self._mishaps = [at for at in self._mishaps if now - at < _MISHAPS_WITHIN] + [now]
        self._log("a mistake of the supervisor's", error=error.strip().replace("\n", " | ")[-_MOST_OF_ERROR:])
        if len(self._mishaps) >= _MOST_MISHAPS:
            self._switch.fire("the supervisor fails")
            self._exit_status = 70  # EX_SOFTWARE
        self._in(_TELL_AGAIN, self._reap)  # what the round has left undone

    def _say_where(self) -> None:
        where = {}
        for name, fds in self._launch.listen_fds.items():
            for fd in fds[:1]:
                with socket.socket(fileno=os.dup(fd)) as bound:
                    host, port = bound.getsockname()[:2]
                    where[name] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._log("listening", dump_dir=self._launch.settings.dump_dir, **where)
        for line in self._launch.config_errors:
            self._log("setting refused", because=line)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _round(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        guard = self._workers.guard
        if guard is not None:
            poll.register(guard.fileno(), select.POLLIN)
        self._livez.register(poll, self._workers.serving_web)
        ready = dict(poll.poll(self._timeout()))
        if guard is not None and guard.fileno() in ready:
            self._hear_guard()
        if self._wake_read in ready:
            self._signals()
        now = clock.monotonic()
        if self._switch.deadline is not None and now >= self._switch.deadline:
            self._switch.fire("the deadline has passed")
            self._workers.kill_guard("it let the deadline pass")
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)  # one by one: should one of them fail, the others are still to be done
            entry[1]()
        self._livez.work(ready, now)  # last: nothing of ours waits for it

    def _timeout(self) -> int | None:
        deadlines = [at for at, _ in self._later]
        if self._switch.deadline is not None:
            deadlines.append(self._switch.deadline)
        livez_at = self._livez.next_at()
        if livez_at is not None:
            deadlines.append(livez_at)
        if not deadlines:
            return None
        return max(0, int((min(deadlines) - clock.monotonic()) * 1000) + 1)

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((clock.monotonic() + seconds, action))

    def _check_heartbeats(self) -> None:
        self._in(_BEAT_CHECK, self._check_heartbeats)
        self._workers.check_heartbeats()

    # -- signals ------------------------------------------------------------------------------------------------

    def _signals(self) -> None:
        try:
            numbers = set(os.read(self._wake_read, 4096))
        except BlockingIOError:
            return
        for number in _STOPS:
            if number in numbers:
                self._stop(number)
        if signal.SIGCHLD in numbers:
            self._reap()

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        self._stops += 1
        self._drained = True
        if self._engine is None and self._stops > 1:
            self._switch.fire("a second stop")
            self._exit_status = 0
            return
        self._tell_for_sure({"type": "drain", "signal": name})
        if self._engine is not None:
            self._engine.forward(number)
            return
        settings = self._launch.settings
        captures = max(settings.death_deadline, settings.liveness_deadline)
        self._in(captures + settings.reap_timeout + 30, lambda: self._exit(0))

    def _reap(self) -> None:
        """Look first, then take exactly that one: a bare waitpid(-1) would steal from whoever waits for a pid."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            try:
                stat = self._proc.stat(info.si_pid)
            except OutOfDescriptors:
                stat = None
            _, status = os.waitpid(info.si_pid, 0)
            self._reaped(Identity(info.si_pid, stat.start if stat is not None else 0), status)

    def _reaped(self, identity: Identity, status: int) -> None:
        if self._workers.ended(identity.pid, status):
            return
        if self._engine is not None and identity.pid == self._engine.identity.pid:
            self._engine.wait_status = status
            settings = self._launch.settings
            captures = max(settings.death_deadline, settings.liveness_deadline)
            limit = captures + settings.exit_grace + settings.reap_timeout + 60
            self._in(limit, lambda: self._give_up(status))
        elif identity not in self._switch.ranks:
            return  # an orphan: the guard has nothing to do with it
        self._tell_for_sure({"type": "reaped", "identity": plain(identity), "wait_status": status})

    def _tell_for_sure(self, message: Message) -> None:
        """Tell the guard, again and again if it takes no message. A new one is told by `_greet`."""
        if not self._workers.tell_guard(message):
            self._in(_TELL_AGAIN, lambda: self._tell_for_sure(message))

    def _give_up(self, status: int) -> None:
        """The guard never said that it is over, though the command is: do not hang for ever."""
        self._log("the guard does not finish")
        code = os.waitstatus_to_exitcode(status)
        self._exit(code if code >= 0 else 128 - code)

    def _exit(self, status: int) -> None:
        self._exit_status = status

    # -- the guard ----------------------------------------------------------------------------------------------

    def _guard_died(self) -> None:
        self._switch.fire("the guard has died")
        self._livez.failed = False  # nobody knows now; a new guard says it again if it is so

    def _greet(self) -> None:
        """Tell a new guard what an earlier one knew."""
        ranks = list(self._switch.ranks.values())
        for start in range(0, len(ranks), _FD_BATCH):
            batch = ranks[start : start + _FD_BATCH]
            self._workers.tell_guard(
                {"type": "ranks", "ranks": [plain(rank) for rank, _ in batch]}, tuple(fd for _, fd in batch)
            )
        engine = self._engine
        self._workers.tell_guard(
            {
                "type": "hello",
                "journal": self._journal,
                "fired": self._switch.fired,
                "served": self._remembered.get("served", False),
                "failed": self._remembered.get("failed", False),
                "found": self._remembered.get("found", False),
                "drains_until": self._remembered.get("drains_until"),
                "memory_kills": self._remembered.get("memory_kills"),
                "observes": self._remembered.get("observes", False),
                "engine_root": plain(engine.identity) if engine is not None else None,
                "root_wait_status": engine.wait_status if engine is not None else None,
                "drained": self._drained,
            }
        )

    def _hear_guard(self) -> None:
        while self._workers.guard is not None:
            try:
                received = self._workers.guard.receive()
            except ProtocolError as error:
                self._log("a message of the guard cannot be read", error=str(error))
                continue
            except PeerGone:
                # What it left stopped cannot wait for SIGCHLD.
                self._workers.guard_hung_up()
                return
            if received is None:
                return
            try:
                self._from_guard(*received)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._log("a message of the guard makes no sense", type=received[0]["type"], error=repr(error))

    def _from_guard(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message["type"]
        if kind == "watch":
            most = descriptor_limit() - _FOR_OURSELVES
            self._switch.watch((rank_process_from(r) for r in message["ranks"]), fds, most)
            return
        for fd in fds:
            os.close(fd)
        if kind == "forget":
            self._switch.forget(Identity(**i) for i in message["identities"])
        elif kind == "arm":
            self._switch.arm(message["incident"], plan_from(message["plan"]), message["deadline"])
        elif kind == "disarm":
            self._switch.disarm(message["incident"])
        elif kind == "journal":
            self._keep_journal(message)
        elif kind == "livez":
            self._livez.failed = bool(message["failed"])
        elif kind == "remember":
            self._remembered = message
        elif kind == "finished":
            self._exit(int(message["exit_status"]))

    def _keep_journal(self, message: Message) -> None:
        if message["incident"] is not None:
            self._journal = message
            self._workers.standby = 0  # the recorder that stood by has work now
            return
        if self._journal is not None and self._journal["incident"]["id"] == message["closed"]:
            self._journal = None
            self._switch.fired = False
        self._workers.start_recorder()

    # -- end ----------------------------------------------------------------------------------------------------

    def _end_workers(self) -> None:
        """Closing a channel tells each to end; whoever does not is killed."""
        self._switch.fire("Rankguard ends")
        self._workers.hang_up()
        end = clock.monotonic() + _LAST_WORDS
        while self._workers.running and (left := end - clock.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            poll.poll(int(left * 1000) + 1)
            self._signals()
        self._workers.kill_all()
        self._reap()
