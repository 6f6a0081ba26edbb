"""`analysis/stacks.json` of an incident, read as if an enemy had written it: the merged stacks of its snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.dumps.files import open_file
from sidecar.dumps.values import number, parts, text

FILE = "analysis/stacks.json"
_LARGEST = 16 << 20  # bytes; the recorder keeps at most 12 MiB
_MOST_VALUES = 1_000_000  # what is bounded when it is written has fewer
_MOST_RANKS = 4096  # as many as are merged when it is written
_MOST_SETS = 100_000  # of ranks; each is a number of so many bits
_LONGEST = 120  # characters of a name
MOVED = 4  # of a thread's flags: its stack is not what it was in the first snapshot


@dataclass(frozen=True, slots=True)
class Node:
    """A call. `parent`: its caller's place in the list, always an earlier one, -1 for none. `ranks`: bits."""

    parent: int
    name: str
    ranks: int
    threads: int
    ends: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The stacks of all threads of one name; of all main threads where `main`."""

    thread: str
    main: bool
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Thread:
    """`rank`: a place in the snapshot's ranks; `tree`, `node`: where it stands, -1 for a thread without frames."""

    rank: int
    tree: int
    node: int
    flags: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`threads` is empty where an older version wrote it. `holders`: `TP0 MainThread in f (a.py:1)`."""

    name: str
    ranks: tuple[str, ...]
    trees: tuple[Tree, ...]
    threads: tuple[Thread, ...]
    holders: tuple[str, ...]
    places: dict[str, str]
    dropped: int


def snapshots_of(root: int, path: str) -> list[Snapshot]:
    """Those of the incident at `path`; `root` is the open dump folder. What has the wrong form is left out.

    Raises `OSError` where there is no such file, and `ValueError` with why it is unusable.
    """
    reading = open_file(root, path, FILE)
    try:
        if reading.size > _LARGEST:
            raise ValueError(f"it has {reading.size} bytes, more than {_LARGEST}")
        data = reading.read(0, _LARGEST)
    finally:
        reading.close()
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError("it is no JSON, or only a part of it") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no snapshots")
    snapshots = parts(found, "snapshots")
    if any(len(_list(told.get("ranks"))) > _MOST_RANKS for told in snapshots):
        raise ValueError(f"it has more than {_MOST_RANKS} ranks")
    if sum(len(_list(told.get("sets"))) for told in snapshots) > _MOST_SETS:
        raise ValueError(f"it has more than {_MOST_SETS} sets of ranks")
    return [_snapshot(told) for told in snapshots]


def _snapshot(told: dict[str, Any]) -> Snapshot:
    ranks = tuple(name[:_LONGEST] if isinstance(name, str) else "?" for name in _list(told.get("ranks")))
    sets = [_bits(one, len(ranks)) for one in _list(told.get("sets"))]
    trees = tuple(
        Tree(text(tree, "thread")[:_LONGEST], tree.get("main") is True, _nodes(parts(tree, "nodes"), sets))
        for tree in parts(told, "trees")
    )
    threads = [_thread(row, ranks, trees) for row in _list(told.get("threads"))]
    places = told.get("places")
    return Snapshot(
        name=text(told, "name")[:_LONGEST],
        ranks=ranks,
        trees=trees,
        threads=tuple(thread for thread in threads if thread is not None),
        holders=tuple(" ".join((text(one, "rank")[:_LONGEST], text(one, "thread")[:_LONGEST], "in",
                                text(one, "place")[:_LONGEST])) for one in parts(told, "gil")),
        places={rank: text(spot, "name")[:_LONGEST] for rank, spot in places.items() if isinstance(spot, dict)}
        if isinstance(places, dict) else {},
        dropped=int(number(told, "dropped")),
    )  # fmt: skip


def _nodes(told: Sequence[dict[str, Any]], sets: Sequence[int]) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for one in told:
        parent = _whole(one.get("parent"), -1, len(nodes) - 1)
        lines = ",".join(str(line) for line in _list(one.get("lines"))[:4] if type(line) is int and line < 10**9)
        where = f"{text(one, 'file')[:_LONGEST]}{f':{lines}' if lines else ''}"
        place = _whole(one.get("set"), 0, len(sets) - 1)
        nodes.append(Node(
            parent=-1 if parent is None else parent,
            name=f"{text(one, 'function')[:_LONGEST]} ({where})",
            ranks=0 if place is None else sets[place],
            threads=int(number(one, "threads")),
            ends=int(number(one, "ends")),
        ))  # fmt: skip
    return tuple(nodes)


def _thread(row: object, ranks: Sequence[str], trees: Sequence[Tree]) -> Thread | None:
    if not isinstance(row, list) or len(row) < 5:
        return None
    rank, tree = _whole(row[0], 0, len(ranks) - 1), _whole(row[1], 0, len(trees) - 1)
    node = None if tree is None else _whole(row[2], -1, len(trees[tree].nodes) - 1)
    flags = _whole(row[4], 0, 1 << 30)
    if rank is None or tree is None or node is None or flags is None:
        return None
    return Thread(rank, tree, node, flags)


def _bits(places: object, number_of_ranks: int) -> int:
    found = bytearray(number_of_ranks // 8 + 1)
    for place in _list(places):
        if (known := _whole(place, 0, number_of_ranks - 1)) is not None:
            found[known // 8] |= 1 << known % 8
    return int.from_bytes(found, "little")


def _whole(value: object, least: int, most: int) -> int | None:
    return value if type(value) is int and least <= value <= most else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
