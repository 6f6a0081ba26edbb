"""The README as a reader uses it: its fenced blocks, with the words that say what kind of command is in them.

The words stand behind the language, where nobody who reads the page sees them:

`sh host`            commands for a host; `sh host stays`: one that goes on until it is stopped
`sh cluster`         commands for a cluster, from nothing to the end; `kill`: one that fells a rank; `later`: when all
                     is installed; `end`: takes all away
`sh dev`             targets of the Makefile
`sh build`           makes the image
`yaml pod`           a part of a pod
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
_BLOCK = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """Its lines; none of ours goes over more than one."""
        return [line for line in self.text.splitlines() if line.strip()]


def blocks(text: str | None = None) -> list[Block]:
    text = README.read_text() if text is None else text
    return [
        Block(found[1], tuple(found[2].split()), found[3], text.count("\n", 0, found.start()) + 2)
        for found in _BLOCK.finditer(text)
    ]


def of(*words: str, but: tuple[str, ...] = ()) -> list[Block]:
    """The shell blocks that bear all of these words and none of the others, in their order."""
    return [
        block
        for block in blocks()
        if block.language == "sh" and set(words) <= set(block.words) and not set(but) & set(block.words)
    ]


def prose(text: str) -> str:
    """What is no block."""
    return _BLOCK.sub("", text)


def metrics() -> set[str]:
    """The sidecar's metrics that the table says there are."""
    text = README.read_text()
    table = text[text.index("## Metrics") : text.index("**Alerts.**")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `rankguard_")]
    return {name for row in rows for name in re.findall(r"`(rankguard_\w+)", row)}
