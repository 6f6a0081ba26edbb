"""What it costs to ask a healthy engine how it is: a sidecar that probes and scrapes it, and one that does not.

Both watch the same 8 ranks of one engine at once, so the difference is the asking. The engine's own CPU is not
counted. Its page of metrics has the length of a real one.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

from bench.children import Child, program
from bench.pump import Pump, now
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.sidecar_run import Sidecar
from bench.stats import ms
from bench.usage import Used, pss_alone_mib, pss_mib, used
from sidecar.demo.standin import StandIn
from sidecar.errors import RankguardError

NAME = "probing"
RANKS = 8
LINES = (1200, 5000)  # of a page of metrics: one scheduler's, and that of a server with data parallelism
LIMIT = 0.3  # per cent of a core
WEB_MIB = 60.0
ASKING, SILENT = "asking", "not asking"
# Seconds until it has settled, and of measuring; the probe period, None for the default.
SIZES: dict[Scale, tuple[float, float, float | None]] = {
    Scale.FULL: (45.0, 120.0, None), Scale.QUICK: (15.0, 60.0, None), Scale.SMOKE: (0.5, 2.0, 0.5),
}  # fmt: skip
_READY, _START = 60.0, 30.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the two sidecars over `seconds`: CPU by process. `asked`: how often health and metrics were."""

    lines: int
    seconds: float
    period: float
    asked: tuple[int, int]
    used: dict[str, dict[str, Used]]
    web_mib: dict[str, float]

    def share(self, which: str, *names: str) -> float:
        """Per cent of a core."""
        return 100 * sum(self.used[which][name].cpu for name in names or self.used[which]) / self.seconds

    @property
    def difference(self) -> float:
        return self.share(ASKING) - self.share(SILENT)


def run(scale: Scale) -> Report:
    settle, seconds, period = SIZES[scale]
    sizes = LINES if scale is Scale.FULL else LINES[:1]
    return report([measure(lines, settle, seconds, period) for lines in sizes])


def measure(lines: int, settle: float, seconds: float, period: float | None) -> Cost:
    asked: list[str] = []
    with ExitStack() as stack:
        pump = Pump()
        stack.callback(pump.close)
        standin = stack.enter_context(StandIn(engine="sglang", tp=RANKS, health_port=0))
        standin.wait_ready(_READY)
        page = stack.enter_context(Child(program("engine_http", lines)))
        pump.add_lines(page.out, lambda text, _: asked.append(text))
        pump.until(lambda: bool(asked), _START, "the server with the page of metrics listens")
        url = f"http://127.0.0.1:{asked[0].split()[1]}"
        sidecars = {}
        for which, health, metrics in ((ASKING, f"{url}/health", f"{url}/metrics"), (SILENT, "none", "none")):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-"))
            flags = (
                "--root-pid", str(standin.server), "--on-rank-death", "observe", "--on-liveness-failure", "observe",
                "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--health-url", health, "--metrics-url",
                metrics, *(("--probe-period", str(period)) if period else ()),
            )  # fmt: skip
            sidecars[which] = stack.enter_context(Sidecar(pump, folder, *flags))
        for which, sidecar in sidecars.items():
            sidecar.until("watching", _START, state="serving", ranks=RANKS)
            sidecar.until("recorder stands by", _START)
            sidecar.until("connected to the guard", _START)
            if which == ASKING:
                sidecar.until("the engine answers", _START)
        pump.run(settle)
        trees = {which: sidecar.tree() for which, sidecar in sidecars.items()}
        before = len(asked)
        began = now()
        first = {which: {name: used(pid) for name, pid in tree.items()} for which, tree in trees.items()}
        pump.run(seconds)
        last = {which: {name: used(pid) for name, pid in tree.items()} for which, tree in trees.items()}
        took = now() - began
        paths = asked[before:]
        if not paths.count("/metrics"):
            raise RankguardError("nobody read the page of metrics")
        if any(line.get("event") == "liveness failed" for sidecar in sidecars.values() for line in sidecar.lines):
            raise RankguardError("a healthy engine was found stuck or dead")
        memory = {}
        for which, tree in trees.items():
            alone = pss_alone_mib(tree.values())
            memory[which] = alone[tree["web"]] if alone else pss_mib(tree["web"])
        return Cost(
            lines, took, period or 10.0, (paths.count("/health"), paths.count("/metrics")),
            {which: {name: last[which][name] - first[which][name] for name in tree} for which, tree in trees.items()},
            memory,
        )  # fmt: skip


def report(costs: list[Cost]) -> Report:
    rows = []
    for cost in costs:
        why = ", ".join(
            f"{name} {cost.share(ASKING, name):.3f} % against {cost.share(SILENT, name):.3f} %"
            for name in cost.used[ASKING]
        )
        goals = (
            Goal("CPU of probing and scraping", cost.difference, LIMIT, " %", why=why),
            Goal("CPU of the whole tree", cost.share(ASKING), LIMIT, " %", why=why),
            Goal("PSS of the web", cost.web_mib[ASKING], WEB_MIB, " MiB"),
        )
        data = {
            "seconds": cost.seconds, "asked": cost.asked, "web_mib": cost.web_mib,
            "cpu_seconds": {which: {n: u.cpu for n, u in tree.items()} for which, tree in cost.used.items()},
        }  # fmt: skip
        rows.append(Row(f"{RANKS} ranks, {cost.lines:,} lines of metrics: asking", _cells(cost, ASKING), goals, data))
        rows.append(Row("  not asking", _cells(cost, SILENT)))
        rows.append(
            Row(
                "  the asking",
                (
                    f"{cost.difference:.3f}",
                    f"{cost.share(ASKING, 'web') - cost.share(SILENT, 'web'):.3f}",
                    f"{cost.share(ASKING, 'guard') - cost.share(SILENT, 'guard'):.3f}",
                    ms(cost.difference / 100 * cost.seconds / cost.asked[1]),
                    f"{cost.web_mib[ASKING] - cost.web_mib[SILENT]:.1f}",
                ),
            )
        )
    rounds = "; ".join(f"{health} and {metrics} times" for health, metrics in (cost.asked for cost in costs))
    notes = (
        f"Per cent of a core over {costs[0].seconds:.0f} s, both sidecars at once on one engine, period "
        f"{costs[0].period:g} s: health and metrics were asked {rounds}. 'each time': CPU ms of one health check, one "
        "reading and one look at the ranks' state.",
    )
    columns = ("tree %", "web %", "guard %", "each time ms", "web PSS MiB")
    return Report(NAME, "Asking a healthy engine", columns, tuple(rows), notes)


def _cells(cost: Cost, which: str) -> tuple[str, ...]:
    return (
        f"{cost.share(which):.3f}", f"{cost.share(which, 'web'):.3f}", f"{cost.share(which, 'guard'):.3f}", "",
        f"{cost.web_mib[which]:.1f}",
    )  # fmt: skip
