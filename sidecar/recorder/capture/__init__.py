"""The collectors: one file each, one signature, one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.model import Role
from sidecar.recorder.capture import (
    analysis,
    crash_folder,
    cuda_coredump,
    flight_recorder,
    metrics,
    nccl_ras,
    nvml,
    process,
    pyspy,
    pyspy_native,
)
from sidecar.recorder.capture.base import MIB, Collector, Target

ORDINARY = 64 * MIB


class Per(StrEnum):
    """Whom a collector runs for."""

    PROCESS = "process"  # every process of the engine
    RANK = "rank"  # every rank, and not what merely belongs to the engine
    COMPUTE = "compute"  # the ranks that may have a GPU
    ENGINE = "engine"  # once


@dataclass(frozen=True, slots=True)
class Entry:
    """`kinds`: what it makes, by the ending of the file; "*" stands for any other ending.

    `running`: it needs processes that run, and is skipped where they are frozen. `holds`: it stops its target or has
    ptrace on it, so only one such works on a process at a time. `second_of`: it repeats the collector named, where two
    snapshots are wanted, and is not asked for by name. `after`: not before these second snapshots, since it disturbs
    its target. `most`: bytes that its child may write to the volume by itself, 0 for one that writes nothing there,
    `COREDUMP` for the setting of that name; it waits until the incident has its folder. `computes`: seconds for which
    its child keeps its slot; one that runs longer waits for something, and others may begin. `memory`: bytes that its
    child may take where there is room; more than `ORDINARY` for one that gets all the room there is.
    """

    name: str
    collect: Collector
    kinds: dict[str, str]
    per: Per = Per.RANK
    running: bool = False
    holds: bool = False
    second_of: str = ""
    after: bool = False
    most: int = 0
    computes: float = 0.1
    memory: int = ORDINARY


COREDUMP = -1
_COMPUTE = (Role.SCHEDULER, Role.WORKER, Role.ENGINE_CORE)

# Cheapest first: in this order they begin.
TABLE = (
    Entry("process", process.collect, {"json": process.KIND}, Per.PROCESS),
    Entry("pyspy", pyspy.collect, pyspy.FIRST.kinds, holds=True),
    Entry("metrics", metrics.collect, {"jsonl": metrics.KIND}, Per.ENGINE),
    Entry("nccl_ras", nccl_ras.collect, {"txt": nccl_ras.KIND}, Per.ENGINE, running=True),
    Entry(
        "flight_recorder", flight_recorder.collect, {"pickle": flight_recorder.KIND}, Per.COMPUTE,
        running=True, most=flight_recorder.MOST,
    ),
    Entry("nvml", nvml.collect, {"json": nvml.KIND}, Per.ENGINE, memory=256 * MIB),  # the driver's library besides
    Entry("process2", process.collect_again, {"json": process.SECOND_KIND}, second_of="process"),
    Entry("pyspy2", pyspy.collect_again, pyspy.SECOND.kinds, holds=True, second_of="pyspy"),
    # Native stacks compute for seconds: all at once, each would hold its target for as long as all together.
    Entry(
        "pyspy_native", pyspy_native.collect, pyspy.NATIVE.kinds,
        running=True, holds=True, after=True, computes=5.0, memory=512 * MIB,
    ),
    Entry(
        "cuda_coredump", cuda_coredump.collect, {"core": cuda_coredump.KIND}, Per.COMPUTE,
        running=True, holds=True, after=True, most=COREDUMP,
    ),
    # At the sealing, by itself.
    Entry(analysis.NAME, analysis.collect, analysis.KINDS, Per.ENGINE, computes=analysis.LIMIT, memory=256 * MIB),
    Entry("crash_folder", crash_folder.collect, {"*": crash_folder.KIND}, Per.ENGINE, most=crash_folder.MOST),
)  # fmt: skip


def concerns(entry: Entry, target: Target) -> bool:
    """Whether a collector that runs for processes runs for this one."""
    if entry.per is Per.COMPUTE:
        return target.is_rank and target.role in _COMPUTE
    return target.is_rank or entry.per is Per.PROCESS


def kind_of(path: str) -> str:
    """The kind of the artifact in a file `<collector>/<label>.<ending>`, "" where no collector makes such."""
    folder, _, name = path.partition("/")
    ending = name.rpartition(".")[2]
    kinds = next((entry.kinds for entry in TABLE if entry.name == folder), {})
    return "" if ending == "partial" else kinds.get(ending) or kinds.get("*", "")
