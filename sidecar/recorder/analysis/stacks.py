"""The stacks of many ranks as one tree: what they have in common once, and where they part. Pure.

Input is what `py-spy dump --json` says of each rank. It comes from processes that may be broken or hostile: nothing
here raises, everything is bounded, and the cost grows with the number of frames alone. A node is a function of a file;
its lines, which jitter, tell no two nodes apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.policy import stacks
from sidecar.policy.stacks import Spot
from sidecar.recorder.analysis.rank_sets import Ranks

MOST_RANKS = 4096
_MOST_THREADS = 512  # of one rank
_MOST_NODES = 100_000
_MOST_LINES = 4  # of one node
_DIGITS = re.compile(r"[0-9]+")
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Dump:
    """What py-spy said of one rank."""

    rank: str
    pid: int
    threads: Sequence[Any]


@dataclass(slots=True)
class Node:
    """`threads`: how many stand here, of all ranks together; `ends`: in how many of them it is the innermost."""

    function: str
    file: str
    children: dict[tuple[str, str], Node] = field(default_factory=dict)
    ranks: int = 0
    threads: int = 0
    ends: int = 0
    lines: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        where = ",".join(map(str, sorted(self.lines)[:_MOST_LINES]))
        return f"{self.function} ({self.file}{f':{where}' if where else ''})"


@dataclass(frozen=True, slots=True)
class Holder:
    """A thread that holds its process's GIL, and where."""

    rank: str
    thread: str
    main: bool
    place: str


@dataclass(slots=True)
class Merged:
    """`main` has the main threads, `others` one tree for each name of a thread, without its digits. The roots stand
    for no frame. `spots`: where each rank's main thread stands. `dropped`: frames beyond what is kept."""

    ranks: Ranks
    main: Node
    others: dict[str, Node]
    spots: dict[str, Spot]
    holders: list[Holder]
    dropped: int = 0

    @property
    def fingerprint(self) -> str:
        return stacks.fingerprint(self.spots)


def merge(dumps: Sequence[Dump], engine: str) -> Merged:
    """One tree of every thread of every rank, the outermost frame first."""
    merger = Merger((dump.rank for dump in dumps[:MOST_RANKS]), engine)
    for dump in dumps[:MOST_RANKS]:
        merger.add(dump)
    return merger.merged


class Merger:
    """For dumps that come one by one, so that not all of them are in memory at once.

    Places are looked up once for each stack that is different: the ranks of an engine run the same code.
    """

    def __init__(self, ranks: Iterable[str], engine: str) -> None:
        self.merged = Merged(Ranks(ranks), Node("", ""), {}, {}, [])
        self._engine = engine
        self._nodes = 0
        self._spots: dict[tuple[stacks.Frame, ...], Spot | None] = {}
        self._names: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, dump: Dump) -> None:
        """Of a rank that was named at the beginning; any other is left out."""
        bit = self.merged.ranks.bits.get(dump.rank, 0)
        main = stacks.main_thread_of(dump.threads, dump.pid)
        if main is None or not bit:
            return
        frames = stacks.frames_of(main)
        self._thread(self.merged.main, frames, bit)
        spot = self._spot(frames)
        if spot is not None:
            self.merged.spots[dump.rank] = spot
        for thread in dump.threads[:_MOST_THREADS]:
            if not isinstance(thread, Mapping) or not isinstance(thread.get("frames"), list):
                continue
            if thread.get("owns_gil") is True:
                place = self._spot(stacks.frames_of(thread))
                holder = Holder(dump.rank, thread_name(thread), thread is main, place.name if place else "")
                self.merged.holders.append(holder)
            if thread is not main:
                root = self.merged.others.setdefault(_DIGITS.sub("N", thread_name(thread)), Node("", ""))
                self._thread(root, stacks.frames_of(thread), bit)

    def _spot(self, frames: list[stacks.Frame]) -> Spot | None:
        key = tuple(frames)
        if key not in self._spots:
            self._spots[key] = stacks.spot_in(frames, self._engine)
        return self._spots[key]

    def _thread(self, root: Node, frames: list[stacks.Frame], bit: int) -> None:
        node = root
        node.ranks |= bit
        node.threads += 1
        for done, frame in enumerate(reversed(frames)):
            key = self._key(frame)
            child = node.children.get(key)
            if child is None:
                if self._nodes >= _MOST_NODES:
                    self.merged.dropped += len(frames) - done
                    break
                child = node.children[key] = Node(*key)
                self._nodes += 1
            node = child
            node.ranks |= bit
            node.threads += 1
            if frame.line and frame.line not in node.lines and len(node.lines) < _MOST_LINES:
                node.lines.append(frame.line)
        node.ends += 1

    def _key(self, frame: stacks.Frame) -> tuple[str, str]:
        key = frame.function, frame.path
        found = self._names.get(key)
        if found is None:
            found = self._names[key] = visible(frame.function), visible("/".join(frame.path.split("/")[-2:]))
        return found


def thread_name(thread: Mapping[str, Any]) -> str:
    name = thread.get("thread_name")
    return visible(name) if isinstance(name, str) and name else "a thread without a name"


def visible(text: str) -> str:
    """Printable and short: names come from the process that failed."""
    text = text[:_LONGEST]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def walk(root: Node) -> Iterator[tuple[Node, int, Node]]:
    """(node, how deep, its parent), every node before its children; those most threads stand in come first."""
    waiting = [(child, 0, root) for child in _sorted(root)]
    while waiting:
        node, depth, parent = waiting.pop()
        yield node, depth, parent
        waiting += [(child, depth + 1, node) for child in _sorted(node)]


def _sorted(node: Node) -> list[Node]:
    """The last is the first to be walked."""
    return sorted(node.children.values(), key=lambda child: (child.threads, child.function, child.file))
