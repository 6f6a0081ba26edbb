"""All GPUs as the driver sees them, by NVML: `nvml/engine.json`.

A program of its own: NVML can hang on a GPU that has fallen off the bus, and a fork must not import. Whatever one GPU
refuses to tell is missing from its entry, with the reason. An XID (the driver's number for an error) is told only as an
event to who waits for it, so what stands here are its traces: ECC errors, retired pages, remapped rows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import Attempt, Ended, Piece, Scene, Target, over_limit, program

KIND = "nvml"
_LIMIT = 10.0
_FROZEN_LIMIT = 1.0  # while the kill waits for it
_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # without one of them NVML finds no driver
_EXIT_ABSENT = 3
# Where device plugins put the driver's libraries without telling the loader (seen on GKE: /usr/local/nvidia/lib64).
_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
_LIBRARY = "libnvidia-ml.so.1"


def collect(_: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The snapshot as JSON. Skipped where there is no driver."""
    if not scene.python:
        return (Piece(KIND, ArtifactStatus.FAILED, detail="no interpreter to run it with"),)
    if scene.frozen and not any(os.path.exists(device) for device in _DEVICES):
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail=f"no NVIDIA driver here: no {_DEVICES[0]}"),)
    limit = _FROZEN_LIMIT if scene.frozen else _LIMIT
    return Attempt(work=program(scene, __name__), judge=_judge, limit=min(limit, left))


def _judge(ended: Ended) -> tuple[Piece, ...]:
    if ended.failure:
        return (Piece(KIND, ArtifactStatus.FAILED, detail=ended.failure),)
    if ended.wait_status is None:
        return (Piece(KIND, ArtifactStatus.TIMED_OUT, detail=f"NVML: {over_limit(ended)}"),)
    if ended.exit_code == _EXIT_ABSENT:
        said = ended.out.decode("utf-8", "replace").strip()
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail=f"no NVIDIA driver here: {said}"),)
    if ended.exit_code != 0 or not ended.out:
        lines = ended.err.decode("utf-8", "backslashreplace").split("\n")
        why = next((line for line in reversed(lines) if line.strip()), f"wait status {ended.wait_status:#x}")
        return (Piece(KIND, ArtifactStatus.FAILED, detail=f"NVML: {why[:300]}"),)
    return (Piece(KIND, ArtifactStatus.CAPTURED, "nvml/engine.json", ended.out),)


# -- the program ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Print the snapshot; exit status 3, with the reason, where there is no driver."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        _absent("nvidia-ml-py is not installed")
    _load_library()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _absent(str(error))
    sys.stdout.write(json.dumps(snapshot(pynvml), indent=1) + "\n")


def _absent(why: str) -> NoReturn:
    sys.stdout.write(why)
    raise SystemExit(_EXIT_ABSENT)


def _load_library() -> None:
    """Load the driver's library from where the loader does not look; by its name it is then found."""
    import ctypes  # here, since the recorder imports this module too

    for folder in _FOLDERS:
        path = f"{folder}/{_LIBRARY}"
        if os.path.exists(path):
            try:
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return


def snapshot(nvml: Any) -> dict[str, Any]:
    """What the module pynvml tells of the driver and each GPU. Bytes, watts, MHz, degrees Celsius, shares 0 to 1."""
    ask = _Asker(nvml)
    count = ask("count", nvml.nvmlDeviceGetCount) or 0
    top = {
        "driver": ask("driver", nvml.nvmlSystemGetDriverVersion),
        "cuda": ask("cuda", lambda: nvml.nvmlSystemGetCudaDriverVersion_v2() / 1000),
        "gpus": [_gpu(nvml, index) for index in range(count)],
    }
    return {**top, **ask.rest()}


class _Asker:
    """Calls, each of which may be refused: then its name and the reason are kept, and the answer is None."""

    def __init__(self, nvml: Any) -> None:
        self._errors: tuple[type[Exception], ...] = (nvml.NVMLError, AttributeError, UnicodeDecodeError)
        self._refused: dict[str, str] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except self._errors as error:
            self._refused[name] = str(error)
            return None
        return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer

    def rest(self) -> dict[str, Any]:
        return {"refused": self._refused} if self._refused else {}


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    ask = _Asker(nvml)
    gpu = ask("handle", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if gpu is None:
        return {"index": index, **ask.rest()}
    use = ask("utilisation", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu))
    memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu))
    pci = ask("pci", lambda: nvml.nvmlDeviceGetPciInfo(gpu).busId)
    return {
        "index": index,
        "name": ask("name", lambda: nvml.nvmlDeviceGetName(gpu)),
        "uuid": ask("uuid", lambda: nvml.nvmlDeviceGetUUID(gpu)),
        "pci": pci.decode() if isinstance(pci, bytes) else pci,
        "utilisation": None if use is None else use.gpu / 100,
        "memory_utilisation": None if use is None else use.memory / 100,
        "memory": None if memory is None else {"used": memory.used, "total": memory.total},
        "power": ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        "power_limit": ask("power_limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000),
        "temperature": ask("temperature", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        "clocks": {
            "sm": ask("clocks", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            "memory": ask("clocks", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        },
        "throttled_by": ask(
            "throttled_by", lambda: _reasons(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        ),
        "ecc": {
            "corrected": ask("ecc", lambda: _ecc(nvml, gpu, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)),
            "uncorrected": ask("ecc", lambda: _ecc(nvml, gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)),
        },
        "retired_pages": ask("retired_pages", lambda: _retired(nvml, gpu)),
        "remapped_rows": ask("remapped_rows", lambda: _remapped(nvml, gpu)),
        "processes": ask("processes", lambda: _processes(nvml, gpu)),
        **ask.rest(),
    }


def _reasons(nvml: Any, mask: int) -> list[str]:
    """Which of NVML's throttle reasons are set, by the module's own names."""
    prefix = "nvmlClocksThrottleReason"
    known = {name[len(prefix) :]: value for name, value in vars(nvml).items() if name.startswith(prefix)}
    return sorted(name for name, bit in known.items() if isinstance(bit, int) and bit & mask == bit and _single(bit))


def _single(bit: int) -> bool:
    return bit > 0 and bit & (bit - 1) == 0


def _ecc(nvml: Any, gpu: Any, sort: int) -> int:
    """Errors since the driver was loaded."""
    return int(nvml.nvmlDeviceGetTotalEccErrors(gpu, sort, nvml.NVML_VOLATILE_ECC))


def _retired(nvml: Any, gpu: Any) -> int:
    return len(nvml.nvmlDeviceGetRetiredPages(gpu, nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR))


def _remapped(nvml: Any, gpu: Any) -> dict[str, Any]:
    corrected, uncorrected, pending, failed = nvml.nvmlDeviceGetRemappedRows(gpu)
    return {
        "corrected": corrected, "uncorrected": uncorrected, "pending": bool(pending), "failed": bool(failed)
    }  # fmt: skip


def _processes(nvml: Any, gpu: Any) -> list[dict[str, Any]]:
    """Pids are those of the host, and not those of a pod's own namespace."""
    return [
        {"pid": process.pid, "memory": process.usedGpuMemory}
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    ]
