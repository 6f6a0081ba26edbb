"""Death to Observation: how soon each observer knows, on the same deaths.

At least 200 deaths for each number of watched processes; then the same with a real web process connected whose /metrics
is scraped 20 times a second, and with a thread of that web parsing a 50 MB JSON over and over as well.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.children import Child, program
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.scene import BARE, GUARD, POLL, SLOW_POLL, Scene
from bench.seat import WebSeat, loopback_port
from bench.stats import ms, percentile, times

NAME = "observation"
QUIET, SCRAPED, PARSING = "", "/metrics scraped 20/s", "and the web parses 50 MB JSON"
SCRAPES = 20
PAUSE = (0.05, 0.15)  # between two deaths: as long as a poll's period, so that none of them is met in step
RATIO = 2.0  # the guard's p99 over the bare loop's
FLAT = 2.0  # the guard's p50 at the largest number over its p50 at 8


@dataclass(frozen=True, slots=True)
class Case:
    """`life`: deaths that one guard sees before the next one is started. A dead rank stays in an open incident, so
    with few ranks a long life would measure something else than that number.
    """

    size: int
    load: str
    deaths: int
    life: int


@dataclass(frozen=True, slots=True)
class Measured:
    case: Case
    p50: dict[str, float]
    p99: dict[str, float]
    told_p50: float
    told_p99: float
    missed: int
    why: str
    data: dict[str, Any]

    @property
    def ratio(self) -> float:
        return self.p99[GUARD] / self.p99[BARE]


def cases(scale: Scale) -> list[Case]:
    if scale is Scale.SMOKE:
        return [Case(2, QUIET, 3, 3)]
    if scale is Scale.QUICK:
        return [Case(1, QUIET, 15, 15), Case(8, QUIET, 40, 20), Case(512, QUIET, 40, 40), Case(8, PARSING, 40, 20)]
    sizes = ((1, 100), (8, 25), (64, 50), (512, 100))
    loaded = ((8, 25), (512, 100))
    return [Case(size, QUIET, 200, life) for size, life in sizes] + [
        Case(size, load, 200, life) for load in (SCRAPED, PARSING) for size, life in loaded
    ]


def run(scale: Scale) -> Report:
    return report([measure(case) for case in cases(scale)])


def measure(case: Case) -> Measured:
    """One row: `case.deaths` deaths among `case.size` processes."""
    extra: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-"))
        port = 0
        listening: dict[str, tuple[int, ...]] = {}
        if case.load:
            sock, port = loopback_port()
            stack.enter_context(sock)
            listening = {"listen": (sock.fileno(),)}
        scene = stack.enter_context(Scene(case.size, folder, {GUARD: ()}, listen_fds=listening))
        scraper = None
        if case.load:
            scene.attach(stack.enter_context(WebSeat(scene.launch, busy=case.load == PARSING)))
            scraper = stack.enter_context(Child(program("scrape", port, SCRAPES)))
        done = 0
        while done < case.deaths:
            count = min(case.life, case.deaths - done)
            scene.kill_some(count, PAUSE)
            done += count
        if scraper is not None:
            extra["scrapes"] = _end_scraper(scraper)
        return _measured(case, scene, extra)


def _end_scraper(scraper: Child) -> str:
    assert scraper.process.stdin is not None
    assert scraper.process.stdout is not None
    scraper.process.stdin.close()
    said = scraper.process.stdout.read().decode().strip()
    scraper.process.stdin = None
    return said


def _measured(case: Case, scene: Scene, extra: dict[str, Any]) -> Measured:
    observers = (GUARD, BARE, POLL, SLOW_POLL)
    latencies = {name: scene.latencies(name) for name in observers}
    told = scene.told()
    return Measured(
        case=case,
        p50={name: percentile(values, 0.50) for name, values in latencies.items()},
        p99={name: percentile(values, 0.99) for name, values in latencies.items()},
        told_p50=percentile(told, 0.50),
        told_p99=percentile(told, 0.99),
        missed=sum(math.isinf(value) for value in latencies[GUARD]),
        why=_why(scene),
        data={
            **extra,
            "deaths": len(scene.deaths),
            "cpu_seconds": {GUARD: scene.guard_used.cpu, BARE: scene.peer_used.cpu},
            "seen_by": dict(Counter(death.by.get(GUARD, "nothing") for death in scene.deaths)),
            "seconds": {name: [round(v, 6) for v in values] for name, values in latencies.items()},
            "told_seconds": [round(v, 6) for v in told],
        },
    )


def _why(scene: Scene) -> str:
    """What the slowest deaths have in common: whether the guard was at work then, or waited for a core."""
    limit = RATIO * percentile(scene.latencies(BARE), 0.99)
    slow = [death for death in scene.deaths if death.seen.get(GUARD, math.inf) > limit]
    by = Counter(death.by.get(GUARD, "nothing") for death in slow)
    also = sum(death.seen.get(BARE, math.inf) > limit for death in slow)
    worked = percentile([death.used[GUARD].cpu for death in slow if GUARD in death.used], 0.5)
    waited = percentile([death.used[GUARD].waited for death in slow if GUARD in death.used], 0.5)
    usually = percentile([death.used[GUARD].cpu for death in scene.deaths if GUARD in death.used], 0.5)
    return (
        f"{len(slow)} of {len(scene.deaths)} deaths took it longer than {ms(limit)} ms (seen by "
        f"{', '.join(f'{name} {n}' for name, n in by.items()) or 'nothing'}; the bare loop was as late at {also}). "
        f"From these deaths to their report the guard was at work for {ms(worked)} ms and waited {ms(waited)} ms for a "
        f"core (medians; over all deaths it works {ms(usually)} ms): what it is busy with when a rank dies delays it"
    )


def report(measured: list[Measured]) -> Report:
    rows = [_row(one) for one in measured]
    quiet = {one.case.size: one for one in measured if not one.case.load}
    small, large = quiet.get(8), quiet.get(max(quiet)) if quiet else None
    if small is not None and large is not None and large.case.size > 8:
        guard, bare = (large.p50[name] / small.p50[name] for name in (GUARD, BARE))
        why = f"the bare loop's p50 changed {times(bare)} between the same two rows"
        goal = Goal(f"p50 at {large.case.size} / p50 at 8", guard, FLAT, "x", why=why)
        rows.append(Row("flat in number", ("", times(guard), "", times(bare), "", "", ""), (goal,)))
    notes = (
        "Milliseconds from the SIGKILL to each observer's knowledge: p50 / p99. 'told': the guard's report had arrived "
        "in the supervisor's place (the incident opened or extended by then).",
        "The guard stamps a death when its loop wakes for it, as the bare loop does. With threads in the ranks it is "
        "woken by a thread's end, before the process is gone: hence ratios below 1.",
    )
    columns = ("deaths", "guard", "told", "bare pidfd loop", "psutil 100 ms", "psutil 1 s", "missed")
    return Report(NAME, "Death to Observation", columns, tuple(rows), notes)


def _row(one: Measured) -> Row:
    case = one.case
    cells = (
        str(case.deaths),
        *(f"{ms(a)} / {ms(b)}" for a, b in ((one.p50[GUARD], one.p99[GUARD]), (one.told_p50, one.told_p99))),
        *(f"{ms(one.p50[name])} / {ms(one.p99[name])}" for name in (BARE, POLL, SLOW_POLL)),
        str(one.missed),
    )
    goals = [Goal("p99 / bare p99", one.ratio, RATIO, "x", why=one.why)]
    if one.missed:
        goals.append(Goal("deaths missed", one.missed, 0, why="never reported within 15 s"))
    name = f"{case.size} processes" if case.size > 1 else "1 process"
    data = {**one.data, "size": case.size, "load": case.load, "p50": one.p50, "p99": one.p99}
    return Row(f"{name}{', ' if case.load else ''}{case.load}", cells, tuple(goals), data)
