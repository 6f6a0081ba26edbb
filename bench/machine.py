"""What the numbers were measured on. They mean nothing without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The machine, as far as it bears on the numbers."""
    info = Path("/proc/meminfo").read_text().split("\n")
    memory = {line.partition(":")[0]: line.split()[1] for line in info if line}
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().split("\n")
              if line.startswith("model name")]  # fmt: skip
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_gib": round(int(memory["MemTotal"]) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "processes_before": sum(name.isdecimal() for name in os.listdir("/proc")),
        "root": os.geteuid() == 0,
    }


def free_gib() -> float:
    """Memory that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text().split("\n"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}; before the run: load {machine['load_before']}, "
        f"{machine['processes_before']} processes"
    )
