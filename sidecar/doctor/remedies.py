"""What would give a right, as YAML to paste, computed for who we are and whom we saw. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.checkup import Remedy
from sidecar.doctor.credentials import FULL, USUAL, USUAL_MORE, Credentials, mask_of, names_of

SIDECAR = "the container rankguard"
_ADDED = f"{SIDECAR}, beside what it adds already"
ENGINE = "the engine's container"
POD = "the pod's spec"


def to_reach(own: Credentials, targets: Sequence[Credentials], needed: Sequence[str]) -> tuple[Remedy, ...]:
    """How to get at these targets: as full root, or as their twin where one uid will do. The smaller change first.

    `targets` are all that must be reached, those that can be already too: else the remedy for one would lose another.
    `needed` are the capabilities that a root sidecar takes for it. All three of `FULL` are told at once, so that one
    change gives what the other checks miss too.
    """
    full = None if own.has(*needed) else full_tier(own)
    twin = _twin(own, targets)
    close = bool(targets) and all(own.like(target) for target in targets)
    ordered = (twin, full) if close or own.uid != 0 else (full, twin)
    return tuple(remedy for remedy in ordered if remedy is not None)


def full_tier(own: Credentials) -> Remedy:
    """What gives root the three: one of us, or one who is root already and lacks some."""
    lacking = [name for name in FULL if not own.has(name)]
    if own.uid == 0:
        return Remedy(_ADDED, f"securityContext:\n  capabilities:\n    add: {_listed(lacking)}")
    return Remedy(
        SIDECAR,
        "securityContext:\n  runAsUser: 0\n  runAsNonRoot: false\n  allowPrivilegeEscalation: false\n"
        f'  capabilities:\n    drop: ["ALL"]\n    add: {_listed(FULL)}',
    )


def _twin(own: Credentials, targets: Sequence[Credentials]) -> Remedy | None:
    """One who is as the target is. Kubernetes gives added capabilities to root alone (seen), so there is no twin of a
    target that is not root and has some.
    """
    users = {(target.uid, target.gid) for target in targets}
    if len(users) != 1:
        return None
    ((uid, gid),) = users
    wanted = 0
    for target in targets:
        if len({*target.uids[:3]}) != 1 or len({*target.gids[:3]}) != 1:
            return None
        wanted |= target.permitted
    if uid != 0 and wanted:
        return None
    user, capabilities = [], []
    if not all(own.like(target) for target in targets):
        user = [f"runAsUser: {uid}", f"runAsGroup: {gid}", f"runAsNonRoot: {'false' if uid == 0 else 'true'}"]
    # What root would get where we are not root yet is what bounds us now.
    lacking = wanted & ~(own.permitted if own.uid == 0 else own.bounding)
    if lacking & mask_of(["SYS_PTRACE"]):  # a privileged target; that one alone gives it all, and is the other way
        return None
    usual = mask_of(USUAL)
    if uid == 0 and not usual & ~wanted and usual & lacking:
        # Its names would do as well, but Pod Security `baseline` does not let all of them be added.
        capabilities.append("drop: []  # the engine has what the runtime gives to all, and so must we")
        lacking &= ~(usual | mask_of(USUAL_MORE))
    if lacking:
        capabilities.append(f"add: {_listed(names_of(lacking))}")
    if uid != 0 and user:
        user[0] += "  # it must be able to write the dump volume, as it can an emptyDir"
        capabilities.append('drop: ["ALL"]')
    if not user and not capabilities:
        return None
    lines = user + (["capabilities:", *(f"  {line}" for line in capabilities)] if capabilities else [])
    return Remedy(_ADDED if lacking else SIDECAR, "securityContext:\n" + "\n".join(f"  {line}" for line in lines))


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
