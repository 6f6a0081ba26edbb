"""Sizes and durations as people type them, and as they read them."""

from __future__ import annotations

import math
import re

_SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}
_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

SIZE_ALLOWED = "bytes, as a whole number or as in Kubernetes (500M is 500,000,000 and 500Mi is 524,288,000)"
DURATION_ALLOWED = "a number with s, m, h, d or w, such as 36h or 7d"


def size(text: str) -> int:
    """Bytes. `M` and `Mi` mean what they mean in Kubernetes quantities. Raises `ValueError` with what is allowed."""
    match = re.fullmatch(r"([0-9]{1,18})(?:([KMGT]i?)B?)?", text.strip().replace("k", "K"))
    if match is None:
        raise ValueError(f"it takes {SIZE_ALLOWED}")
    return int(match[1]) * _SIZE_UNITS[match[2] or ""]


def duration(text: str) -> float:
    """Seconds. Raises `ValueError` with what is allowed."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"it takes {DURATION_ALLOWED}")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def shown_size(count: int) -> str:
    """Three digits or so and a unit: `0 B`, `3.4 KiB`, `12 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def shown_seconds(seconds: float) -> str:
    """Milliseconds below a second, else seconds: `84 ms`, `61.2 s`."""
    if not math.isfinite(seconds):
        return "?"
    return f"{seconds * 1000:.0f} ms" if abs(seconds) < 1 else f"{seconds:.1f} s"
