"""The merged stacks of an incident in a terminal: the tree of the first snapshot, who stands apart, what moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from sidecar.commands.terminal import printable
from sidecar.dumps.stacks import MOVED, Snapshot, Tree
from sidecar.recorder.analysis.rank_sets import compact, places

_MOST_LINES = 48  # of the tree
_MOST_APART = 16  # of it for those that stand apart, wherever they are in it
_MOST_ROWS = 8  # of any other list
_DEEPEST = 20  # steps of indentation
_WIDEST = 72  # columns for a call, before who is in it
_APART = "bold red"
_DIM = "dim"
_MORE = "analysis/stacks.txt"


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    who: str
    apart: bool


def stacks_of(snapshots: Sequence[Snapshot], apart: Sequence[str], width: int) -> Iterator[tuple[str, list[Text]]]:
    """Titles, with lines to print under each."""
    first = snapshots[0]
    main = next((tree for tree in first.trees if tree.main), None)
    if main is not None and main.nodes:
        yield f"Stacks, {first.name}, main threads, the outermost call first", _tree(first, main, set(apart), width)
    if others := [tree for tree in first.trees if not tree.main and tree.nodes]:
        yield "Other threads", _others(first, others)
    if apart:
        yield "Apart", _apart(snapshots, apart)
    if first.holders:
        yield "Holding the GIL", _cut([_text(holder) for holder in first.holders])
    second = next((one for one in snapshots if one.name.startswith("second")), None)
    if second is not None and second.threads:
        yield "Between the two snapshots", _moved(second)


def _tree(snapshot: Snapshot, tree: Tree, apart: set[str], width: int) -> list[Text]:
    lines = list(_lines(snapshot, tree, apart))
    shown = set(range(min(len(lines), _MOST_LINES)))
    shown |= set([place for place, line in enumerate(lines) if line.apart][:_MOST_APART])
    column = max(24, min(_WIDEST, width - 26, max((len(line.text) for line in lines), default=0)))
    fold = width < 1000  # a terminal: what goes into a pipe is never cut
    found = []
    last = -1
    for place in sorted(shown):
        if place > last + 1:
            found.append(_text("…", _DIM))
        last = place
        line = lines[place]
        name = line.text
        if fold and len(name) > column and line.who:
            name = f"{name[: column - 1]}…"
        row = _text(f"{name.ljust(column)}  {line.who}" if line.who else name, _APART if line.apart else "")
        if line.apart and line.who:
            row.append("  <- apart", _APART)
        found.append(row)
    if len(shown) < len(lines):
        found.append(_text(f"… {len(lines) - len(shown)} more calls are in {_MORE}", _DIM))
    if snapshot.dropped:
        found.append(_text(f"{snapshot.dropped} calls were left out: too many are different", _DIM))
    return found


def _lines(snapshot: Snapshot, tree: Tree, apart: set[str]) -> Iterator[_Line]:
    """A chain of single calls does not move to the right: only where stacks part is there a step."""
    everybody = 0
    children = [0] * (len(tree.nodes) + 1)  # the last stands for the root
    for node in tree.nodes:
        children[node.parent] += 1
        everybody |= node.ranks if node.parent < 0 else 0
    odd = sum(1 << place for place, rank in enumerate(snapshot.ranks) if rank in apart)
    said: dict[int, str] = {}
    steps: list[int] = []
    for node in tree.nodes:
        above = tree.nodes[node.parent] if node.parent >= 0 else None
        parts = children[node.parent] > 1 or (above is not None and above.ends > 0)
        steps.append((steps[node.parent] if above is not None else 0) + parts)
        who = ""
        if above is None or parts or node.ranks != above.ranks:
            who = said.get(node.ranks) or said.setdefault(node.ranks, _who(snapshot, node.ranks, everybody))
        yield _Line("  " * min(steps[-1], _DEEPEST) + node.name, who, bool(node.ranks and not node.ranks & ~odd))


def _who(snapshot: Snapshot, ranks: int, around: int) -> str:
    """`TP0-6 | TP3 missing`, as in stacks.txt."""
    missing = around & ~ranks
    few = 0 < missing.bit_count() <= 4 and missing.bit_count() < ranks.bit_count()
    return f"{_names(snapshot, ranks)} | {_names(snapshot, missing)} missing" if few else _names(snapshot, ranks)


def _names(snapshot: Snapshot, ranks: int) -> str:
    return compact([snapshot.ranks[place] for place in places(ranks)])


def _others(snapshot: Snapshot, trees: Sequence[Tree]) -> list[Text]:
    """One line a thread's name: where most of them stand."""
    rows = []
    for tree in trees:
        inner = [node for node in tree.nodes if node.ends > 0]
        if not inner:
            continue
        most = max(inner, key=lambda node: node.ends)
        more = f", and in {len(inner) - 1} more places" if len(inner) > 1 else ""
        rows.append(_text(f"{tree.thread}: {_names(snapshot, most.ranks)} in {most.name}{more}"))
    return _cut(rows)


def _apart(snapshots: Sequence[Snapshot], apart: Sequence[str]) -> list[Text]:
    """Where each of them stood, in all snapshots."""
    rows = []
    for rank in apart:
        stood: dict[str, list[str]] = {}
        for one in snapshots:
            if rank in one.places:
                stood.setdefault(one.places[rank], []).append(one.name)
        said = "; ".join(f"{place} ({', '.join(names)})" for place, names in stood.items())
        rows.append(_text(f"{rank}: {said or 'no stack of it'}", _APART))
    return _cut(rows)


def _moved(second: Snapshot) -> list[Text]:
    """Main threads by what they did; of the others their number."""
    ranks = {True: 0, False: 0}
    others = 0
    for thread in second.threads:
        moved = bool(thread.flags & MOVED)
        if second.trees[thread.tree].main:
            ranks[moved] |= 1 << thread.rank
        else:
            others += moved
    rows = []
    if ranks[False]:
        rows.append(_text(f"at the same line: {_names(second, ranks[False])}"))
    if ranks[True]:
        rows.append(_text(f"elsewhere: {_names(second, ranks[True])}"))
    if others:
        rows.append(_text(f"of the other threads {others} are elsewhere"))
    return rows


def _cut(rows: Iterable[Text]) -> list[Text]:
    found = list(rows)
    if len(found) > _MOST_ROWS:
        left = len(found) - _MOST_ROWS
        return [*found[:_MOST_ROWS], _text(f"… {left} more are in {_MORE}", _DIM)]
    return found


def _text(words: str, style: str = "") -> Text:
    return Text(printable(words), style=style)
