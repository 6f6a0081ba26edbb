"""Rank labels: `TP3`, `DP0_PP1_TP3`.

An engine appends its dimensions in an order that differs by version, and leaves out those of size 1. The label has one
order, so that a rank keeps its name in metrics and folders: from the outermost dimension to the innermost.
"""

from __future__ import annotations

import re

ORDER = ("DP", "PP", "ATTN_CP", "MOE_DP", "PCP", "TP", "DCP", "EP")  # any other dimension follows, by name

LONGEST_TITLE = 256  # characters; what is longer is no title

# One dimension and its number, to be repeated. Letters and digits alternate, so there is little to backtrack over.
SUFFIXES = r"(?:_[A-Z]{1,16}(?:_[A-Z]{1,16}){0,3}[0-9]{1,6})"

_SUFFIX = re.compile(r"_([A-Z]+(?:_[A-Z]+)*)([0-9]+)")


def dimensions(suffixes: str) -> tuple[tuple[str, int], ...]:
    """`_TP3_DP0` as `(("DP", 0), ("TP", 3))`, in the label's order."""
    found = [(name, int(number)) for name, number in _SUFFIX.findall(suffixes)]
    return tuple(sorted(found, key=lambda item: (_place(item[0]), item)))


def rank_label(suffixes: str, otherwise: str) -> str:
    """`_TP3_DP0` as `DP0_TP3`; `otherwise` where there is no dimension."""
    return "_".join(f"{name}{number}" for name, number in dimensions(suffixes)) or otherwise


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)
