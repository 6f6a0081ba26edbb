"""The guard: sees, decides, freezes, kills, waits. One epoll loop that waits for nothing else.

In each round the exits come first, in the order in which the kernel reported them; then what the other processes have
to say; then the timers, among them the tick that looks for new processes and reads the `stat` of those that no
descriptor tells about. A few reads of /proc can block on a lock of a stuck process: they are kept from processes in D
state, and the supervisor ends a guard whose heartbeat stops, with the switch.

Over 400 lines, since it is the one place where the parts of the guard meet.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import struct
from typing import Any

from sidecar.engines.profile import Profile
from sidecar.errors import PeerGone
from sidecar.guard.case import Case
from sidecar.guard.census import Census
from sidecar.guard.discovery import Discovery
from sidecar.guard.ending import Ending
from sidecar.guard.exits import Exits
from sidecar.guard.herd import Herd
from sidecar.guard.hooks import Hooks
from sidecar.guard.links import WebLink
from sidecar.guard.peers import Peers
from sidecar.guard.shm import Leftovers
from sidecar.guard.surroundings import RUNNING, Surroundings
from sidecar.guard.termination_logs import TerminationLogs
from sidecar.guard.timers import Timers
from sidecar.guard.verdicts import Verdicts
from sidecar.log import Log
from sidecar.masking import mask_arguments
from sidecar.messages import Channel, Message
from sidecar.model import (
    Action,
    Identity,
    Incident,
    Observation,
    RankProcess,
    Reason,
    Role,
    State,
    incident_from,
    plain,
    rank_process_from,
)
from sidecar.policy import machine, startup
from sidecar.policy.machine import Event
from sidecar.settings import Launch
from sidecar.system import clock
from sidecar.system.features import Features
from sidecar.system.limits import descriptor_limit
from sidecar.system.proc import Proc, status_from_wait

_BEAT = struct.Struct("d")
_TICK = 0.25
_FAST_TICK = 0.1  # where some process can be watched by reading alone
_MANY_RANKS = 64  # above this, stats are read at every fourth tick
_FOR_LOOKING = 128  # descriptors that watching leaves free
_PUBLISH = 0.05  # how long changes of what the web shows are gathered
_OBSERVING = 10.0  # how long an incident that kills nothing collects what follows


class Guard:
    """The one loop. `heartbeat` is memory shared with the supervisor, which tells a guard that hangs from one that is
    idle by the monotonic time in its first 8 bytes.
    """

    def __init__(
        self, launch: Launch, control: Channel, heartbeat: mmap.mmap, proc: Proc, features: Features,
        profiles: tuple[Profile, ...], log: Log,
    ) -> None:  # fmt: skip
        settings = launch.settings
        self.launch = launch
        self.settings = settings
        self.log = log
        self.proc = proc
        self.features = features
        self.control = control
        self._heartbeat = heartbeat
        self.epoll = select.epoll()
        self.timers = Timers()
        self.web = WebLink(log)
        self.exits = Exits(proc, features, self.epoll, most=max(0, descriptor_limit() - _FOR_LOOKING))
        environment = tuple(sorted({name for profile in profiles for name in profile.environment}))
        self.census = Census(proc, os.getppid(), environment)
        told_root = proc.stat(settings.root_pid) if settings.root_pid is not None else None
        if told_root is not None and launch.root_start not in (0, told_root.start):
            told_root = None  # it has ended, and its pid is somebody else's
        self.discovery = Discovery(
            self.census, profiles, settings.expected_ranks,
            told_root.identity if told_root is not None else None,
            settings.root_pid is not None or bool(launch.command), launch.engine_marker,
        )  # fmt: skip
        self.herd = Herd(proc, self.census, self.discovery, self.exits, features.pidfd)
        shm_names = tuple(sorted({name for profile in profiles for name in profile.shm_names}))
        self.leftovers = Leftovers(proc, shm_names, settings.in_pod)
        self.termination_logs = TerminationLogs(proc, settings.termination_log, bool(launch.command), log)
        self.verdicts = Verdicts(self)
        self.peers = Peers(self)
        self.ending = Ending(self)
        self.state = State.WAITING
        self.case: Case | None = None
        self.failed = False
        self.up = False  # the web has heard the engine answer; a later web is told
        self.observes = False  # the fleet switch's last word: nothing is frozen, captured or killed
        self.container_names: dict[str, str] = {}  # by a container's id, as the pod's status has them
        self.hooks = Hooks(self)
        self.sealing: list[Case] = []
        self.boot_id = proc.boot_id()
        self.first_seen: float | None = None
        self._ticks = 0
        self._dirty = True
        self._publishing = False
        self._said: Message | None = None
        self._saw_ranks = 0
        self._said_short = 0
        self._greeted = False
        self._around = Surroundings(
            herd=self.herd, timers=self.timers, web=self.web, log=log, leftovers=self.leftovers,
            termination_logs=self.termination_logs,
            tell_supervisor=self.tell_supervisor, take_recorder=self.peers.take_recorder,
            ranks=lambda: list(self.discovery.ranks.values()), terminated=self._terminated,
            sealing=self._sealing, closed=self._closed, reap_timeout=settings.reap_timeout,
            death_deadline=settings.death_deadline,
        )  # fmt: skip

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the supervisor is gone or says that it is over."""
        self.epoll.register(self.control.fileno(), select.EPOLLIN)
        self._await_hello()
        self._tick()
        for rank in list(
            self.discovery.ranks.values()
        ):  # those that an earlier guard found: their containers are known now
            self.verdicts.take(self.verdicts.watch_container(rank, clock.monotonic()))
        # No garbage is made in cycles here, and a collection at the wrong moment delays a kill.
        gc.collect()
        gc.freeze()
        gc.disable()
        while not self.ending.finished:
            due = self.timers.next_at()
            timeout = -1.0 if due is None else max(0.0, due - clock.monotonic())
            # A wait that was interrupted (we were stopped, or got no processor) can end with nothing although something
            # is there; the kernel knows the order of deaths, a look at every stat does not.
            self._round(self.epoll.poll(timeout) or self.epoll.poll(0))

    def _round(self, events: list[tuple[int, int]]) -> None:
        now = clock.monotonic()
        others = []
        observations: list[Observation] = []
        for fd, mask in events:
            if self.exits.owns(fd):
                observations += self.exits.on_event(fd, mask, now)
            else:
                others.append(fd)
        self.verdicts.take(observations)
        for fd in others:
            self.peers.hear(fd)
        self.timers.run_due(clock.monotonic())
        if self._dirty and not self._publishing:
            self._publishing = True
            self.timers.at(clock.monotonic() + _PUBLISH, self._publish)

    def _await_hello(self) -> None:
        """The first thing that the supervisor says is what an earlier guard knew; nothing is done before that."""
        ranks: list[tuple[RankProcess, int]] = []
        while True:
            select.select([self.control], [], [])
            received = self.control.receive()
            if received is None:
                continue
            message, fds = received
            for item, fd in zip(message.get("ranks", []), fds, strict=False):
                ranks.append((rank_process_from(item), fd))
            if message["type"] == "hello":
                break
        root = message.get("engine_root")
        if root:
            self.ending.root = Identity(**root)
            self.discovery.set_root(self.ending.root)
        now = clock.monotonic()
        self.observes = bool(message.get("observes"))
        if ranks:
            self.log("guard restarted", ranks=len(ranks))
            self.discovery.adopt(rank for rank, _ in ranks)
            for rank, _ in ranks:
                self.termination_logs.attach(rank)
            self.first_seen = now
            self.event(Event.ENGINE_SEEN)
            if message.get("served"):
                self.event(Event.RANKS_COMPLETE)
            self.verdicts.found_failed = bool(message.get("found"))
            self.set_failed(bool(message.get("failed")))
            self.hooks.take_up(message.get("drains_until"))
            self.verdicts.memory.given.update(message.get("memory_kills") or {})
            for rank, _ in ranks:
                self.verdicts.memory.watch(rank)
        self._greeted = True
        self.remember()
        journal = message.get("journal")
        if journal and journal.get("incident"):
            self.resume(
                incident_from(journal["incident"]), str(journal["phase"]), journal["opened_at"], bool(message["fired"])
            )
        if message.get("drained"):
            self.ending.drain()
        seen: list[Observation] = []
        for rank, fd in ranks:
            seen += self.exits.watch(rank.identity, clock.monotonic(), fd)
        self.verdicts.take(seen)
        if self.ending.root is not None:
            self._watch_root(self.ending.root, message.get("root_wait_status"), bool(journal))

    def _watch_root(self, root: Identity, wait_status: int | None, resumed: bool) -> None:
        """The wrapped command is watched from its first moment: it may fail sooner than anybody looks."""
        now = clock.monotonic()
        if wait_status is not None:
            self.ending.root_status = status_from_wait(wait_status)
            self.exits.was_reaped(root, wait_status, now)
            if resumed:
                return  # it is part of that story
        if root not in self.discovery.ranks:
            title = " ".join(mask_arguments(self.launch.command))[:200]
            rank = RankProcess(root, Role.SERVER, "command", title, os.getppid(), root.pid, root.pid)
            self.discovery.adopt([rank])
            self._ranks_changed([rank], now)

    # -- looking ------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = clock.monotonic()
        self.timers.at(now + (_FAST_TICK if self.exits.needs_fast_polling else _TICK), self._tick)
        self._ticks += 1
        self._tick_now()
        slow = self._ticks % 4 == 0
        if slow or self.exits.living() <= _MANY_RANKS:
            seldom = self._ticks % 16 == 0  # whose threads tell of them need hardly be read at all
            due = [i for i in self.exits.watched if seldom or not self.exits.seen_early(i)]
            self.verdicts.take(self.exits.poll(due))
        if slow:
            self._check_complete()
            for identity in self.discovery.ranks:
                self.exits.rewatch_threads(identity)
            self.web.flush()
            self._check_startup(now)
            self.ending.check()
        self._heartbeat[:8] = _BEAT.pack(now)

    def _tick_now(self) -> None:
        if self.case is not None and self.case.decision.action is Action.KILL:
            return  # whoever comes now is the next generation's, or the kill's own look finds him
        now = clock.monotonic()
        changed = self.discovery.look(now)
        for rank in self.discovery.take_dropped():
            self.log("no rank", rank=rank.rank, pid=rank.identity.pid)
            self.let_be(rank.identity)
        if changed:
            self._ranks_changed(changed, now)

    def let_be(self, identity: Identity) -> None:
        """Not a rank after all, or one whose story is over: watch it no longer."""
        self.discovery.forget(identity)
        self.exits.forget(identity)
        self.tell_supervisor({"type": "forget", "identities": [plain(identity)]})
        self._dirty = True

    def _ranks_changed(self, changed: list[RankProcess], now: float) -> None:
        seen: list[Observation] = []
        for rank in changed:
            self.log("rank", rank=rank.rank, role=str(rank.role), pid=rank.identity.pid, title=rank.title[:60])
            seen += self.exits.watch(rank.identity, now)
            seen += self.verdicts.watch_container(rank, now)
            self.leftovers.attach(rank.identity.pid)
            self.termination_logs.attach(rank)
        if self.first_seen is None:
            self.first_seen = now
        if self.state in (State.WAITING, State.RESTARTING):
            self.event(Event.ENGINE_SEEN)
        if self.exits.out_of_descriptors > self._said_short:
            self._said_short = self.exits.out_of_descriptors
            self.log("short of descriptors", because="deaths of some ranks are seen later; raise the limit (nofile)")
        self._hand_over(changed)
        self._check_complete()
        self._dirty = True
        self.verdicts.take(seen)

    def _hand_over(self, ranks: list[RankProcess]) -> None:
        """Give the supervisor what a new guard would need, a pidfd each, in batches that fit a message."""
        held = [(rank, self.exits.pidfd_of(rank.identity)) for rank in ranks]
        with_fd = [(rank, fd) for rank, fd in held if fd >= 0]
        for start in range(0, len(with_fd), 200):
            batch = with_fd[start : start + 200]
            message: dict[str, object] = {"type": "watch", "ranks": [plain(rank) for rank, _ in batch]}
            if not self.tell_supervisor(message, tuple(fd for _, fd in batch)):
                self.log("the supervisor did not take the list of ranks")

    def _check_complete(self) -> None:
        if startup.complete(self._roles_up(), self.discovery.expectation) and self.state in (
            State.STARTING, State.FAILING,
        ) and not (self.state is State.FAILING and self.case is not None):  # fmt: skip
            self.event(Event.RANKS_COMPLETE)

    def _check_startup(self, now: float) -> None:
        expectation = self.discovery.expectation
        if self.state is not State.STARTING or expectation is None or self.first_seen is None:
            return
        if self.case is not None:
            return
        if not startup.overdue(self.first_seen, now, self.settings.startup_timeout):
            return
        if startup.complete(self.discovery.roles(), expectation, self.discovery.untitled()):
            self.event(Event.RANKS_COMPLETE)  # an engine that gives no titles
        else:
            self.verdicts.ranks_missing(expectation)

    # -- the engine's state -------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Something happened to the engine as a whole."""
        before, self.state = self.state, machine.after(self.state, event)
        self._dirty = True
        if State.SERVING in (before, self.state) and before is not self.state:
            self.remember()
        ranks = startup.counted(self.discovery.roles(), self.discovery.expectation)
        if before is not self.state or ranks != self._saw_ranks:
            self._saw_ranks = ranks
            expectation = self.discovery.expectation
            self.log(
                "watching", state=str(self.state), engine=self.discovery.engine or None, ranks=ranks,
                expected=expectation.count if expectation else None, because=str(event),
            )  # fmt: skip

    def engine_gone(self) -> None:
        """No process of the engine is left. What was known of it is dropped; the next one is awaited."""
        for identity in list(self.exits.watched):
            self.exits.forget(identity)
        self.tell_supervisor({"type": "forget", "identities": [plain(i) for i in self.discovery.ranks]})
        self.discovery.new_generation()
        self.leftovers.detach()
        self.termination_logs.detach()
        self.verdicts.new_generation()
        self.hooks.new_generation()
        self.set_failed(False)
        self.remember()
        self.up = False
        self.first_seen = None
        if self.state is not State.WAITING:
            self.event(Event.GONE)
        if self.case is not None:
            self.case.finish_observing()
        self.ending.check()

    def tell_supervisor(self, message: dict[str, object], fds: tuple[int, ...] = ()) -> bool:
        """False if it did not take the message."""
        try:
            return self.control.send(message, fds)
        except PeerGone:
            return False

    def open_case(self, case: Case) -> None:
        """An incident begins. There is at most one that is not yet sealing."""
        self.case = case

    def open_cases(self) -> list[Case]:
        """The case at work, if there is one, and those whose record is still being written."""
        return ([self.case] if self.case is not None else []) + self.sealing

    def new_case(
        self, reason: Reason, action: Action, rank: str, because: tuple[str, ...], at: float, **more: Any
    ) -> Case:
        """A case for this decision, with an id that sorts by time. `more`: see `Verdicts.make_case`."""
        return self.verdicts.make_case(self._around, reason, action, rank, because, at, **more)

    def set_failed(self, failed: bool) -> None:
        """Whether the engine was found stuck or dead, and is still there past the deadline."""
        if failed is not self.failed:
            before, self.failed = self.livez_fails, failed
            self.remember()
            self._dirty = True
            self._tell_livez(before)

    @property
    def livez_fails(self) -> bool:
        """What /livez says. Not while the fleet switch is on: the kubelet would kill by our word."""
        return self.failed and not self.observes

    def _tell_livez(self, before: bool) -> None:
        if self.livez_fails is not before:
            self.log("livez", answer="failed" if self.livez_fails else "ok")
            self.tell_supervisor({"type": "livez", "failed": self.livez_fails})

    @property
    def on_rank_death(self) -> Action:
        """What a death is answered with, as things stand now."""
        return Action.OBSERVE if self.observes else self.settings.on_rank_death

    @property
    def on_liveness_failure(self) -> Action:
        return Action.OBSERVE if self.observes else self.settings.on_liveness_failure

    def set_observes(self, observes: bool) -> None:
        """The fleet switch. What was decided before goes on as it was decided."""
        if observes is not self.observes:
            before, self.observes = self.livez_fails, observes
            self.log("fleet switch", action="only observing from now on" if observes else "acting as it is set to")
            self.remember()
            self._dirty = True
            self._tell_livez(before)

    def remember(self) -> None:
        """Have the supervisor keep what a new guard of the same engine would need beside the journal."""
        if not self._greeted:
            return  # what an earlier guard knew is not all taken up yet
        kept = {
            "served": self.state is State.SERVING, "found": self.verdicts.found_failed, "failed": self.failed,
            "drains_until": self.hooks.drains_until, "memory_kills": self.verdicts.memory.given,
            "observes": self.observes,
        }  # fmt: skip
        self.tell_supervisor({"type": "remember", **kept})

    def observe_for_a_while(self, case: Case) -> None:
        self.timers.at(clock.monotonic() + _OBSERVING, case.finish_observing)

    def resume(
        self, incident: Incident, phase: str, opened_at: float, switch_fired: bool = False, earlier_run: bool = False
    ) -> None:
        """Take up an incident that an earlier guard, or an earlier run of Rankguard, has left."""
        case = Case(
            self._around, incident.id, incident.engine, incident.pod, incident.decision, self.boot_id, opened_at
        )
        self.open_case(case)
        if not earlier_run:
            if self.state in (State.WAITING, State.RESTARTING):
                self.event(Event.ENGINE_SEEN)
            reason = incident.reason
            if reason in (Reason.PRE_STOP, Reason.PEER_FAILED):
                self.hooks.resume(incident)
            elif reason is not Reason.MANUAL:
                self.event(Event.FAILURE)
            if incident.decision.action is Action.KILL or reason not in (*RUNNING, Reason.MANUAL):
                self.ending.failed(list(incident.failures))
            self.ending.ended_by_us = incident.termination is not None
            self.verdicts.resumed(incident, opened_at)
        self.verdicts.already_told(Identity(f.pid, f.start) for f in incident.failures)
        case.resume(incident, phase, switch_fired, earlier_run)

    def _terminated(self, case: Case) -> None:
        if case.story.termination is not None:
            self.discovery.given_up |= {Identity(s.pid, s.start) for s in case.story.termination.survivors} | {
                m.identity for m in case.story.termination.killed if self.proc.stat(m.identity.pid) is not None
            }
        self._sealing(case)
        if case.earlier_run:
            return  # the engine that runs now is another
        self.ending.ended_by_us = True
        if self.state in (State.FAILING, State.DRAINING):
            self.event(Event.TERMINATED)
        self.engine_gone()

    def _sealing(self, case: Case) -> None:
        """Its work on the engine is done: another incident may begin while this one's record is written."""
        self.set_aside(case)
        # What ended while it was open was its business alone: see what that leaves.
        self.timers.at(clock.monotonic(), self.verdicts.look_again)

    def set_aside(self, case: Case) -> None:
        """The case goes on by itself; another one may be opened."""
        if self.case is case:
            self.case = None
        if case not in self.sealing:
            self.sealing.append(case)

    def _closed(self, case: Case) -> None:
        self.sealing.remove(case)
        # A later guard must not be handed these deaths once more.
        told = [plain(identity) for identity in case.story.failed()]
        self.tell_supervisor({"type": "forget", "identities": told})
        self._dirty = True
        self.hooks.closed(case)
        if self.peers.standby is not None and self.case is not None:
            self.case.recorder_came()
        self.ending.check()

    # -- telling ------------------------------------------------------------------------------------------------

    def mark_changed(self) -> None:
        """What the web shows is no longer right; it is told at the end of the round."""
        self._dirty = True

    def _roles_up(self) -> list[Role]:
        """The roles of the titled ranks that live."""
        ranks = self.discovery.ranks.items()
        return [rank.role for identity, rank in ranks if rank.titled and not self.verdicts.is_over(identity)]

    def _publish(self) -> None:
        self._dirty = self._publishing = False
        expectation = self.discovery.expectation
        roles = self._roles_up()
        ready = expectation is None or startup.complete(roles, expectation)
        count = startup.counted(roles, expectation)
        message: Message = {
            "type": "state",
            "state": str(self.state),
            "engine": self.discovery.engine,
            "expected": expectation.count if expectation is not None else None,
            "ranks": [
                {
                    "role": str(rank.role), "rank": rank.rank, "pid": rank.identity.pid, "container": rank.container,
                    "start": rank.identity.start, "title": rank.title,
                    "up": not self.verdicts.is_over(rank.identity),
                }
                for rank in self.discovery.ranks.values()
            ],
            "features": {name: getattr(self.features, name) for name in Features.__dataclass_fields__},
            "incident": self.case.id if self.case is not None else "",
            "failed": self.failed,
            "up": self.up,
            "observes": self.observes,
            "endpoint": plain(self.discovery.endpoint),
            "ready": ready,
            "ready_detail": f"{count} of {expectation.count} ranks up" if expectation else f"{count} ranks up",
        }  # fmt: skip
        if message != self._said:
            self._said = message
            self.web.state(message)
