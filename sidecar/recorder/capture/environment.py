"""Which environment variables may stand in a record. Everything else stays out, by name too.

An environment is where people keep secrets, so there is no list of what to hide: only of what may be shown, because
it explains how ranks find each other, which devices they see, or why they wait. Listed one by one, or by a prefix
whose whole family is the configuration of a transport library. A name that looks secret is never shown, and values
are masked like command lines.
"""

from __future__ import annotations

import os
from collections.abc import Container

from sidecar.masking import is_secret_name, mask_text

_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "NVSHMEM_", "UCX_", "CUDA_COREDUMP_")
_LISTED = (
    # who is who
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE NODE_RANK ROLE_RANK ROLE_WORLD_SIZE"
    " MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS LWS_GROUP_SIZE LWS_WORKER_INDEX"
    # devices
    " CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_DEVICE_MAX_CONNECTIONS CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING"
    " CUDA_ENABLE_COREDUMP_ON_EXCEPTION CUDA_ENABLE_LIGHTWEIGHT_COREDUMP CUDA_ENABLE_USER_TRIGGERED_COREDUMP"
    " NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES"
    # the framework
    " PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING TORCH_DISTRIBUTED_DEBUG"
    " TORCH_SHOW_CPP_STACKTRACES TORCH_CPP_LOG_LEVEL TORCH_CUDA_ARCH_LIST TP_SOCKET_IFNAME OMP_NUM_THREADS"
    " MKL_NUM_THREADS PYTHONFAULTHANDLER PYTHONUNBUFFERED LD_PRELOAD LD_LIBRARY_PATH MALLOC_ARENA_MAX"
    # the engines
    " VLLM_USE_V1 VLLM_HOST_IP VLLM_PORT VLLM_WORKER_MULTIPROC_METHOD VLLM_ATTENTION_BACKEND VLLM_LOGGING_LEVEL"
    " VLLM_ENGINE_ITERATION_TIMEOUT_S VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS VLLM_RPC_TIMEOUT VLLM_SKIP_P2P_CHECK"
    " VLLM_DP_RANK VLLM_DP_SIZE VLLM_DP_MASTER_IP VLLM_DP_MASTER_PORT VLLM_ENABLE_V1_MULTIPROCESSING"
    " SGLANG_HOST_IP SGLANG_BLOCK_NONZERO_RANK_CHILDREN SGLANG_SET_CPU_AFFINITY"
)
_NAMES = frozenset(_LISTED.split())
_LONGEST = 1024  # characters of a value


def shown(environ: bytes) -> dict[str, str]:
    """What may be shown of the bytes of /proc/PID/environ, name to value."""
    found = {}
    for entry in environ.split(b"\0"):
        name, _, value = entry.decode("utf-8", "backslashreplace").partition("=")
        if may_be_shown(name):
            found[name] = mask_text(value[:_LONGEST])
    return found


def variables(environ: bytes, names: Container[str]) -> dict[str, str]:
    """The variables named, as the process has them: to be used, and not to be shown. The first of a name counts."""
    found: dict[str, str] = {}
    for entry in environ.split(b"\0"):
        name, _, value = os.fsdecode(entry).partition("=")
        if name in names:
            found.setdefault(name, value)
    return found


def may_be_shown(name: str) -> bool:
    if name in _NAMES:
        return True
    return name.startswith(_PREFIXES) and not is_secret_name(name)
