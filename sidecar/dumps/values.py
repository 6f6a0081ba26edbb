"""A record's values, whatever they are: each reader gives what it promises, or its word for "nothing"."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any


def text(data: dict[str, Any], key: str) -> str:
    """The value as words, "" where there is none."""
    value = data.get(key)
    if isinstance(value, str):
        return value
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def number(data: dict[str, Any], key: str) -> float:
    """The value as a number, 0 where it is none."""
    value = data.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63 and math.isfinite(value):
        return value
    return 0


def part(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def parts(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = data.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def seconds_of(data: dict[str, Any], key: str) -> float | None:
    """A moment as seconds since the epoch, from RFC 3339 or from a number; None where it is neither."""
    value = data.get(key)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return number(data, key) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def first_failure(record: dict[str, Any]) -> dict[str, Any]:
    """The failure marked as first, else the first one, else {}."""
    failures = parts(record, "failures")
    return next((f for f in failures if f.get("first") is True), failures[0] if failures else {})
