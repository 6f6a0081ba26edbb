"""Which bytes of a file a request asks for (RFC 9110, section 14). Pure."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))", re.IGNORECASE | re.ASCII)


def wanted(header: str | None, size: int) -> range | None:
    """The bytes from a `Range` header; all of them where there is none, or one of a form that need not be understood
    (several ranges, other units). None where it asks for what is not there."""
    match = _ONE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return range(size)
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
        return range(start, end) if int(suffix) else None
    start, end = int(first), size if last is None else min(size, int(last) + 1)
    if last is not None and int(last) < start:
        return range(size)  # no range at all
    return range(start, end) if start < size else None
