"""Who is there: the table of every process in the PID namespace, kept up to date at next to no cost.

/proc is listed only when the newest pid moved. Of a new process the guard reads `stat` once and the command line; of
one that is not yet identified the command line again, often at first and then ever more seldom, since a title comes
late (tens of seconds) and `exec` changes the command line under the same pid and start time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sidecar.engines.python_processes import clean_argv
from sidecar.model import Identity
from sidecar.policy.membership import Process
from sidecar.system import cgroup, clock
from sidecar.system.proc import Proc, Stat

# In seconds: the pauses between two readings of a command line, how long a process is looked at closely, and how
# long readings may take at a time.
_FIRST_REREAD = 0.25
_LAST_REREAD = 30.0
_YOUNG = 20.0
_MOMENT = 0.0015


@dataclass(slots=True)
class Known:
    """One process as last read. `argv` is what it last said; `member`: it belonged to the engine once, so always."""

    identity: Identity
    ppid: int
    pgid: int
    sid: int
    comm: str
    first_seen: float
    container: str = ""
    argv: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    next_read: float = 0.0
    reads: int = 0
    member: bool = False
    over: bool = False  # a zombie that holds nothing any more
    rank: str = ""  # its label once it is watched
    inherited: bool = False  # the title by which it is watched is that of the rank that forked it

    def as_process(self) -> Process:
        return Process(self.identity, self.ppid, self.pgid, self.sid, self.container)


class Census:
    """The table. `environment` are the variables to read from each new process, () for none."""

    def __init__(self, proc: Proc, own_root: int, environment: tuple[str, ...]) -> None:
        self.proc = proc
        self.table: dict[int, Known] = {}
        self.own: set[int] = set()
        self._own_root = own_root
        self._own_sid = own_stat.sid if (own_stat := proc.stat(own_root)) is not None else 0
        self._kernel: set[int] = set()
        self._next_due = 0.0
        self._environment = environment
        self._newest: int | None = -1
        self.own_container = cgroup.container_id(proc.cgroup(own_root))

    def moved(self) -> bool:
        """Whether a process was started since the last `sweep`."""
        newest = self.proc.newest_pid()
        return newest is None or newest != self._newest

    def sweep(self, now: float) -> list[Known]:
        """List /proc. Returns the processes that are new (or new under a used pid); the gone leave the table."""
        self._newest = self.proc.newest_pid()
        present = set(self.proc.pids())
        self._kernel &= present
        for pid in self.table.keys() - present:
            self._drop(pid)
        fresh = []
        for pid in sorted(present - self.table.keys() - self._kernel, key=lambda pid: (pid != self._own_root, pid)):
            stat = self.proc.stat(pid)
            if stat is not None and (known := self._add(stat, now)) is not None:
                fresh.append(known)
        return fresh

    def refresh(self, now: float) -> list[Known]:
        """Read every stat anew: parents, groups and sessions change. For the freeze, which must miss nobody."""
        self._newest = self.proc.newest_pid()
        fresh = []
        seen = set()
        present = set(self.proc.pids())
        self._kernel &= present
        for pid in sorted(present - self._kernel):
            known = self.table.get(pid)
            stat = self.proc.stat(pid)
            if stat is None:
                continue
            seen.add(pid)
            if known is not None and known.identity == stat.identity:
                known.ppid, known.pgid, known.sid, known.comm = stat.ppid, stat.pgid, stat.sid, stat.comm
                known.over = not stat.holds_resources
            elif (added := self._add(stat, now)) is not None:
                fresh.append(added)
        for pid in self.table.keys() - seen:
            self._drop(pid)
        return fresh

    def due(self, now: float) -> Iterator[Known]:
        """The processes whose command line is to be read now, to be read while iterating: the new ones first, and then
        as many others as fit into a moment, since a death is not seen meanwhile.
        """
        if now < self._next_due:
            return
        soonest = now + _LAST_REREAD
        ready = []
        for known in self.table.values():
            if known.next_read > now:
                soonest = min(soonest, known.next_read)
            elif known.identity.pid not in self.own:
                ready.append(known)
        ready.sort(key=lambda known: (known.reads > 0, known.next_read))
        for known in ready:
            if known.reads and clock.monotonic() - now > _MOMENT:
                soonest = now
                break
            yield known
            soonest = min(soonest, known.next_read)
        self._next_due = soonest

    def read(self, known: Known, now: float) -> bool:
        """Read the command line again. True if it changed. An empty one (a zombie's) changes nothing.

        The caller has read `stat` first where the process may be stuck: this read can block on one in D state.
        """
        age = now - known.first_seen
        known.reads += 1
        known.next_read = now + min(max(_FIRST_REREAD, age / 4), _LAST_REREAD)
        settled = not known.member or (known.rank and not known.rank.startswith("untitled"))
        # What execs or takes another title has another name as well, nearly always, and a name can be read without
        # the lock that a stuck process may hold.
        if settled and age > _YOUNG and known.reads % 8 != 0 and self.proc.comm(known.identity.pid) in (known.comm, ""):
            return False
        if known.reads > 1:
            stat = self.proc.stat(known.identity.pid)
            if stat is None or stat.identity != known.identity or stat.state == "D":
                return False
            known.ppid, known.pgid, known.sid, known.comm = stat.ppid, stat.pgid, stat.sid, stat.comm
        argv = clean_argv(self.proc.cmdline(known.identity.pid))
        if not argv or argv == known.argv:
            return False
        known.argv = argv
        if self._environment:
            known.environ = self.read_environ(known.identity.pid, self._environment)
        return True

    def ancestors(self, known: Known) -> Iterator[Known]:
        """The parent, its parent, and so on, as far as the table knows them."""
        seen = {known.identity.pid}
        parent = self.table.get(known.ppid)
        while parent is not None and parent.identity.pid not in seen:
            yield parent
            seen.add(parent.identity.pid)
            parent = self.table.get(parent.ppid)

    def _add(self, stat: Stat, now: float) -> Known | None:
        if stat.kernel_thread:
            self._kernel.add(stat.pid)
            return None
        self._drop(stat.pid)
        known = Known(stat.identity, stat.ppid, stat.pgid, stat.sid, stat.comm, now)
        if self._is_own(stat):
            self.own.add(stat.pid)
        else:
            known.container = cgroup.container_id(self.proc.cgroup(stat.pid))
        known.over = not stat.holds_resources
        self.table[stat.pid] = known
        if stat.zombie or stat.kill_pending or stat.pid in self.own:  # what is being killed is nobody's rank any more
            known.next_read = float("inf")
        else:
            self._next_due = 0.0
        return known

    def _is_own(self, stat: Stat) -> bool:
        """Whether a process is Rankguard's. In wrap mode the engine's root and its orphans are the supervisor's
        children too, but never in its session.
        """
        if stat.ppid == self._own_root:
            return stat.sid == self._own_sid
        return stat.pid == self._own_root or stat.ppid in self.own

    def start_over(self) -> None:
        """The engine is gone: what belonged to it belongs to nothing, and the next one is identified anew."""
        for known in self.table.values():
            if known.member or known.rank:
                known.member, known.rank, known.argv, known.next_read = False, "", (), 0.0
        self._next_due = 0.0

    def forget_all(self) -> None:
        """Start over: what was read before is wrong (the engine's root was seen before its setsid)."""
        self.table.clear()
        self.own.clear()
        self._newest = -1
        self._next_due = 0.0

    def _drop(self, pid: int) -> None:
        self.table.pop(pid, None)
        self.own.discard(pid)

    def read_environ(self, pid: int, names: tuple[str, ...]) -> dict[str, str]:
        """These variables of a process's environment, as far as they are set and may be read; nothing else of it."""
        found = {}
        for item in ((self.proc.environ(pid) if names else None) or b"").split(b"\0"):
            name, equals, value = item.partition(b"=")
            text = name.decode("utf-8", "backslashreplace")
            if equals and text in names:
                found[text] = value.decode("utf-8", "backslashreplace")
        return found
