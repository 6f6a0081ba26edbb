"""What tells one failure from another: the same failure again has the same signature. Pure."""

from __future__ import annotations

import re

_MOST = 128


def signature(reason: str, cause: str, fingerprint: str) -> str:
    """`rankdied-sigkill-3fa91c0e`: reason, cause of the first death, fingerprint of the stacks; what is "" is left out.

    Short and safe to show: lower-case letters, digits, `_` and `-`, at most 128 characters.
    """
    parts = [re.sub(r"[^a-z0-9_]+", "_", part.lower()).strip("_") for part in (reason, cause, fingerprint)]
    return "-".join(part for part in parts if part)[:_MOST]
