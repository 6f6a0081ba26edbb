"""A closer look at the ranks of a running engine: what each does, and where it stands. It changes nothing there.

Nothing is read from /proc that could block (`cmdline`, `environ` and `maps` can). Each reading is of an identity: a
rank that ended, or whose pid is another's by now, is left out, since deaths are the guard's business.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sidecar.model import Identity, Role
from sidecar.policy.sightings import Compiler, Look, RankLook
from sidecar.policy.stacks import Spot, spot_of
from sidecar.system import activity
from sidecar.system.cgroup import container_id
from sidecar.system.proc import Proc, Stat
from sidecar.web.liveness.gpu import Gpus
from sidecar.web.liveness.pyspy import PySpy
from sidecar.web.state import RankState

MOST_STACKS = 64  # stacks of one look; of more ranks, those that stand out and the first ones
_ROLES = (Role.SCHEDULER, Role.WORKER, Role.ENGINE_CORE)  # a server's main thread is an event loop, and tells nothing
_AT_ONCE = 64  # processes read from /proc before others on the event loop have their turn
_GENERATIONS = 64  # how far up a compiler's parents are followed

# CUDA's own, the host compilers and linkers that it and torch's extensions start, and LLVM's and AMD's. A name is what
# /proc/PID/comm shows: 15 characters, here without a version at its end.
_COMPILERS = frozenset((
    "nvcc", "cicc", "ptxas", "ptxas-blackwell", "fatbinary", "cudafe++", "nvlink",
    "cc", "c++", "gcc", "g++", "cc1", "cc1plus", "collect2", "lto1", "lto-wrapper", "x86_64-linux-gn",
    "aarch64-linux-g", "as", "ld", "ld.bfd", "ld.gold", "ld.lld", "lld", "ninja",
    "clang", "clang++", "clang-linker-w", "llc", "opt", "mlir-opt", "triton", "triton-opt",
    "hipcc", "hipcc.bin", "amdclang", "amdclang++",
))  # fmt: skip
_VERSION = re.compile(r"-\d+(\.\d+)*$")


def watched(ranks: Sequence[RankState]) -> tuple[RankState, ...]:
    """Those of which an identity is known and whose stacks tell something; all, of an engine that has none of them."""
    known = tuple(rank for rank in ranks if rank.up and rank.pid > 0 and rank.start > 0)
    return tuple(rank for rank in known if rank.role in _ROLES) or known


def quick_look(ranks: Sequence[RankState], proc: Proc) -> Look:
    """States and CPU times alone, for each period: 20 microseconds a rank. Raises `OutOfDescriptors`."""
    at = time.monotonic()
    chosen = watched(ranks)
    labels = _labels(chosen)
    found = []
    for rank in chosen:
        stat = _stat(proc, rank)
        if stat is not None:
            traced = stat.state in "tT" and _traced(proc, stat)
            cpu = stat.cpu_ticks / activity.TICKS
            found.append(RankLook(labels[rank.pid], rank.role, stat.state, traced, cpu))
    return Look(at, tuple(found), quick=True)


async def take_look(
    ranks: Sequence[RankState], engine: str, proc: Proc, pyspy: PySpy, gpus: Gpus, deadline: float
) -> Look:
    """Look at those of `ranks` that are to be watched. Takes until `deadline` (monotonic) at the longest; a rank whose
    stack did not come has no `spot`. Two with the same label are told apart by their pid.

    Raises `OutOfDescriptors`.
    """
    at = time.monotonic()
    power = asyncio.create_task(gpus.look(deadline))
    try:
        chosen = watched(ranks)
        labels = _labels(chosen)
        seen: list[tuple[RankState, RankLook]] = []
        for rank in chosen:
            look = _look_at(rank, labels[rank.pid], proc)
            if look is not None:
                seen.append((rank, look))
            await asyncio.sleep(0)
        spots = await _spots(seen, engine, pyspy, deadline)
        compilers = await _compilers(ranks, proc)
        there = [(rank, look) for rank, look in seen if _stat(proc, rank) is not None]
        whole = tuple(replace(look, spot=spots.get(rank.pid)) for rank, look in there)
        return Look(at, whole, compilers, await power)
    finally:
        power.cancel()


def _stat(proc: Proc, rank: RankState) -> Stat | None:
    """Its stat, or None where it is dead or dying, or the pid is another's."""
    stat = proc.stat(rank.pid)
    if stat is None or stat.identity != Identity(rank.pid, rank.start) or stat.exiting:
        return None
    return stat


def _labels(ranks: Sequence[RankState]) -> dict[int, str]:
    """A name for each pid that no other has: two replicas of an engine may have ranks of the same label."""
    times = Counter(rank.rank for rank in ranks)
    return {rank.pid: rank.rank if times[rank.rank] == 1 else f"{rank.rank} (pid {rank.pid})" for rank in ranks}


def _look_at(rank: RankState, label: str, proc: Proc) -> RankLook | None:
    stat = _stat(proc, rank)
    if stat is None:
        return None
    look = RankLook(
        rank=label,
        role=rank.role,
        state=stat.state,
        traced=_traced(proc, stat),
        cpu=stat.cpu_ticks / activity.TICKS,
        switches=activity.switches(proc, rank.pid),
        wchan=proc.wchan(rank.pid),
    )
    return look if _stat(proc, rank) is not None else None


def _traced(proc: Proc, stat: Stat) -> bool:
    """Whether a debugger has it. Our own py-spy is none; a tracer outside of our PID namespace shows as 0."""
    tracer = activity.tracer(proc, stat.pid)
    if not tracer:
        return stat.state == "t"
    return not activity.is_own_pyspy(proc, tracer, os.getppid())


async def _spots(
    seen: Sequence[tuple[RankState, RankLook]], engine: str, pyspy: PySpy, deadline: float
) -> Mapping[int, Spot]:
    """Where they stand, by pid. As many at once as there are cores, and one more."""
    # False sorts first: those that the kernel holds, then all others in their order, so two looks take the same ones.
    chosen = sorted(seen, key=lambda pair: pair[1].state not in "TtD")[:MOST_STACKS]
    room = asyncio.Semaphore((os.cpu_count() or 1) + 1)
    spots: dict[int, Spot] = {}

    async def one(pid: int) -> None:
        async with room:
            threads = await pyspy.stacks(pid, deadline)
        if threads is not None:
            spot = spot_of([t for t in threads if isinstance(t, dict)], pid, engine)
            if spot is not None:
                spots[pid] = spot

    async with asyncio.TaskGroup() as group:
        for rank, _ in chosen:
            group.create_task(one(rank.pid))
    return spots


async def _compilers(ranks: Sequence[RankState], proc: Proc) -> tuple[Compiler, ...]:
    """Compilers that belong to the engine: by descent, session or container."""
    roots = {rank.pid for rank in ranks if rank.up and rank.pid > 0}
    containers = {rank.container for rank in ranks if rank.container}
    stats: dict[int, Stat] = {}
    for number, pid in enumerate(proc.pids(), 1):
        stat = proc.stat(pid)
        if stat is not None:
            stats[pid] = stat
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    sessions = {stats[pid].sid for pid in roots if pid in stats}
    found = []
    for stat in stats.values():
        if _VERSION.sub("", stat.comm) not in _COMPILERS or stat.exiting:
            continue
        if (
            stat.sid in sessions
            or _descends(stat, roots, stats)
            or (containers and container_id(proc.cgroup(stat.pid)) in containers)
        ):
            found.append(Compiler(stat.pid, stat.comm, stat.cpu_ticks / activity.TICKS))
    return tuple(sorted(found, key=lambda compiler: compiler.pid))


def _descends(stat: Stat, roots: set[int], stats: Mapping[int, Stat]) -> bool:
    for _ in range(_GENERATIONS):
        if stat.ppid in roots:
            return True
        if stat.ppid not in stats:
            return False
        stat = stats[stat.ppid]
    return False
