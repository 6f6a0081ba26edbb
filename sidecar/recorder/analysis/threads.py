"""The threads of a rank, out of what `py-spy dump --json` says of it. Pure.

Each document is read once, and each place looked up once for every stack that is different: the ranks of an engine run
the same code. The documents tell of processes that may be broken or hostile: nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.policy import stacks
from sidecar.policy.places import Uses
from sidecar.policy.stacks import Frame, Spot
from sidecar.recorder.analysis.collectives import Libraries

_MOST_THREADS = 512  # of one rank
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Thread:
    """`number`: the kernel's for it, or pthread's; 0 for none. `active`: on a processor or in native code, by py-spy's
    word. `frames`: the innermost first."""

    name: str
    number: int
    main: bool
    gil: bool
    active: bool
    frames: tuple[Frame, ...]

    @property
    def id(self) -> tuple[int, str]:
        """The same in two snapshots of a process."""
        return self.number, self.name


class Reader:
    """For the documents of one engine."""

    def __init__(self, engine: str) -> None:
        self._uses = Uses(engine)
        self._libraries = Libraries(self._uses)
        self._spots: dict[tuple[Frame, ...], Spot | None] = {}
        self._families: dict[tuple[Frame, ...], str] = {}

    def threads(self, document: Any, pid: int) -> tuple[Thread, ...]:
        """Those of process `pid`, its main thread first; () for what is no document."""
        if not isinstance(document, list):
            return ()
        main = stacks.main_thread_of(document, pid)
        if main is None:
            return ()
        others = (one for one in document[:_MOST_THREADS] if one is not main and isinstance(one, Mapping))
        usable = [main, *(one for one in others if isinstance(one.get("frames"), list))]
        return tuple(_thread(one, one is main) for one in usable)

    def spot(self, frames: tuple[Frame, ...]) -> Spot | None:
        """Where a thread with these frames stands; None for no frames."""
        found = self._spots.get(frames)
        if found is None and frames:
            found = self._spots[frames] = stacks.spot_in(frames, self._uses)
        return found

    def library(self, frames: tuple[Frame, ...]) -> str:
        """Whose collective a thread with these frames is in, "" for none."""
        found = self._families.get(frames)
        if found is None:
            found = self._families[frames] = self._libraries.family(frames)
        return found


def _thread(told: Mapping[str, Any], main: bool) -> Thread:
    name = told.get("thread_name")
    numbers = (told.get("os_thread_id"), told.get("thread_id"))
    return Thread(
        name=visible(name) if isinstance(name, str) and name else "a thread without a name",
        number=next((number for number in numbers if type(number) is int and number), 0),
        main=main,
        gil=told.get("owns_gil") is True,
        active=told.get("active") is True,
        frames=tuple(stacks.frames_of(told)),
    )


def visible(text: str) -> str:
    """Printable and short: names come from the process that failed."""
    text = text[:_LONGEST]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
