"""How much is measured."""

from __future__ import annotations

from enum import StrEnum


class Scale(StrEnum):
    """`full` gives results; `quick` a look in two minutes; `smoke` shows that it runs, no more."""

    FULL = "full"
    QUICK = "quick"
    SMOKE = "smoke"
