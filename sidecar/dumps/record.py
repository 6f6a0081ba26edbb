"""`incident.json` read as if an enemy had written it."""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

from sidecar.dumps.names import RECORD
from sidecar.dumps.opening import FILE, opened
from sidecar.model import SCHEMA

RECORD_LIMIT = 16 << 20  # bytes; a record of 512 ranks takes about one MiB
# Values in it. 16 MiB of empty lists would take a gigabyte of memory; a record of 512 ranks has 70,000 values.
_MOST_VALUES = 500_000
_DEEPEST = 64  # of lists in lists; a real one has 6. What can just be read may be too deep to be written as JSON again.


def load_record(fd: int, name: str, limit: int = RECORD_LIMIT) -> dict[str, Any]:
    """The incident.json of the incident folder `name`, opened as `fd`. Raises `ValueError` with why it is unusable."""
    with opened(RECORD, FILE, fd) as file:
        if file is None:
            missing = RECORD not in os.listdir(fd)
            raise ValueError(f"half-written: no {RECORD}" if missing else f"{RECORD} is a link or may not be read")
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{RECORD} is no regular file")
        if info.st_size > limit:
            raise ValueError(f"{RECORD} has {info.st_size} bytes, more than {limit}")
        try:
            with open(os.dup(file), "rb") as stream:
                text = stream.read(limit + 1)
        except OSError as error:
            raise ValueError(f"{RECORD} cannot be read: {error.strerror}") from error
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MOST_VALUES:
        raise ValueError(f"{RECORD} has more than {_MOST_VALUES} values")
    try:
        record = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{RECORD} is no JSON, or only a part of it") from error
    except MemoryError as error:
        raise ValueError(f"{RECORD} is too large for the memory that is left here") from error
    return _checked(record, name)


def _checked(record: Any, name: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{RECORD} is no record")
    if _deeper(record, _DEEPEST):
        raise ValueError(f"{RECORD} is nested more than {_DEEPEST} deep")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{RECORD} is not of schema {SCHEMA}")
    if record.get("id") != name:
        raise ValueError(f"{RECORD} is of another incident")
    for key in ("failures", "timeline", "artifacts"):
        value = record.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{RECORD} has no list of {key}")
    for key in ("pod", "decision", "termination"):
        if not isinstance(record.get(key) or {}, dict):
            raise ValueError(f"{RECORD} has something else as {key}")
    return record


def _deeper(value: Any, most: int) -> bool:
    """Whether there is anything more than `most` steps below."""
    level = [value]
    for _ in range(most):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for some in inside for one in some if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)  # 1e999 could not be written as JSON again


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
