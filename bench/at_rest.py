"""What the whole tree costs while nothing happens: CPU, wake-ups and memory of each process, beside a psutil poll.

The CPU is read to the nanosecond, second by second, over half a minute of rest; the poll looks at the same ranks at the
same time. All processes are real and sleep; the tree is a whole `rankguard run` with both ports open.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.children import Child, program
from bench.pump import Pump, now
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.scene import PEERS, POLL
from bench.sidecar_run import Sidecar
from bench.stats import percentile, times
from bench.usage import Used, pss_alone_mib, pss_mib, used

NAME = "at-rest"
PROCESSES = ("supervisor", "guard", "recorder", "web")
MEMORY = {"supervisor": 12.0, "guard": 20.0, "recorder": 20.0, "web": 60.0, "tree": 100.0}  # MiB PSS
CPU = {8: 0.15, 512: 0.7}  # per cent of a core, the whole tree
SIZES = {  # (ranks, others) of each row; seconds until it has settled, seconds of rest
    Scale.FULL: (((8, 42), (8, 992), (512, 488)), 45.0, 30.0),
    Scale.QUICK: (((8, 42), (64, 236)), 5.0, 10.0),
    Scale.SMOKE: (((2, 3),), 0.5, 2.0),
}
_START = 60.0


@dataclass(frozen=True, slots=True)
class Rest:
    """`seconds` of rest of `ranks` among `others` more. `by_second`: CPU of each process in each of them."""

    ranks: int
    others: int
    total: int
    settled: float
    seconds: float
    used: dict[str, Used]
    by_second: dict[str, list[float]]
    pss: dict[str, float]
    alone: dict[str, float] | None

    def share(self, *names: str) -> float:
        """Per cent of a core."""
        return 100 * sum(self.used[name].cpu for name in names) / self.seconds

    def wakeups(self, *names: str) -> float:
        return sum(self.used[name].wakeups for name in names) / self.seconds


def run(scale: Scale) -> Report:
    sizes, settle, seconds = SIZES[scale]
    return report([measure(ranks, others, settle, seconds) for ranks, others in sizes])


def measure(ranks: int, others: int, settle: float, seconds: float) -> Rest:
    """Start `ranks` ranks, `others` other processes, the tree and the poll; let them rest; measure."""
    token = f"bench-{uuid.uuid4().hex[:8]}"
    pump = Pump()
    with ExitStack() as stack:
        stack.callback(pump.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-"))
        pids: list[int] = []
        for count, threads, title in ((others, 0, "bench bystander"), (ranks, 4, token)):
            pids = _population(stack, pump, count, threads, title)
        poll = stack.enter_context(Child(PEERS[POLL]))
        watching: set[str] = set()
        pump.add_lines(poll.out, lambda text, _: watching.add(text))
        for pid in pids:
            poll.say("watch", pid)
        pump.until(lambda: len(watching) == ranks, _START, "the poll watches")
        flags = (
            "--engine", "generic", "--rank-pattern", rf"^{token} (?P<N>\d+)$", "--expected-ranks", str(ranks),
            "--on-rank-death", "observe", "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0",
        )  # fmt: skip
        sidecar = stack.enter_context(Sidecar(pump, folder, *flags))
        sidecar.until("watching", _START, state="serving", ranks=ranks)
        sidecar.until("recorder stands by", _START)
        sidecar.until("connected to the guard", _START)
        pump.run(settle)
        who = {**sidecar.tree(), POLL: poll.pid}
        by_second: dict[str, list[float]] = {name: [] for name in who}
        start, first = now(), {name: used(pid) for name, pid in who.items()}
        before = first
        for second in range(1, int(seconds) + 1):
            pump.run(max(0.0, start + second - now()))
            after = {name: used(pid) for name, pid in who.items()}
            for name in who:
                by_second[name].append((after[name] - before[name]).cpu)
            before = after
        took = now() - start
        tree = {name: pid for name, pid in who.items() if name != POLL}
        alone = pss_alone_mib(tree.values())
        return Rest(
            ranks, others, sum(name.isdecimal() for name in os.listdir("/proc")), settle, took,
            {name: before[name] - first[name] for name in who}, by_second,
            {name: pss_mib(pid) for name, pid in tree.items()},
            {name: alone[pid] for name, pid in tree.items()} if alone is not None else None,
        )  # fmt: skip


def _population(stack: ExitStack, pump: Pump, count: int, threads: int, title: str) -> list[int]:
    """`count` sleeping processes; returns their pids."""
    pids: list[int] = []
    nursery = stack.enter_context(Child(program("nursery", "--threads", threads)))
    pump.add_lines(nursery.out, lambda text, _: pids.append(int(text.split()[2])))
    for number in range(count):
        nursery.say("spawn", number, title, number)
    pump.until(lambda: len(pids) == count, _START, f"{count} processes are born")
    return pids


def report(rests: Sequence[Rest]) -> Report:
    rows = []
    for rest in rests:
        rows.append(_tree_row(rest))
        rows += [_process_row(rest, name) for name in PROCESSES]
        rows.append(_poll_row(rest))
    longest = max(rest.seconds for rest in rests)
    notes = (
        f"{longest:.0f} s of rest, {rests[0].settled:.0f} s after the guard had found all ranks. CPU and voluntary "
        "context switches of all threads, from schedstat and status. In the whole PID namespace: "
        f"{', '.join(f'{rest.total:,}' for rest in rests)} processes.",
        "PSS is the kernel's figure (smaps_rollup), in which the benchmark's own Python processes carry a part of the "
        "interpreter's pages. 'PSS alone' counts sharers within the tree only, as in a pod of its own; the goals are "
        "held against it where it can be read (root).",
    )
    return Report(
        NAME, "At rest", ("CPU s/min", "% of a core", "wake-ups/s", "PSS MiB", "PSS alone MiB", "of the poll's CPU"),
        tuple(rows), notes,
    )  # fmt: skip


def _name(rest: Rest) -> str:
    return f"{rest.ranks} ranks of {rest.ranks + rest.others:,} processes"


def _memory(rest: Rest) -> dict[str, float]:
    return rest.alone if rest.alone is not None else rest.pss


def _tree_row(rest: Rest) -> Row:
    there = tuple(name for name in PROCESSES if name in rest.used)
    share = rest.share(*there)
    limit = CPU.get(rest.ranks, CPU[512])
    goals: tuple[Goal, ...] = (
        Goal("CPU", share, limit, " %", why=_why_cpu(rest, there)),
        Goal("PSS of the tree", sum(_memory(rest).values()), MEMORY["tree"], " MiB",
             why=", ".join(f"{name} {value:.1f}" for name, value in _memory(rest).items())),
    )  # fmt: skip
    if len(there) < len(PROCESSES):
        lacking = ", ".join(sorted(set(PROCESSES) - set(there)))
        goals += (Goal("processes of the tree", len(there), len(PROCESSES), at_least=True, why=f"no {lacking}"),)
    cells = _cells(rest, there, sum(rest.pss.values()), sum(rest.alone.values()) if rest.alone else None)
    return Row(f"{_name(rest)}: tree", cells, goals, _data(rest))


def _process_row(rest: Rest, name: str) -> Row:
    if name not in rest.used:
        return Row(f"  {name}", ("-",) * 6)
    alone = rest.alone[name] if rest.alone is not None else None
    why = f"the kernel's figure is {rest.pss[name]:.1f} MiB"
    goal = Goal("PSS", _memory(rest)[name], MEMORY[name], " MiB", why=why)
    return Row(f"  {name}", _cells(rest, (name,), rest.pss[name], alone), (goal,))


def _poll_row(rest: Rest) -> Row:
    return Row("  psutil 100 ms poll", _cells(rest, (POLL,), None, None))


def _cells(rest: Rest, names: tuple[str, ...], pss: float | None, alone: float | None) -> tuple[str, ...]:
    share = rest.share(*names)
    return (
        f"{share * 0.6:.3f}",
        f"{share:.3f}",
        f"{rest.wakeups(*names):.1f}",
        "" if pss is None else f"{pss:.1f}",
        "" if alone is None else f"{alone:.1f}",
        times(share / rest.share(POLL)),
    )


def _why_cpu(rest: Rest, names: tuple[str, ...]) -> str:
    """Who used it (those with a twentieth of it at least), and whether steadily or in bursts."""
    parts = []
    whole = rest.share(*names)
    for name in sorted((n for n in names if rest.share(n) >= 0.05 * whole), key=lambda n: -rest.share(n)):
        seconds = sorted(rest.by_second[name], reverse=True)
        busiest = sum(seconds[: max(1, len(seconds) // 10)])
        median = percentile(seconds, 0.5)
        parts.append(
            f"{name} {rest.share(name):.3f} % (median second {median * 1000:.2f} ms, busiest second "
            f"{seconds[0] * 1000:.1f} ms, a tenth of the seconds holds {100 * busiest / max(sum(seconds), 1e-9):.0f} %)"
        )
    return "; ".join(parts)


def _data(rest: Rest) -> dict[str, Any]:
    return {
        "ranks": rest.ranks,
        "processes": rest.total,
        "seconds": rest.seconds,
        "cpu_seconds": {name: value.cpu for name, value in rest.used.items()},
        "wakeups": {name: value.wakeups for name, value in rest.used.items()},
        "cpu_by_second": rest.by_second,
        "pss_mib": rest.pss,
        "pss_alone_mib": rest.alone,
    }
