"""Sets of ranks as bits of one number, and as few words as will do: `TP0-6`, `DP0-1_TP3`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_PART = re.compile(r"(.*?)([0-9]{1,9})$", re.DOTALL)
_MOST_SHOWN = 8  # groups of ranks in one list
_FEW = 4  # ranks that are named as missing


class Ranks:
    """All ranks of one merge, each with its bit, in the order of their numbers and not of their digits."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(sorted(set(labels), key=_order))
        self.bits = {label: 1 << place for place, label in enumerate(self.labels)}
        self.everybody = (1 << len(self.labels)) - 1
        self._shown: dict[int, str] = {}

    def of(self, labels: Iterable[str]) -> int:
        found = 0
        for label in labels:
            found |= self.bits.get(label, 0)
        return found

    def names(self, ranks: int) -> list[str]:
        return [self.labels[place] for place in places(ranks)]

    def shown(self, ranks: int) -> str:
        """In words; the same set costs only once."""
        if ranks not in self._shown:
            self._shown[ranks] = compact(self.names(ranks))
        return self._shown[ranks]

    def beside(self, ranks: int, around: int) -> str:
        """`TP0-6 | TP3 missing`: which of `around` these are, and who is not there if those are few."""
        missing = around & ~ranks
        if missing and missing.bit_count() <= _FEW and missing.bit_count() < ranks.bit_count():
            return f"{self.shown(ranks)} | {self.shown(missing)} missing"
        return self.shown(ranks)


def places(ranks: int) -> Iterator[int]:
    while ranks:
        low = ranks & -ranks
        yield low.bit_length() - 1
        ranks ^= low


def compact(labels: Sequence[str]) -> str:
    """Labels that differ in one number only become a range of it, from the innermost dimension to the outermost."""
    rows = [tuple(label.split("_")) for label in labels]
    for place in range(max((len(row) for row in rows), default=0) - 1, -1, -1):
        rows = _folded(rows, place)
    words = ["_".join(row) for row in rows]
    more = len(words) - _MOST_SHOWN
    return ", ".join(words[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _folded(rows: Iterable[tuple[str, ...]], place: int) -> list[tuple[str, ...]]:
    """Rows that are alike but for the part at `place`, as one row."""
    groups: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[int]] = {}
    for row in rows:
        found = _PART.fullmatch(row[place]) if place < len(row) else None
        stem = found[1] if found else row[place] if place < len(row) else ""
        numbers = groups.setdefault((row[:place], stem, row[place + 1 :]), [])
        if found and found[2] == str(int(found[2])):
            numbers.append(int(found[2]))
        elif found:
            groups.setdefault((row[:place], row[place], row[place + 1 :]), [])
    folded = []
    for (before, stem, after), numbers in groups.items():
        part = stem + (_ranges(numbers) if numbers else "")
        folded.append((*before, part, *after) if part or after else before)
    return folded


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def _order(label: str) -> tuple[tuple[str, int], ...]:
    found = (_PART.fullmatch(part) for part in label.split("_"))
    return tuple(
        (one[1], int(one[2])) if one else (part, -1) for one, part in zip(found, label.split("_"), strict=True)
    )
