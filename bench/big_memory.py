"""Death to Observation of ranks with 2 GiB of touched memory each, as real ranks have and more.

The kernel takes the memory apart before the process's pidfd says a word. A guard with the threads' pidfds, one without
them (as on a kernel before 6.9) and the peers watch the same deaths.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter

from bench.machine import free_gib
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.scene import BARE, GUARD, POLL, Scene
from bench.stats import ms, percentile, times

NAME = "big-memory"
WITHOUT = "guard without thread pidfds"
PAUSE = (0.6, 1.1)  # long enough for one death's memory to be gone before the next
SOONER = 20.0
NEVER_LATER = 0.3  # s


SIZES = {Scale.FULL: (2048, 4, 10), Scale.QUICK: (1024, 2, 3), Scale.SMOKE: (32, 1, 1)}  # MiB, ranks, rounds


def run(scale: Scale) -> Report:
    mib, ranks, rounds = SIZES[scale]
    if free_gib() * 1024 < 1.5 * ranks * mib:
        ranks = max(1, int(free_gib() * 1024 / (1.5 * mib)))
    with (
        tempfile.TemporaryDirectory(prefix="rankguard-bench-") as folder,
        Scene(ranks, folder, {GUARD: (), WITHOUT: ("thread_pidfd",)}, (BARE, POLL), mib, threads=4) as scene,
    ):
        for _ in range(rounds):
            scene.kill_some(ranks, PAUSE, refill=False)
        return report(scene, mib, ranks)


def report(scene: Scene, mib: int, ranks: int) -> Report:
    deaths = scene.deaths
    p50 = {name: percentile(scene.latencies(name), 0.5) for name in (GUARD, WITHOUT, BARE, POLL)}
    rows = []
    for name in (GUARD, WITHOUT, BARE, POLL):
        latencies = scene.latencies(name)
        goals: tuple[Goal, ...] = ()
        if name == GUARD:
            by = Counter(death.by.get(GUARD, "nothing") for death in deaths)
            why = f"the deaths were seen by: {', '.join(f'{who} {n}' for who, n in by.items())}; {_small(mib)}"
            goals = (Goal("bare p50 / p50", p50[BARE] / p50[GUARD], SOONER, "x", at_least=True, why=why),)
        elif name == WITHOUT:
            late = [d for d in deaths if d.seen.get(WITHOUT, math.inf) > NEVER_LATER]
            by = Counter(death.by.get(WITHOUT, "nothing") for death in late)
            why = f"{len(late)} of {len(deaths)} deaths, seen by: {', '.join(f'{who} {n}' for who, n in by.items())}"
            goals = (Goal("latest", max(latencies) * 1000, NEVER_LATER * 1000, " ms", why=why),)
        shown = (p50[name], percentile(latencies, 0.99), max(latencies))
        cells = (*(ms(value) for value in shown), times(p50[BARE] / p50[name]))
        seen_by = Counter(death.by.get(name, "") for death in deaths)
        rows.append(Row(name, cells, goals, {"seconds": latencies, "seen_by": dict(seen_by)}))
    notes = (
        f"{len(deaths)} deaths, {ranks} ranks at a time with {mib} MiB of touched memory in small pages and 4 threads. "
        "Milliseconds from the SIGKILL; 'sooner' is the bare loop's p50 over the row's.",
    )
    return Report(
        NAME, f"Death to Observation, ranks with {mib / 1024:g} GiB each", ("p50", "p99", "latest", "sooner"),
        tuple(rows), notes,
    )  # fmt: skip


def _small(mib: int) -> str:
    return f"with {mib} MiB the kernel has less to take apart than with 2 GiB" if mib < 2048 else "at 2 GiB"
