"""Seeing a process die, by every way that the kernel has, the earliest first.

1. A thread's pidfd: of two threads other than the leader. They end within milliseconds of the killing, long before
   the process's memory is torn down; two, since the last thread to go does the tearing.
2. The `exiting` flag in a held `stat`, read at every tick: for a process with one thread, or a kernel without (1).
3. The pidfd: readable when the process is a zombie with no threads left, hung up when it was reaped.
4. Where pidfds are refused, the held `stat` alone, ten times a second.

Descriptors are edge-triggered: a zombie's pidfd stays readable, and level-triggered it would spin a core.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from dataclasses import dataclass, field

from sidecar.errors import EnvironmentDenied, OutOfDescriptors, ProcessGone
from sidecar.model import ExitStatus, Identity, Observation, ProcessExited, ProcessExiting, ProcessReaped
from sidecar.system import clock, pidfd
from sidecar.system.features import Features
from sidecar.system.proc import PF_EXITING, Proc, Stat, read_held_stat, status_from_wait

_WATCHED_THREADS = 2
_EDGE = select.EPOLLIN | select.EPOLLET


@dataclass(slots=True)
class Watched:
    """The descriptors held for one process and what they have told so far."""

    identity: Identity
    stat_fd: int = -1
    pidfd: int = -1
    threads: dict[int, int] = field(default_factory=dict)  # fd -> thread id
    permitted: bool = True
    exiting: bool = False
    exited: bool = False
    reaped: bool = False
    status: ExitStatus = ExitStatus(why_unknown="not yet read")


class Exits:
    """Watches processes through one epoll. Not thread-safe.

    `most` is how many descriptors all of them together may hold: the rest is for looking at /proc, without which there
    is no freeze and no kill. `out_of_descriptors` counts where a process is watched with less than all ways for that.
    """

    def __init__(self, proc: Proc, features: Features, epoll: select.epoll, most: int = 1 << 30) -> None:
        self.watched: dict[Identity, Watched] = {}
        self.out_of_descriptors = 0
        self._proc = proc
        self._features = features
        self._most = most
        self._stats_held = 0
        self._epoll = epoll
        self._by_fd: dict[int, Watched] = {}
        self._certain: dict[Identity, ExitStatus] = {}

    @property
    def needs_fast_polling(self) -> bool:
        """Whether some process can be seen dying by nothing but reading /proc ten times a second."""
        return any(w.pidfd < 0 and not w.reaped for w in self.watched.values())

    def watch(self, identity: Identity, now: float, held_pidfd: int = -1) -> list[Observation]:
        """Watch a process. `held_pidfd`: a pidfd of it that somebody handed over; it becomes ours.

        Returns what is to be said at once: it may have died before.
        """
        if identity in self.watched:
            if held_pidfd >= 0:
                os.close(held_pidfd)
            return []
        watched = Watched(identity, pidfd=held_pidfd)
        self.watched[identity] = watched
        try:
            self._take_descriptor()
            watched.stat_fd = self._proc.open_stat(identity.pid)
            self._stats_held += 1
        except ProcessGone:
            pass
        except OutOfDescriptors:
            self.out_of_descriptors += 1
        stat = self._stat(watched)
        if stat is not None and stat.identity != identity:  # the pid is somebody else's by now
            self._close_stat(watched)
            stat = None
        if stat is not None:
            watched.permitted = self._proc.may_look_at(identity.pid) if stat.zombie else stat.permitted
        if watched.pidfd < 0 and self._features.pidfd and stat is not None and not stat.zombie:
            try:
                self._take_descriptor()
                watched.pidfd = pidfd.open_process(self._proc, identity)
            except OutOfDescriptors:
                self.out_of_descriptors += 1
            except (EnvironmentDenied, ProcessGone):
                pass
        if watched.pidfd >= 0:
            self._by_fd[watched.pidfd] = watched
            self._epoll.register(watched.pidfd, _EDGE)
        self._watch_threads(watched, stat)
        return self._compare(watched, self._stat(watched), now, "discovery")

    def forget(self, identity: Identity) -> None:
        """Close everything that is held for a process."""
        watched = self.watched.pop(identity, None)
        self._certain.pop(identity, None)
        if watched is None:
            return
        for fd in (*watched.threads, watched.pidfd):
            self._drop_fd(fd)
        self._close_stat(watched)
        watched.threads.clear()
        watched.pidfd = -1

    def pidfd_of(self, identity: Identity) -> int:
        """The held pidfd, or -1."""
        watched = self.watched.get(identity)
        return watched.pidfd if watched is not None else -1

    def was_reaped(self, identity: Identity, wait_status: int, now: float) -> list[Observation]:
        """The supervisor has reaped it as its own child: the status is certain."""
        status = self._certain[identity] = status_from_wait(wait_status)
        watched = self.watched.get(identity)
        if watched is None:
            return []
        if watched.reaped and not watched.status.known:  # we saw it gone before we were told
            watched.status = status
            return [ProcessReaped(identity, now, status)]
        return self._gone(watched, now, "reaped by us")

    def owns(self, fd: int) -> bool:
        return fd in self._by_fd

    def on_event(self, fd: int, events: int, now: float) -> list[Observation]:
        """What one epoll event of ours means."""
        watched = self._by_fd.get(fd)
        if watched is None:
            return []
        if fd != watched.pidfd:
            self._drop_fd(fd)
            watched.threads.pop(fd, None)
            return self._compare(watched, self._stat(watched), now, "thread pidfd")
        if events & select.EPOLLHUP and self._features.pidfd_hup:
            return self._gone(watched, now, "pidfd")
        stat = self._stat(watched)
        if stat is None or stat.identity != watched.identity:
            return self._gone(watched, now, "pidfd")
        return self._exited(watched, stat, now, "pidfd")

    def poll(self, identities: Iterable[Identity]) -> list[Observation]:
        """Read the held stats. Cheap: no more is parsed than tells whether the process goes on."""
        seen: list[Observation] = []
        for identity in identities:
            watched = self.watched.get(identity)
            if watched is None or watched.reaped or (watched.exited and self._features.pidfd_hup):
                continue
            if watched.stat_fd >= 0 and not watched.exiting and _goes_on(watched.stat_fd):
                continue
            stat = self._stat(watched)
            seen += self._compare(watched, stat, clock.monotonic(), "stat")
        return seen

    def rewatch_threads(self, identity: Identity) -> None:
        """Pick threads again, for a process that had none or whose watched threads have ended."""
        watched = self.watched.get(identity)
        if watched is not None and len(watched.threads) < _WATCHED_THREADS and not watched.exiting:
            self._watch_threads(watched, self._stat(watched))

    def living(self) -> int:
        """How many of the watched processes are not known to be dying."""
        return sum(not watched.exiting for watched in self.watched.values())

    def seen_early(self, identity: Identity) -> bool:
        """Whether a thread's pidfd tells of this process's death, so that its stat need be read but seldom."""
        watched = self.watched.get(identity)
        return watched is not None and len(watched.threads) >= _WATCHED_THREADS

    def status(self, identity: Identity) -> ExitStatus:
        """The exit status as far as it is known by now."""
        watched = self.watched.get(identity)
        return watched.status if watched is not None else ExitStatus(why_unknown="not watched")

    def _watch_threads(self, watched: Watched, stat: Stat | None) -> None:
        if not self._features.thread_pidfd or stat is None or stat.threads < 2 or stat.zombie:
            return
        held = set(watched.threads.values())
        for tid in self._proc.threads(watched.identity.pid)[1:]:
            if len(watched.threads) >= _WATCHED_THREADS:
                return
            if tid in held:
                continue
            try:
                self._take_descriptor()
                fd = pidfd.open_thread(tid)
            except OutOfDescriptors:
                self.out_of_descriptors += 1
                return
            except (EnvironmentDenied, ProcessGone):
                continue
            watched.threads[fd] = tid
            self._by_fd[fd] = watched
            self._epoll.register(fd, _EDGE)

    def _stat(self, watched: Watched) -> Stat | None:
        if watched.stat_fd >= 0:
            return read_held_stat(watched.stat_fd)
        stat = self._proc.stat(watched.identity.pid)
        return stat if stat is not None and stat.identity == watched.identity else None

    def _compare(self, watched: Watched, stat: Stat | None, now: float, seen_by: str) -> list[Observation]:
        if stat is None:
            return self._gone(watched, now, seen_by)
        if stat.zombie and not stat.holds_resources:
            return self._exited(watched, stat, now, seen_by)
        if stat.exiting:
            return self._exiting(watched, stat, now, seen_by)
        return []

    def _exiting(self, watched: Watched, stat: Stat, now: float, seen_by: str) -> list[Observation]:
        if watched.exiting:
            return []
        watched.exiting = True
        self._learn(watched, stat)
        return [ProcessExiting(watched.identity, now, seen_by, watched.status)]

    def _exited(self, watched: Watched, stat: Stat, now: float, seen_by: str) -> list[Observation]:
        if watched.exited:
            return []
        watched.exiting = watched.exited = True
        self._learn(watched, stat)
        return [ProcessExited(watched.identity, now, seen_by, watched.status)]

    def _gone(self, watched: Watched, now: float, seen_by: str) -> list[Observation]:
        if watched.reaped:
            return []
        seen: list[Observation] = []
        if not watched.status.known:
            certain = self._certain.get(watched.identity)
            if certain is not None:
                watched.status = certain
            elif watched.pidfd >= 0 and self._features.pidfd_info:
                watched.status = pidfd.reaped_status(watched.pidfd)
            else:
                watched.status = ExitStatus(
                    why_unknown="reaped before its status could be read, and this kernel keeps none"
                )
        if not watched.exited:
            watched.exiting = watched.exited = True
            seen.append(ProcessExited(watched.identity, now, seen_by, watched.status))
        watched.reaped = True
        seen.append(ProcessReaped(watched.identity, now, watched.status))
        return seen

    def _learn(self, watched: Watched, stat: Stat) -> None:
        if watched.status.known:
            return
        if not watched.permitted:
            watched.status = ExitStatus(why_unknown="no ptrace right to read it from /proc")
        elif stat.exit_code or stat.flags & PF_EXITING or stat.zombie:
            watched.status = status_from_wait(stat.exit_code)

    def _take_descriptor(self) -> None:
        """Raises `OutOfDescriptors` where one more would be too many."""
        if len(self._by_fd) + self._stats_held >= self._most:
            raise OutOfDescriptors(f"{self._most} descriptors are held for watching already")

    def _close_stat(self, watched: Watched) -> None:
        if watched.stat_fd >= 0:
            os.close(watched.stat_fd)
            self._stats_held -= 1
        watched.stat_fd = -1

    def _drop_fd(self, fd: int) -> None:
        if fd >= 0 and self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            os.close(fd)


def _goes_on(stat_fd: int) -> bool:
    """Whether a held stat shows a process that neither exits nor is a zombie, by its state and flags alone."""
    try:
        data = os.pread(stat_fd, 512, 0)
    except OSError:
        return False
    fields = data[data.rfind(b")") + 2 :].split(b" ", 7)
    return len(fields) > 6 and fields[0] not in (b"Z", b"X") and not int(fields[6]) & PF_EXITING
