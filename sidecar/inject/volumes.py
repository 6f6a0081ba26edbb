"""Where the evidence goes: the volume, and who sees how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.inject.options import Options, VolumeKind
from sidecar.inject.words import PREFIX, ClaimState, Place

DUMPS, TOKEN = "rankguard-dumps", "rankguard-token"
ENGINE_FOLDER = "/var/lib/rankguard/engine"  # CUDA's files, in the engine's container
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
SHM = "/dev/shm"  # noqa: S108 - the kernel's name for it


@dataclass(frozen=True, slots=True)
class Dumps:
    """`limit` is the emptyDir's sizeLimit, "" for another volume."""

    volume: dict[str, Any]
    limit: str
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.volume["name"])


def wanted_claim(annotations: Mapping[str, Any], options: Options) -> str:
    """The PersistentVolumeClaim that a pod with these annotations would have, "" for none: for whoever looks it up."""
    claim = annotations.get(PREFIX + "volume-claim") or options.volume_claim
    usual = VolumeKind.CLAIM if annotations.get(PREFIX + "volume-claim") else options.volume
    kind = annotations.get(PREFIX + "volume") or usual
    return str(claim) if kind == VolumeKind.CLAIM else ""


def dumps(options: Options, place: Place, enforced: str, user: int | None, spec: Mapping[str, Any]) -> Dumps:
    """`user` is the sidecar's, None where it is not known."""
    name = free_name(DUMPS, spec)
    reason = ""
    if options.volume is VolumeKind.CLAIM:
        state = (place.claims or {}).get(options.volume_claim, ClaimState.OK)
        if state is ClaimState.OK:
            volume = {"name": name, "persistentVolumeClaim": {"claimName": options.volume_claim}}
            grouped = (spec.get("securityContext") or {}).get("fsGroup") is not None
            return Dumps(volume, "", () if user == 0 or grouped else (_unwritable("the claim", user),))
        # The pod would stay Pending, or its second replica would.
        what = "there is no claim" if state is ClaimState.MISSING else "ReadWriteMany is not among the modes of"
        reason = f"volume: an emptyDir in place of a claim, since {what} {options.volume_claim}"
    elif options.volume is VolumeKind.HOST_PATH:
        if not enforced:
            volume = {"name": name, "hostPath": {"path": options.volume_host_path, "type": "DirectoryOrCreate"}}
            return Dumps(volume, "", () if user == 0 else (_unwritable("a hostPath", user),))
        reason = f"volume: an emptyDir in place of a hostPath, since the namespace enforces Pod Security's {enforced}"
    limit = options.volume_size_limit
    return Dumps({"name": name, "emptyDir": {"sizeLimit": limit}}, limit, (reason,) if reason else ())


def _unwritable(what: str, user: int | None) -> str:
    return f"volume: user {user} may not be able to write to {what}: `rankguard doctor` tells"


def token_volume(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A token for the API server, in the sidecar alone. It starts without the cluster's certificate rather than not."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}], "optional": True}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": free_name(TOKEN, spec), "projected": {"sources": sources}}


def free_name(name: str, spec: Mapping[str, Any]) -> str:
    taken = {volume["name"] for volume in spec.get("volumes") or ()}
    return next(each for each in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if each not in taken)


def mount_at(path: str, container: Mapping[str, Any]) -> dict[str, Any] | None:
    for mount in container.get("volumeMounts") or ():
        if "/" + (mount.get("mountPath") or "").strip("/") == path:
            return dict(mount)
    return None
