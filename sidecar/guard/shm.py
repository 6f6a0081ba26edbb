"""Shared memory of the killed: noted while they are frozen, removed once they are gone."""

from __future__ import annotations

import os

from sidecar.model import Identity
from sidecar.system import clock
from sidecar.system import shm as shared
from sidecar.system.proc import Proc

_LOOKING = 0.5  # seconds that may go into finding out who else uses what was left


class Leftovers:
    """What the engine has under /dev/shm. `patterns` are the names that engines use."""

    def __init__(self, proc: Proc, patterns: tuple[str, ...], in_pod: bool) -> None:
        self._proc = proc
        self._patterns = patterns
        self._refused = shared.may_remove(proc, in_pod)
        self._seen: set[str] = set()
        self._looked_at: set[Identity] = set()
        self._in_pod = in_pod
        self._folder = -1

    def attach(self, pid: int) -> None:
        """Open the /dev/shm that this process sees, while it lives: it can be a volume that we do not mount."""
        if self._folder >= 0:
            return
        own = [] if self._in_pod else ["/dev/shm"]  # noqa: S108
        for path in (f"{self._proc.root}/{pid}/root/dev/shm", *own):
            try:
                self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            return

    def forget(self) -> None:
        """Those that were looked at live on: what they map is theirs."""
        self._seen.clear()
        self._looked_at.clear()

    def detach(self) -> None:
        """The engine is gone; the next one may see another."""
        self.forget()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def snapshot(self, members: list[Identity], budget: float) -> None:
        """Note what these processes map, for at most `budget` seconds. One in D state is passed over: its mmap lock
        may never be free.
        """
        end = clock.monotonic() + budget
        for identity in members:
            if identity in self._looked_at:
                continue
            if clock.monotonic() > end:
                return
            stat = self._proc.stat(identity.pid)
            if stat is None or stat.identity != identity or stat.exiting or stat.state == "D":
                continue
            names = shared.names_held(self._proc, identity.pid)
            self._looked_at.add(identity)
            self._seen |= names or set()

    def remove(self) -> tuple[list[str], str]:
        """Remove what the killed left and nobody uses. Returns (removed, what was left and why, or "")."""
        seen, self._seen, self._looked_at = self._seen, set(), set()
        if not seen:
            return [], ""
        refused = self._refused or ("" if self._folder >= 0 else "the engine's /dev/shm is not ours")
        if refused:
            return [], f"{', '.join(sorted(seen))}: {refused}"
        removed, kept, why = shared.remove_leftovers(
            self._proc, seen, self._patterns, self._folder, clock.monotonic() + _LOOKING
        )
        return removed, f"{', '.join(kept)}: {why}" if kept else ""
