"""What a benchmark hands back, and how it is shown: rows of measurements, goals beside them, met or missed.

A goal carries what was measured and what was asked for; whether it is met is computed from the two and nowhere else.
Where it is missed, `why` says what the run itself measured of the cause.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.scale import Scale

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Goal:
    """`measured` is to be at most `limit` (or at least, where `at_least`). `unit` is written behind both."""

    what: str
    measured: float
    limit: float
    unit: str = ""
    at_least: bool = False
    why: str = ""

    @property
    def met(self) -> bool:
        if math.isnan(self.measured):
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def asked(self) -> str:
        return f"{self.what} {'≥' if self.at_least else '≤'} {_number(self.limit)}{self.unit}"

    def got(self) -> str:
        return f"{_number(self.measured)}{self.unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: the name, the cells under the table's columns, and the goals that it is held against."""

    name: str
    cells: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's result. `notes` say how it was measured, and what a reader must know to judge it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def goals(self) -> list[Goal]:
        return [goal for row in self.rows for goal in row.goals]


def show(report: Report, console: Console) -> None:
    """Print one benchmark."""
    table = Table(title=report.title, title_justify="left", title_style="bold", expand=False, pad_edge=False)
    table.add_column("")
    for column in report.columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("goal")
    table.add_column("")
    for row in report.rows:
        goals = Text("\n").join(Text(f"{goal.asked()}: {goal.got()}") for goal in row.goals)
        verdicts = Text("\n").join(Text("met", "green") if g.met else Text("missed", "red") for g in row.goals)
        table.add_row(Text(row.name), *(Text(cell) for cell in row.cells), goals, verdicts)
    console.print(table)
    for row in report.rows:
        for goal in row.goals:
            if not goal.met:
                why = goal.why or "nothing that this run measured explains it"
                console.print(Text.assemble(("  missed ", "red"), f"{row.name}: {goal.asked()}: {why}"))
    for note in report.notes:
        console.print(Text(f"  {note}", "dim"))
    console.print()


def keep(report: Report, machine: dict[str, Any], scale: Scale) -> Path:
    """Write a report for machines: `results/<name>.json`, or `<name>-quick.json`; the latest wins."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{report.name}.json" if scale is Scale.FULL else f"{report.name}-{scale}.json")
    rows = [{**asdict(row), "goals": [{**asdict(g), "met": g.met} for g in row.goals]} for row in report.rows]
    body = {
        "benchmark": report.name, "title": report.title, "wall": time.time(), "scale": str(scale), "machine": machine,
        "columns": report.columns, "rows": rows, "notes": report.notes,
    }  # fmt: skip
    path.write_text(json.dumps(_finite(body), indent=1) + "\n")
    return path


def summary(reports: Sequence[Report], console: Console) -> None:
    """One line over everything."""
    goals = [goal for report in reports for goal in report.goals]
    met = sum(goal.met for goal in goals)
    console.print(Text(f"{met} of {len(goals)} goals met", "bold"))


def _number(value: float) -> str:
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
