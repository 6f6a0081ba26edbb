"""Power and utilisation of the GPUs, where NVML answers. No GPU is no data, never an error.

NVML's calls can hang in the driver, so they run on a thread of their own, and nobody waits for one that is late.
`pynvml` (package nvidia-ml-py) is imported only where the driver's library is there.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import time
from collections.abc import Callable
from typing import Any

from sidecar.policy.sightings import Gpu
from sidecar.web.worker import Worker

_LIBRARY = "libnvidia-ml.so.1"
_MOST = 64  # GPUs that are read


class Gpus:
    """Made and used on the event loop. `read` asks NVML, on the thread; it is a parameter for tests."""

    def __init__(self, read: Callable[[], tuple[Gpu, ...]] | None = None) -> None:
        self._read = read or _Nvml().read
        self._worker = Worker("nvml")
        self._pending: asyncio.Future[tuple[Gpu, ...]] | None = None

    async def look(self, deadline: float) -> tuple[Gpu, ...]:
        """The GPUs now; () where there are none, or no answer until `deadline` (monotonic). While a call hangs, no
        other one is made.
        """
        if self._pending is not None and not self._pending.done():
            return ()
        self._pending = self._worker.submit(self._read)
        await asyncio.wait({self._pending}, timeout=max(0.0, deadline - time.monotonic()))
        if not self._pending.done() or self._pending.exception() is not None:
            return ()
        return self._pending.result()


class _Nvml:
    """Runs on the thread. NVML is opened for each reading: held open it would keep the driver from being reset."""

    def __init__(self) -> None:
        self._module: Any = None
        self._absent = False

    def read(self) -> tuple[Gpu, ...]:
        if self._module is None and not self._absent:
            self._absent = not self._load()
        if self._absent:
            return ()
        nvml = self._module
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return ()
        try:
            count = min(nvml.nvmlDeviceGetCount(), _MOST)
            return tuple(gpu for index in range(count) if (gpu := self._one(index)) is not None)
        except nvml.NVMLError:
            return ()
        finally:
            nvml.nvmlShutdown()

    def _load(self) -> bool:
        try:
            ctypes.CDLL(_LIBRARY)
            self._module = importlib.import_module("pynvml")
        except (OSError, ImportError):
            return False
        return True

    def _one(self, index: int) -> Gpu | None:
        nvml = self._module
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            utilisation = nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
        except nvml.NVMLError:  # MIG, or a GPU that has fallen off the bus
            return None
        try:
            limit = nvml.nvmlDeviceGetEnforcedPowerLimit(device)
            power = nvml.nvmlDeviceGetPowerUsage(device) / limit if limit else None
        except nvml.NVMLError:
            power = None
        return Gpu(index, utilisation, power)
