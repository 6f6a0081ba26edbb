"""One incident as one row of a list."""

from __future__ import annotations

from typing import Any

from sidecar.dumps.folder import Entry
from sidecar.dumps.values import first_failure, part, parts
from sidecar.system.clock import stamp

Row = dict[str, Any]


def row_of(entry: Entry) -> Row:
    record = entry.record
    first = first_failure(record)
    termination = part(record, "termination")
    return {
        "id": entry.id,
        "path": entry.path,
        "time": stamp(entry.wall),
        "reason": record.get("reason"),
        "summary": record.get("summary"),
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
