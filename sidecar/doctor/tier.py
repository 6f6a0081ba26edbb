"""Which of the three tiers holds for the engine's processes that were seen. Pure.

full           they may be signalled and looked into, by capabilities: whoever they are
twin           the same, because we are as they are: the same user, and all of their capabilities
signals only   they may be frozen and killed; what needs a look into them is missing
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.checkup import Result, Status
from sidecar.doctor.credentials import FULL
from sidecar.doctor.scene import Scene

_LOOKS = ("ptrace", "root", "environment", "descriptors")


def tier(scene: Scene, results: Iterable[Result]) -> tuple[str, str]:
    """(the tier, why), "" where there was nobody of the engine's to try it on."""
    by_name = {result.capability: result.status for result in results}
    if not any(target.engine for target in scene.targets):
        return "", f"no process of an engine to try it on; as uid {scene.own.uid} {_promise(scene)}"
    if by_name.get("signals") is not Status.OK:
        return "none", "the engine's processes may not be signalled"
    lacking = [name for name in _LOOKS if by_name.get(name) is not Status.OK]
    if lacking:
        there = [name for name in _LOOKS if name not in lacking]
        more = f" (there is also: {', '.join(there)})" if there else ""
        return "signals only", f"the engine's processes may be signalled; missing: {', '.join(lacking)}{more}"
    if scene.own.has(*FULL):
        return "full", f"uid {scene.own.uid} with {', '.join(FULL)}"
    return "twin", f"uid {scene.own.uid} as the engine's, with no capability of theirs missing"


def _promise(scene: Scene) -> str:
    there = [name for name in FULL if scene.own.has(name)]
    if len(there) == len(FULL):
        return "with all three capabilities, which is the full tier"
    lacking = ", ".join(name for name in FULL if name not in there)
    return f"with {', '.join(there)}, without {lacking}" if there else f"without {lacking}"
