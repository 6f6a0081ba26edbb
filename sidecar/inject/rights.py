"""The sidecar's user and capabilities: one of three tiers (docs/rights.md), by what the namespace lets in.

Pod Security refuses the whole pod for one capability too many, so what it would refuse is never asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.inject.options import Rights
from sidecar.inject.words import Skip

BASELINE, RESTRICTED = "baseline", "restricted"
_SAFE = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
_COPIED = ("seLinuxOptions", "appArmorProfile")


@dataclass(frozen=True, slots=True)
class Tier:
    rights: Rights
    security: dict[str, Any]
    user: int | None
    warnings: tuple[str, ...] = ()


def level(enforce: str) -> str:
    """The namespace's level. A word that Pod Security does not know counts as restricted there."""
    return enforce if enforce in (BASELINE, RESTRICTED) else "" if enforce in ("", "privileged") else RESTRICTED


def tier(wanted: Rights, enforced: str, target: Mapping[str, Any], pod: Mapping[str, Any]) -> Tier:
    """The tier and its securityContext. `pod` is the pod's own. Raises `Skip` where every sidecar would be refused."""
    own = target.get("securityContext") or {}
    user = _first(own.get("runAsUser"), pod.get("runAsUser"))
    fits = _best(enforced, user)
    if wanted is Rights.AUTO:
        return _made(fits, own, pod, user, ())
    if _allowed(wanted, enforced) and not (wanted is Rights.TWIN and user is None):
        return _made(wanted, own, pod, user, ())
    why = (
        "the engine's user is not known: say runAsUser"
        if wanted is Rights.TWIN and user is None
        else f"the namespace enforces Pod Security's {enforced}"
    )
    return _made(fits, own, pod, user, (f"rights: {fits} in place of {wanted}, since {why}",))


def _best(enforced: str, user: int | None) -> Rights:
    if not enforced:
        return Rights.FULL
    if user is not None:
        return Rights.TWIN
    if enforced == BASELINE:
        return Rights.SIGNALS
    # Our image's user is root, which restricted forbids, and another one might not even be the engine's.
    raise Skip(
        "UserUnknown",
        "the namespace enforces Pod Security's restricted, and the pod does not say which user the engine runs as: set"
        " runAsUser in its securityContext",
    )


def _allowed(rights: Rights, enforced: str) -> bool:
    return not enforced or rights is Rights.TWIN or (enforced == BASELINE and rights is Rights.SIGNALS)


def _made(
    rights: Rights, own: Mapping[str, Any], pod: Mapping[str, Any], user: int | None, said: tuple[str, ...]
) -> Tier:
    if rights is not Rights.TWIN:
        # Added capabilities do nothing for another user than root.
        added = ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"] if rights is Rights.FULL else ["KILL"]
        root = {"runAsUser": 0, "runAsNonRoot": False, **_SAFE, "capabilities": {"drop": ["ALL"], "add": added}}
        return Tier(rights, {**root, "seccompProfile": {"type": "RuntimeDefault"}}, 0, said)
    copied = {name: own[name] for name in _COPIED if own.get(name) is not None}
    group = _first(own.get("runAsGroup"), pod.get("runAsGroup"))
    groups = {} if group is None else {"runAsGroup": group}
    security: dict[str, Any] = {"runAsUser": user, **groups, "runAsNonRoot": user != 0, **_SAFE, **copied}
    capabilities = own.get("capabilities") or {}
    if capabilities:
        security["capabilities"] = {kind: list(names) for kind, names in capabilities.items() if names}
    if {"SYS_ADMIN", "CAP_SYS_ADMIN"} & set(capabilities.get("add") or ()):
        del security["allowPrivilegeEscalation"]  # the API server refuses the two together
    security["seccompProfile"] = {"type": "RuntimeDefault"}
    warnings = list(said)
    if group is None:
        warnings.append("the engine's group is not known: say runAsGroup, or there may be no stacks")
    if own.get("privileged"):
        warnings.append("the engine is privileged and its twin is not made so: there are no stacks")
    return Tier(rights, security, user, tuple(warnings))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
