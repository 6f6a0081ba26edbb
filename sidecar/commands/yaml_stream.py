"""A YAML stream in pieces, one a document, so that those that nobody touches stay what they are, byte for byte.

The pieces are cut where the parser sees a document begin. Nothing is built of a document but what its events say, so
aliases that would multiply, endless nesting and unknown tags of a document that stays as it is do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

# The C library's where PyYAML has it: the same events, ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100  # levels of a document that is to be read; a pod has about 15
_MOST_VALUES = 1_000_000  # with every alias written out


@dataclass(slots=True)
class Piece:
    """`head` is what stands before the document's content, its `---` with it, `tail` what comes after. `kind` is the
    top level's, "" where there is none. `trouble` says why the document cannot be read.
    """

    head: str = ""
    body: str = ""
    tail: str = ""
    line: int = 1
    kind: str = ""
    aliases: bool = False
    trouble: str = ""

    @property
    def text(self) -> str:
        return self.head + self.body + self.tail


@dataclass(slots=True)
class _Walk:
    """What is seen of one document while its events pass by."""

    piece: Piece
    open: list[str | None] = field(default_factory=list)  # the anchors of the collections that are open
    counts: list[int] = field(default_factory=lambda: [0])  # values in each of them, and in the document
    sizes: dict[str, int] = field(default_factory=dict)  # values behind each anchor
    at_key: bool = True
    key: str = ""

    def see(self, event: Any) -> None:
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._top("")
            self.open.append(event.anchor)
            self.counts.append(0)
            if len(self.open) > DEEPEST:
                self.piece.trouble = f"it is nested deeper than {DEEPEST} levels"
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._count(self.counts.pop() + 1, self.open.pop())
        elif isinstance(event, yaml.ScalarEvent):
            self._top(event.value)
            self._count(1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.piece.aliases = True
            self._top("")
            if event.anchor in self.open:
                self.piece.trouble = "it holds itself, by an alias"
            self._count(self.sizes.get(str(event.anchor), 1), None)

    def _top(self, text: str) -> None:
        """Keys and values of the document's own mapping come in turns."""
        if len(self.open) != 1:
            return
        if self.at_key:
            self.key = text
        elif self.key == "kind":
            self.piece.kind = text
        self.at_key = not self.at_key

    def _count(self, values: int, anchor: str | None) -> None:
        self.counts[-1] = min(self.counts[-1] + values, _MOST_VALUES + 1)
        if anchor is not None:
            self.sizes[anchor] = values
        if self.counts[-1] > _MOST_VALUES:
            self.piece.trouble = f"with its aliases written out it has more than {_MOST_VALUES} values"


def pieces(text: str) -> Iterator[Piece]:
    """The stream's documents. Joined, their `text` is the stream. Raises `yaml.YAMLError`."""
    walk: _Walk | None = None
    found: list[tuple[Piece, int, int, int]] = []  # with where it begins, its content begins, its content ends
    begin = content = 0
    for event in yaml.parse(text, Loader=_LOADER):
        start: Any = event.start_mark  # the stubs think that there may be none
        if isinstance(event, yaml.DocumentStartEvent):
            walk = _Walk(Piece(line=start.line + 1))
            begin = start.index if found else 0
            marker: Any = event.end_mark
            content = _after_the_marker(text, marker.index) if event.explicit else start.index
        elif isinstance(event, yaml.DocumentEndEvent) and walk is not None:
            found.append((walk.piece, begin, content, start.index if event.explicit else -1))
        elif walk is not None:
            walk.see(event)
    if not found:
        yield Piece(head=text)
        return
    for (piece, begin, content, end), after in zip(found, [*(f[1] for f in found[1:]), len(text)], strict=True):
        end = after if end < 0 else end
        content = min(content, end)
        piece.head, piece.body, piece.tail = text[begin:content], text[content:end], text[end:after]
        yield piece


def _after_the_marker(text: str, at: int) -> int:
    """Where a document's content begins: behind the line of its `---`, unless it stands in that line."""
    end = text.find("\n", at)
    end = len(text) if end < 0 else end + 1
    rest = text[at:end].strip()
    return end if not rest or rest.startswith("#") else at
