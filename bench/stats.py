"""Percentiles and how numbers are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between. NaN where there is none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ms(seconds: float) -> str:
    """Seconds as milliseconds, with three digits that mean something."""
    if math.isnan(seconds):
        return "-"
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float) -> str:
    """A ratio: 0.83x, 41x."""
    if math.isnan(ratio) or math.isinf(ratio):
        return "-"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
