"""What changes one pod into another, as the API server takes it (RFC 6902)."""

from __future__ import annotations

from typing import Any

import jsonpatch


def json_patch(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations that make `after` of `before`; none where they are equal."""
    operations: list[dict[str, Any]] = jsonpatch.make_patch(before, after).patch
    return operations
