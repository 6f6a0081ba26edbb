"""Whether a value of the vocabulary that was read back from a volume is what its types say. JSON can hold anything,
and a guard that ended over it would end again each time it starts.
"""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

_NUMBERS_OF_PROCESSES = ("pid", "ppid", "pgid", "sid")
_MOST = 1 << 31  # of such a number; the kernel's calls take no larger one


def well_formed(value: Any) -> bool:
    """Whether each field of this dataclass, and of those in it, has the type that it is declared with."""
    hints = get_type_hints(type(value))
    for field in fields(value):
        held = getattr(value, field.name)
        if not _fits(held, hints[field.name]):
            return False
        if field.name in _NUMBERS_OF_PROCESSES and not 0 <= held < _MOST:
            return False
    return True


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, hint) and (not is_dataclass(value) or well_formed(value))
