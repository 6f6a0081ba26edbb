"""The stacks of many ranks as one tree: what they have in common once, and where they part. Pure.

Input is what `py-spy dump --json` says of each rank. It comes from processes that may be broken or hostile: nothing
here raises, everything is bounded, and the cost grows with the number of frames alone. A node is a function of a file;
its lines, which jitter, tell no two nodes apart, nor do addresses, which are others in every process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.policy import stacks
from sidecar.policy.stacks import Frame, Spot
from sidecar.recorder.analysis.rank_sets import Ranks
from sidecar.recorder.analysis.threads import Reader, Thread, visible

MOST_RANKS = 4096
_MOST_NODES = 100_000
_MOST_LINES = 4  # of one node
_MOST_STANDS = 50_000
_DIGITS = re.compile(r"[0-9]+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")  # py-spy's name for a native frame without a symbol


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


# What is known of a thread, as bits of one number.
GIL, ACTIVE = 1, 2
CHANGED = 4  # its stack, lines included, is not what it was in the snapshot before


@dataclass(frozen=True, slots=True)
class Stand:
    """One thread of one rank. `rank`: its place among the ranks. `node`: its innermost frame's, `root` where it has no
    frames."""

    rank: int
    root: Node
    node: Node
    line: int
    flags: int


@dataclass(slots=True)
class Merged:
    """`main` has the main threads, `others` one tree for each name of a thread, without its digits. The roots stand
    for no frame. `spots`: where each rank's main thread stands. `stands`: every thread, by ranks in the order in which
    they came. `dropped`, `unlisted`: frames and threads beyond what is kept."""

    ranks: Ranks
    main: Node
    others: dict[str, Node]
    spots: dict[str, Spot]
    holders: list[Holder]
    stands: list[Stand]
    dropped: int = 0
    unlisted: int = 0

    @property
    def fingerprint(self) -> str:
        return stacks.fingerprint(self.spots)


def merge(dumps: Sequence[Dump], engine: str) -> Merged:
    """One tree of every thread of every rank, the outermost frame first."""
    reader = Reader(engine)
    merger = Merger((dump.rank for dump in dumps[:MOST_RANKS]), reader)
    for dump in dumps[:MOST_RANKS]:
        merger.add(dump.rank, reader.threads(dump.threads, dump.pid))
    return merger.merged


class Merger:
    """For dumps that come one by one, so that not all of them are in memory at once."""

    def __init__(self, ranks: Iterable[str], reader: Reader, before: Merger | None = None) -> None:
        """`before`: of the snapshot that this one is compared with; a rank is to be added there first."""
        self.merged = Merged(Ranks(ranks), Node("", ""), {}, {}, [], [])
        self._reader = reader
        self._before = before
        self._stacks: dict[str, dict[tuple[int, str], tuple[Frame, ...]]] = {}  # of each rank's threads
        self._nodes = 0
        self._files: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._roots: dict[str, Node] = {}

    def add(self, rank: str, threads: Sequence[Thread]) -> None:
        """Of a rank that was named at the beginning, its main thread first; any other is left out."""
        bit = self.merged.ranks.bits.get(rank, 0)
        if not bit or not threads:
            return
        before = self._before._stacks.get(rank) if self._before is not None else None
        kept = self._stacks[rank] = {}
        place = bit.bit_length() - 1
        for thread in threads:
            root = self.merged.main if thread.main else self._root(thread.name)
            node = self._thread(root, thread.frames, bit)
            kept[thread.id] = thread.frames
            flags = GIL * thread.gil | ACTIVE * thread.active
            if before is not None and before.get(thread.id) != thread.frames:
                flags |= CHANGED
            if len(self.merged.stands) < _MOST_STANDS:
                line = thread.frames[0].line if thread.frames else 0
                self.merged.stands.append(Stand(place, root, node, line, flags))
            else:
                self.merged.unlisted += 1
            spot = self._reader.spot(thread.frames) if thread.main or thread.gil else None
            if thread.main and spot is not None:
                self.merged.spots[rank] = spot
            if thread.gil:
                self.merged.holders.append(Holder(rank, thread.name, thread.main, spot.name if spot else ""))

    def _root(self, name: str) -> Node:
        root = self._roots.get(name)
        if root is None:
            root = self._roots[name] = self.merged.others.setdefault(_DIGITS.sub("N", name), Node("", ""))
        return root

    def _thread(self, root: Node, frames: tuple[Frame, ...], bit: int) -> Node:
        node = root
        node.ranks |= bit
        node.threads += 1
        for done, (function, path, line) in enumerate(reversed(frames)):
            key = self._function(function), self._file(path)
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
            if line and line not in node.lines and len(node.lines) < _MOST_LINES:
                node.lines.append(line)
        node.ends += 1
        return node

    def _function(self, function: str) -> str:
        found = self._functions.get(function)
        if found is None:
            found = self._functions[function] = _ADDRESS.sub("0x…", visible(function))
        return found

    def _file(self, path: str) -> str:
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = visible("/".join(path.split("/")[-2:]))
        return found


def walk(root: Node) -> Iterator[tuple[Node, int, Node]]:
    """(node, how deep, its parent), every node before its children; those most threads stand in come first."""
    waiting = [(child, 0, root) for child in _sorted(root)]
    while waiting:
        node, depth, parent = waiting.pop()
        yield node, depth, parent
        waiting += [(child, depth + 1, node) for child in _sorted(node)]


def _sorted(node: Node) -> Iterable[Node]:
    """The last is the first to be walked."""
    if len(node.children) < 2:  # most have one
        return node.children.values()
    return sorted(node.children.values(), key=lambda child: (child.threads, child.function, child.file))
