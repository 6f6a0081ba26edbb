"""Which of the processes are the engine's ranks, and how many there should be.

A process is known by its title, by the command line of a server, by being a spawned child of a server that has no
title yet, or by the environment that a launcher gives its ranks. It keeps its identity when the title comes or
changes. Helpers (a shell, `lscpu`, the resource tracker, a `kubectl exec`) are none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.engines.profile import Endpoint, Expected, Profile, Title
from sidecar.engines.python_processes import is_forkserver, is_resource_tracker, is_spawned_child
from sidecar.guard.census import Census, Known
from sidecar.masking import mask_arguments
from sidecar.model import Identity, RankProcess, Role
from sidecar.policy.startup import Expectation
from sidecar.settings import ENGINE_VARIABLE

# Whose untitled children may be ranks to be.
_PARENTS_OF_RANKS = (Role.SERVER, Role.ENGINE_CORE, Role.CONTROLLER)


class Discovery:
    """Turns the census into ranks. `root`: the told root of the engine's tree, in wrap mode the command's process."""

    def __init__(
        self,
        census: Census,
        profiles: Sequence[Profile],
        expected_ranks: int | None,
        root: Identity | None,
        bound_to_root: bool,
        marker: str,
    ) -> None:
        self.census = census
        self.ranks: dict[Identity, RankProcess] = {}
        self.given_up: set[Identity] = set()  # killed, yet not gone: never ranks again
        self.engine = ""
        self.expectation: Expectation | None = None
        self.endpoint: Endpoint | None = None
        self.engine_sessions: set[int] = set()
        self._profiles = profiles
        self._told = expected_ranks
        self._root = root
        self._bound = bound_to_root
        self._marker = marker
        self._untitled = 0
        self._dropped: list[RankProcess] = []
        if expected_ranks is not None:
            self.expectation = Expectation(expected_ranks, (), f"told: {expected_ranks}")

    def adopt(self, ranks: Iterable[RankProcess]) -> None:
        """Take over what an earlier guard knew."""
        for rank in ranks:
            self._keep(rank)

    def set_root(self, root: Identity) -> None:
        """The wrapped command was started."""
        self._root = root
        self.census.forget_all()

    def forget(self, identity: Identity) -> None:
        """The process is over; its label may be used again."""
        self.ranks.pop(identity, None)

    def new_generation(self) -> None:
        """The engine is gone. What the next one's command line says is read anew."""
        self.ranks.clear()
        self.engine_sessions.clear()
        self.given_up = {i for i in self.given_up if self._is_there(i)}
        if not self._bound:
            self.census.start_over()
        self.engine = ""
        self.endpoint = None
        self._untitled = 0
        self.expectation = Expectation(self._told, (), f"told: {self._told}") if self._told is not None else None

    def _is_there(self, identity: Identity) -> bool:
        stat = self.census.proc.stat(identity.pid)
        return stat is not None and stat.identity == identity

    def look(self, now: float) -> list[RankProcess]:
        """Read what is due; returns the ranks that are new or have another role or label than before."""
        if self.census.moved():
            # By age, not by pid: pids wrap, and a parent must be known before its child.
            for known in sorted(self.census.sweep(now), key=_age):
                self._inherit(known)
        changed = []
        for known in self.census.due(now):
            first = known.reads == 0
            said_more = self.census.read(known, now)
            if self._marker and first:
                self._look_for_marker(known)
            # A forked child says the same as its parent and is told from a passing helper by still being there.
            if said_more or (known.reads == 2 and not known.rank):
                rank = self._identify(known)
                before = self.ranks.get(known.identity)
                if rank is not None and rank != before:
                    self._keep(rank)
                    changed.append(rank)
                elif rank is None and said_more and before is not None and (not before.titled or known.inherited):
                    known.rank = ""  # it has told what it is, and it is no rank
                    self._dropped.append(before)
        return changed

    def take_dropped(self) -> list[RankProcess]:
        """Those that looked like ranks to be and have turned out to be none."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def take_in(self, fresh: Iterable[Known], now: float) -> None:
        """Give processes that a freeze has found their place in the tree."""
        for known in sorted(fresh, key=_age):
            self._inherit(known)
            if self._marker:
                self._look_for_marker(known)

    def bound(self) -> frozenset[int] | None:
        """The pids to which everything is bound by --root-pid or by wrap mode, or None."""
        if not self._bound:
            return None
        return frozenset(pid for pid, known in self.census.table.items() if known.member)

    def seeds(self) -> set[Identity]:
        """Everything known to be the engine's: its ranks, and whatever was once seen to descend from them."""
        members = {known.identity for known in self.census.table.values() if known.member}
        return (set(self.ranks) | members) - self.given_up

    def roles(self) -> list[Role]:
        """The roles of the ranks that say what they are."""
        return [rank.role for rank in self.ranks.values() if rank.titled]

    def untitled(self) -> int:
        """How many children of the engine have no title."""
        return sum(not rank.titled for rank in self.ranks.values())

    def _identify(self, known: Known) -> RankProcess | None:
        if not self._in_scope(known):
            return None
        if is_resource_tracker(known.argv):
            # The forkserver's child has the forkserver's own command line.
            parent = self.census.table.get(known.ppid)
            forked = is_forkserver(known.argv) and parent is not None and is_forkserver(parent.argv)
            return self._untitled_child(known) if forked and self._is_child_of_engine(known) else None
        for profile in self._profiles:
            title = profile.title(known.argv, known.environ)
            if title is not None:
                return self._titled(known, profile, title)
        for profile in self._profiles:
            if profile.is_server(known.argv):
                return self._server(known, profile)
        if is_spawned_child(known.argv) and self._is_child_of_engine(known):
            return self._untitled_child(known)
        if known.identity == self._root:
            return self._make(known, Role.SERVER, "command" if self._marker else "root", titled=True)
        return None

    def _titled(self, known: Known, profile: Profile, title: Title) -> RankProcess | None:
        if profile.environment and self._holds_label(known, title.rank):
            return None  # a rank's helper has inherited the rank's environment
        # Between its fork and its exec a rank's compiler has the rank's own title, and its end is no rank's.
        known.inherited = self._is_copy_of_a_rank(known)
        if known.inherited and known.reads < 2:
            return None
        self._learn(profile, profile.expected(known.argv, known.environ))
        return self._make(known, title.role, title.rank, titled=not title.provisional)

    def _server(self, known: Known, profile: Profile) -> RankProcess | None:
        if self._is_copy_of_a_rank(known):
            # Forked by the server (vLLM's default where CUDA is not up yet): a rank to be, once it has lasted.
            return self._untitled_child(known) if known.reads >= 2 else None
        environ = self.census.read_environ(known.identity.pid, profile.server_environment)
        self._learn(profile, profile.expected(known.argv, environ))
        self.endpoint = self.endpoint or profile.endpoint(known.argv, environ)
        return self._make(known, Role.SERVER, "server", titled=True)

    def _is_copy_of_a_rank(self, known: Known) -> bool:
        """Whether it says nothing but what the rank that forked it says."""
        above = (one for one in self.census.ancestors(known) if one.identity in self.ranks)
        return any(ancestor.argv == known.argv for ancestor in above)

    def _untitled_child(self, known: Known) -> RankProcess:
        before = self.ranks.get(known.identity)
        if before is not None:
            return before
        label = f"untitled{self._untitled}"
        self._untitled += 1
        return self._make(known, Role.WORKER, label, titled=False)

    def _is_child_of_engine(self, known: Known) -> bool:
        for ancestor in self.census.ancestors(known):
            rank = self.ranks.get(ancestor.identity)
            if rank is not None:
                return rank.role in _PARENTS_OF_RANKS or not rank.titled
            if not is_forkserver(ancestor.argv):
                return False
        return False

    def _holds_label(self, known: Known, label: str) -> bool:
        return any(rank.rank == label and identity != known.identity for identity, rank in self.ranks.items())

    def _make(self, known: Known, role: Role, label: str, titled: bool) -> RankProcess:
        before = self.ranks.get(known.identity)
        if before is None or before.rank.rpartition("#")[0] != label:
            wanted, number = label, 2
            while self._holds_label(known, label):
                label = f"{wanted}#{number}"
                number += 1
        else:
            label = before.rank
        title = " ".join(mask_arguments(known.argv))[:200]
        return RankProcess(
            identity=known.identity, role=role, rank=label, title=title, ppid=known.ppid,
            pgid=known.pgid, sid=known.sid, container=known.container, titled=titled,
        )  # fmt: skip

    def _learn(self, profile: Profile, expected: Expected | None) -> None:
        self.engine = self.engine or profile.name
        if expected is not None and self._told is None and self.expectation is None:
            self.expectation = Expectation(expected.count, expected.roles, expected.why)

    def _keep(self, rank: RankProcess) -> None:
        self.ranks[rank.identity] = rank
        if rank.sid == rank.identity.pid:
            self.engine_sessions.add(rank.sid)
        known = self.census.table.get(rank.identity.pid)
        if known is not None and known.identity == rank.identity:
            known.rank = rank.rank
            if not known.member:
                known.member = True
                self._mark_descendants(known)

    def _inherit(self, known: Known) -> None:
        pid = known.identity.pid
        if pid in self.census.own:
            return
        parent = self.census.table.get(known.ppid)
        if known.identity == self._root or (parent is not None and parent.member):
            known.member = True
        before = self.ranks.get(known.identity)
        if before is not None:  # the census was started over
            known.member = True
            known.rank = before.rank
        if known.member and known.sid == pid:
            self.engine_sessions.add(known.sid)

    def _mark_descendants(self, top: Known) -> None:
        marked = {top.identity.pid}
        grew = True
        while grew:
            grew = False
            for pid, known in self.census.table.items():
                if pid not in marked and known.ppid in marked and pid not in self.census.own:
                    known.member = True
                    marked.add(pid)
                    grew = True

    def _look_for_marker(self, known: Known) -> None:
        """A double-forked descendant of a wrapped command has nothing of it but its environment."""
        if known.member or known.identity.pid in self.census.own:
            return
        data = self.census.proc.environ(known.identity.pid)
        if data and f"{ENGINE_VARIABLE}={self._marker}".encode() in data.split(b"\0"):
            known.member = True
            if known.sid == known.identity.pid:
                self.engine_sessions.add(known.sid)

    def _in_scope(self, known: Known) -> bool:
        pid = known.identity.pid
        if pid <= 1 or pid in self.census.own or known.identity in self.given_up:
            return False
        if self.census.own_container and known.container == self.census.own_container:
            return False
        return known.member or not self._bound


def _age(known: Known) -> tuple[int, int]:
    return known.identity.start, known.identity.pid
