"""Variables: the engine's, only where it has none of that name, and the sidecar's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.inject.volumes import ENGINE_FOLDER, mount_at
from sidecar.inject.words import JOBSET, LWS, Place

_COREDUMP_FLAGS = (
    "skip_nonrelocated_elf_images,skip_global_memory,skip_shared_memory,skip_local_memory,skip_constbank_memory"
    ",skip_abort"
)
COREDUMP_FILE = "CUDA_COREDUMP_FILE"
# As the path of the engine's mount has them: a pod's own POD_NAME may be anything.
ENGINE_NAMES = ("RANKGUARD_POD_NAMESPACE", "RANKGUARD_POD_NAME")


def text(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value}


def field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def engine_defaults(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an engine's container lacks, in the order of manifests/."""
    # The driver and PyTorch make pipes there.
    scratch = "/tmp" if _writes_to_tmp(container) else ENGINE_FOLDER  # noqa: S108
    wanted = {
        # Rankguard captures and kills; with SGLang's own crash dump on as well, both would.
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "false",
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "false",
        # Keeps the environment of processes that name themselves readable, for the collectors.
        "SPT_NOENV": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": f"{scratch}/rankguard-fr-",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{scratch}/rankguard-dump-",
        "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1",
        "CUDA_COREDUMP_PIPE": f"{scratch}/corepipe.cuda.%h.%p",
        COREDUMP_FILE: f"{ENGINE_FOLDER}/core.cuda.%h.%p.%t",
        "CUDA_COREDUMP_GENERATION_FLAGS": _COREDUMP_FLAGS,
    }
    has = names(container)
    return [text(name, value) for name, value in wanted.items() if name not in has]


def engine_pod_names(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the path of the engine's mount."""
    has = names(container)
    paths = ("metadata.namespace", "metadata.name")
    return [field(name, path) for name, path in zip(ENGINE_NAMES, paths, strict=True) if name not in has]


def names(container: Mapping[str, Any]) -> set[str]:
    return {entry["name"] for entry in container.get("env") or ()}


def _writes_to_tmp(container: Mapping[str, Any]) -> bool:
    security = container.get("securityContext") or {}
    mount = mount_at("/tmp", container)  # noqa: S108
    return not mount.get("readOnly") if mount is not None else not security.get("readOnlyRootFilesystem")


def sidecar(values: Mapping[str, str], group: Iterable[dict[str, Any]], nvml: bool) -> list[dict[str, Any]]:
    """The sidecar's variables. `values` are settings of `run` by their names."""
    return [
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        field("POD_UID", "metadata.uid"),
        field("NODE_NAME", "spec.nodeName"),
        *group,
        *(text(f"RANKGUARD_{name.upper()}", value) for name, value in values.items()),
        # The driver's library in the sidecar; no GPU is taken.
        *([text("NVIDIA_VISIBLE_DEVICES", "all"), text("NVIDIA_DRIVER_CAPABILITIES", "utility")] if nvml else []),
    ]


def group(metadata: Mapping[str, Any], place: Place) -> list[dict[str, Any]]:
    """The name of the group whose pods fail together, from the labels that its controller gives the pod."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if in_leader_worker_set(metadata, place):
        if place.group_size == 1 or annotations.get(LWS + "size") == "1":
            return []
        return [
            field("POD_GROUP_SET", f"metadata.labels['{LWS}name']"),
            field("POD_GROUP_INDEX", f"metadata.labels['{LWS}group-index']"),
            text("RANKGUARD_POD_GROUP", "$(POD_GROUP_SET)-$(POD_GROUP_INDEX)"),
        ]
    if JOBSET + "jobset-name" in labels or place.owner_kind == "JobSet":
        return [field("RANKGUARD_POD_GROUP", f"metadata.labels['{JOBSET}jobset-name']")]
    return []


def in_leader_worker_set(metadata: Mapping[str, Any], place: Place) -> bool:
    return LWS + "name" in (metadata.get("labels") or {}) or place.owner_kind == "LeaderWorkerSet"
