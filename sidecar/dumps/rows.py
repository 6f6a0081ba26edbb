"""One incident as one row of a list."""

from __future__ import annotations

from typing import Any

from sidecar.dumps.folder import Entry
from sidecar.dumps.values import first_failure, part, parts, text
from sidecar.system.clock import stamp

Row = dict[str, Any]
_LONGEST = 1_000  # characters of one text of a row that is kept
_MOST_NAMES = 32  # of ranks that stand apart; where more do, the sentence says how many
_LONGEST_NAME = 64


def row_of(entry: Entry) -> Row:
    record = entry.record
    first = first_failure(record)
    termination = part(record, "termination")
    verdict = part(record, "verdict")
    return {
        "id": entry.id,
        "path": entry.path,
        "time": stamp(entry.wall),
        "reason": record.get("reason"),
        "summary": record.get("summary"),
        "sentence": text(verdict, "sentence"),
        "confidence": text(verdict, "confidence"),
        "apart": _names(verdict.get("apart")),
        "rank": first.get("rank"),
        "cause": first.get("cause"),
        "engine": record.get("engine"),
        "pod": record.get("pod"),
        "artifacts": len(parts(record, "artifacts")),
        "bytes": entry.bytes,
        "outcome": termination.get("outcome"),
        "seconds": termination.get("seconds"),
        "sealed": entry.sealed,
        "pinned": entry.pinned,
        "unreadable": entry.unreadable or None,
    }


def clipped(row: Row) -> Row:
    """A row of bounded size, whatever the record's values are: a catalog keeps thousands."""
    return {key: value if key == "apart" else _small(value) for key, value in row.items()}


def _names(value: object) -> list[str]:
    """The first of them, each cut."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    return [name[:_LONGEST_NAME] for name in names[:_MOST_NAMES]]


def _small(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    if isinstance(value, dict):
        return {key[:64]: _small(inner) for key, inner in list(value.items())[:8] if not isinstance(inner, dict)}
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**63 else None
    return value if value is None or isinstance(value, (bool, float)) else None
