"""The merged stacks for people (text), for programs (JSON) and for speedscope. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from sidecar.policy.stacks import place_of
from sidecar.recorder.analysis.evidence import Finding
from sidecar.recorder.analysis.stacks import Merged, Node, walk

SCHEMA = "rankguard.dev/stacks/v1"
_MOST_LINES = 5000  # of text
_MOST_NODES = 40_000  # of all snapshots in the JSON, about 6 MB: who reads it may be a browser on a phone
_MOST_STEPS = 200_000  # of all stacks in one profile, frame by frame
_WIDTH = 72
_DEEPEST = 40  # steps of indentation


def text(finding: Finding, snapshots: Sequence[tuple[str, Merged]], notes: Sequence[str]) -> str:
    """The sentence and its reasons, then a tree for each snapshot."""
    head = [finding.sentence, f"confidence: {finding.confidence}", *(f"  - {reason}" for reason in finding.reasons)]
    head += [f"note: {note}" for note in notes]
    trees = (_snapshot(name, merged, merged.ranks.of(finding.apart)) for name, merged in snapshots)
    lines = list(islice(chain(head, chain.from_iterable(trees)), _MOST_LINES + 1))
    if len(lines) > _MOST_LINES:
        lines[-1] = "… and more lines; stacks.json has them"
    return "\n".join(lines) + "\n"


def _snapshot(name: str, merged: Merged, apart: int) -> Iterator[str]:
    known = merged.main.ranks
    silent = merged.ranks.everybody & ~known
    yield ""
    yield f"== {name}: {known.bit_count()} of {len(merged.ranks.labels)} ranks" + (
        f"; no stack of {merged.ranks.shown(silent)}" if silent else ""
    )
    for holder in merged.holders[:16]:
        yield f"GIL: {holder.rank} {holder.thread} in {holder.place}"
    if merged.dropped:
        yield f"{merged.dropped} frames are left out: too many are different"
    yield ""
    yield "-- main threads, the outermost call first"
    yield from _tree(merged.main, merged, apart)
    for thread, root in sorted(merged.others.items(), key=lambda row: (-row[1].threads, row[0])):
        yield ""
        yield f"-- thread {thread}: {merged.ranks.shown(root.ranks)}"
        yield from _tree(root, merged, 0)


def _tree(root: Node, merged: Merged, apart: int) -> Iterator[str]:
    """A chain of single calls does not move to the right: only where stacks part is there a step."""
    steps: list[int] = []  # of each node on the way from the root
    for node, depth, parent in walk(root):
        del steps[depth:]
        parts = len(parent.children) > 1 or (parent is not root and parent.ends > 0)
        steps.append((steps[-1] if steps else 0) + parts)
        line = f"{'  ' * min(steps[-1], _DEEPEST)}{node.name}"
        if node.ranks != parent.ranks or parts or depth == 0:
            who = merged.ranks.beside(node.ranks, root.ranks)
            line = f"{line.ljust(_WIDTH)}  {who}"
            if apart and not node.ranks & ~apart:
                line += "  <- apart"
        yield line


def document(snapshots: Sequence[tuple[str, Merged]], notes: Sequence[str]) -> dict[str, Any]:
    """Flat, since no depth is too deep then: a node names its parent by its place in the list, -1 for a tree's root.

    `set` is the place of its ranks in `sets`, whose numbers are places in `ranks`. `threads` has a row for each thread
    of each rank: the places of its rank, its tree and the node of its innermost frame (-1 where it has none), that
    frame's line, and what is known of it, as bits: 1 it holds the GIL, 2 it is on a processor or in native code,
    4 its stack is not what it was in the first snapshot.
    """
    most = _MOST_NODES // max(1, len(snapshots))
    return {
        "schema": SCHEMA,
        "notes": list(notes),
        "snapshots": [_flat(name, merged, most) for name, merged in snapshots],
    }


def _flat(name: str, merged: Merged, most: int) -> dict[str, Any]:
    sets: dict[int, int] = {}
    trees = [("", merged.main), *sorted(merged.others.items())]
    written: dict[int, tuple[int, int]] = {}  # tree and place of each node, by the object's id
    rows = []
    dropped = 0
    for number, (thread, root) in enumerate(trees):
        nodes, places, left_out = _nodes(root, sets, most)
        most -= len(nodes)
        dropped += left_out
        written |= {node: (number, place) for node, place in places.items()}
        rows.append({"thread": thread, "main": root is merged.main, "nodes": nodes})
    return {
        "name": name,
        "ranks": list(merged.ranks.labels),
        "fingerprint": merged.fingerprint,
        "gil": [{"rank": one.rank, "thread": one.thread, "place": one.place} for one in merged.holders],
        "places": {
            rank: {"kind": spot.kind.value, "name": spot.name, "place": place_of(spot)}
            for rank, spot in merged.spots.items()
        },
        "sets": [_bits(ranks) for ranks in sets],
        "trees": rows,
        "threads": [[one.rank, *written[id(one.node)], one.line, one.flags] for one in merged.stands],
        "dropped": merged.dropped + dropped,
        "unlisted": merged.unlisted,
    }


def _nodes(root: Node, sets: dict[int, int], most: int) -> tuple[list[dict[str, Any]], dict[int, int], int]:
    """The first `most` nodes; the place of every node by its id, of one beyond those its caller's; and their number."""
    nodes: list[dict[str, Any]] = []
    places = {id(root): -1}
    left_out = 0
    for node, _, parent in walk(root):
        above = places[id(parent)]
        if len(nodes) >= most:
            places[id(node)] = above
            left_out += 1
            continue
        places[id(node)] = len(nodes)
        nodes.append({
            "parent": above,
            "function": node.function,
            "file": node.file,
            "lines": sorted(node.lines),
            "set": sets.setdefault(node.ranks, len(sets)),
            "threads": node.threads,
            "ends": node.ends,
        })  # fmt: skip
    return nodes, places, left_out


def _bits(ranks: int) -> list[int]:
    return [place for place in range(ranks.bit_length()) if ranks >> place & 1]


def speedscope(snapshots: Sequence[tuple[str, Merged]]) -> dict[str, Any]:
    """One profile of each snapshot's main threads and one of its others: a stack weighs as many threads as have it."""
    frames: dict[tuple[str, str], int] = {}
    profiles = []
    for name, merged in snapshots:
        for title, roots in ((f"{name}: main threads", [merged.main]), (f"{name}: others", [*merged.others.values()])):
            samples, weights = _samples(roots, frames)
            if samples:
                profiles.append({
                    "type": "sampled", "name": title, "unit": "none", "startValue": 0, "endValue": sum(weights),
                    "samples": samples, "weights": weights,
                })  # fmt: skip
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "rankguard",
        "name": "stacks",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": function, "file": file} for function, file in frames]},
        "profiles": profiles,
    }


def _samples(roots: Sequence[Node], frames: dict[tuple[str, str], int]) -> tuple[list[list[int]], list[int]]:
    samples: list[list[int]] = []
    weights: list[int] = []
    steps = 0
    for root in roots:
        path: list[int] = []
        for node, depth, _ in walk(root):
            del path[depth:]
            path.append(frames.setdefault((node.function, node.file), len(frames)))
            if node.ends:
                steps += len(path)
                if steps > _MOST_STEPS:  # a deep stack that ends everywhere has the square of its depth
                    return samples, weights
                samples.append(list(path))
                weights.append(node.ends)
    return samples, weights
