"""Which deaths were the kernel's, for memory: the counters of the ranks' cgroups, each rise given to one death."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.model import ExitStatus, Identity, RankProcess
from sidecar.system.cgroup import OomCounter
from sidecar.system.proc import Proc


class MemoryKills:
    """`given` holds how many kills each cgroup's deaths have been given, by the text of /proc/PID/cgroup.

    `changed` is called when it has changed: a later guard must neither give a kill to a second death, nor miss one that
    happened while there was no guard.
    """

    def __init__(self, proc: Proc, changed: Callable[[], None]) -> None:
        self.given: dict[str, int] = {}
        self._proc = proc
        self._changed = changed
        self._counters: dict[str, OomCounter] = {}
        self._of: dict[Identity, OomCounter] = {}
        self._in: dict[str, OomCounter] = {}  # by container, for a rank that was gone before anybody looked

    def watch(self, rank: RankProcess) -> None:
        """Open the memory events of the rank's cgroup while it lives; ranks of one cgroup share a counter."""
        if rank.identity in self._of:
            return
        key = self._proc.cgroup(rank.identity.pid)
        if not key:
            return
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = OomCounter(self._proc, rank.identity.pid, self.given.get(key))
            self._note()
        self._of[rank.identity] = counter
        if rank.container:
            self._in[rank.container] = counter

    def explains(self, identity: Identity, container: str, status: ExitStatus) -> str | None:
        """The limit in words, `container limit 64 GiB`, if this death was a kill for memory ("" where there is no
        limit), else None. Asked once for each death.
        """
        counter = self._of.get(identity) or self._in.get(container)
        if status.signal != 9 or counter is None or not counter.take():
            return None
        self._note()
        return f"{'container' if container else 'cgroup'} limit {_size(counter.limit)}" if counter.limit else ""

    def new_generation(self) -> None:
        """The engine is gone."""
        for counter in self._counters.values():
            counter.close()
        for kept in (self._counters, self._of, self._in, self.given):
            kept.clear()

    def _note(self) -> None:
        self.given |= {key: counter.seen for key, counter in self._counters.items()}
        self._changed()


def _size(count: int) -> str:
    """`64 GiB`, `1.5 GiB`, `96 MiB`."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.4g} {name}"
