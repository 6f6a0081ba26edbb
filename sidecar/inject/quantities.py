"""Kubernetes' quantities as numbers, to compare them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_DIGITS = r"[0-9]{1,24}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}"
_QUANTITY = re.compile(rf"({_DIGITS})(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{{1,2}}))?")
_UNITS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {f"{unit}i": power for power, unit in enumerate("KMGTPE", start=1)}


def number(quantity: Any) -> Decimal:
    """What it is worth; -1 for what is no quantity."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or isinstance(quantity, bool):
        return Decimal(-1)
    digits, unit, exponent = found.groups()
    if unit in _BINARY:
        return Decimal(digits) * Decimal(1024 ** _BINARY[unit])
    return Decimal(digits).scaleb(int(exponent) if exponent else _UNITS[unit or ""])
