"""Which profiles are looked for."""

from __future__ import annotations

import re

from sidecar.engines.generic import ByEnvironment, ByPattern
from sidecar.engines.profile import Profile
from sidecar.engines.sglang import Sglang
from sidecar.engines.vllm import Vllm
from sidecar.errors import SettingError


def profiles(engine: str, rank_pattern: str | None) -> tuple[Profile, ...]:
    """The profiles for `--engine` and `--rank-pattern`, the first that knows a process wins.

    `auto` is every engine, the generic way last. Raises `SettingError` for an unknown engine and for a pattern that is
    no regular expression.
    """
    known: tuple[Profile, ...] = (Sglang(), Vllm())
    if engine == "generic":
        return (_generic(rank_pattern, known, told=True),)
    if engine == "auto":
        return (*known, _generic(rank_pattern, known, told=False))
    for profile in known:
        if profile.name == engine:
            return (profile,)
    raise SettingError("engine", engine, "one of auto, sglang, vllm, generic")


def _generic(rank_pattern: str | None, known: tuple[Profile, ...], told: bool) -> Profile:
    if rank_pattern is None:
        return ByEnvironment(servers=known, launched=not told)
    try:
        return ByPattern(re.compile(rank_pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise SettingError("rank-pattern", rank_pattern, f"a regular expression ({error})") from None
