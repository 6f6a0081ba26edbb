"""What every check has in common: one signature, what it is given, and how it says what it found.

A check is a function (scene, step) that gives what it found of one capability or a few related ones. It runs in a
fork of its own that may be ended at any moment, so it leaves nothing behind that matters. `step` says in words what it
is at, for the case that it hangs there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.checkup import Order, Remedy, Status
from sidecar.doctor.credentials import Credentials
from sidecar.model import Identity
from sidecar.settings import Settings
from sidecar.system.proc import Proc


@dataclass(frozen=True, slots=True)
class Target:
    """A process to try things on, and `like` more of its container and with its rights that stand behind it.

    `title` is its masked command line, made printable. `engine`: it is the engine's, by a title, by its parents, by the
    guard's or a person's word. `gpu_role`: it may hold a GPU. `init`: PID 1, which is looked at and never signalled.
    """

    identity: Identity
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    permitted: int
    container: str
    title: str
    role: str = ""
    rank: str = ""
    engine: bool = False
    init: bool = False
    like: int = 0

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.uids, self.gids, self.permitted)

    @property
    def named(self) -> str:
        """`TP0 (4711, uid 0) and 7 like it`."""
        more = f" and {self.like} like it" if self.like else ""
        return f"{self.rank or self.title[:60] or 'process'} ({self.pid}, uid {self.uids[1]}){more}"


@dataclass(frozen=True, slots=True)
class Scene:
    """`targets`: one of each kind, the engine's first. `engine`: all processes of the engine, its ranks first.

    `blind` says why no process could be looked for, "" where they could.
    """

    settings: Settings
    order: Order
    proc: Proc
    own: Credentials
    python: str
    wraps: bool = False
    targets: tuple[Target, ...] = ()
    engine: tuple[Target, ...] = ()
    shared: bool | None = None
    blind: str = ""

    @property
    def ranks(self) -> tuple[Target, ...]:
        """The engine's processes that may have a GPU."""
        return tuple(target for target in self.engine if target.role in ("scheduler", "worker", "engine_core"))


@dataclass(frozen=True, slots=True)
class Found:
    capability: str
    status: Status
    seen: str
    remedies: tuple[Remedy, ...] = ()


Step = Callable[[str], None]
Check = Callable[[Scene, Step], tuple[Found, ...]]
