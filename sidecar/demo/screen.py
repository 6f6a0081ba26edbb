"""What the demo prints. Everything that comes from a process or a record is printed as text, never as markup."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sidecar.commands import units
from sidecar.commands.terminal import console, printable
from sidecar.demo.standin import Process, StandIn
from sidecar.demo.watcher import Sample
from sidecar.dumps import values
from sidecar.dumps.folder import Entry

_DIM, _BAD, _GOOD, _HEAD = "dim", "bold red", "green", "bold"
_NAMES = {"sglang": "SGLang", "vllm": "vLLM"}
_STACK_LINES = 10
_TEXT_STACK = "pyspy_text"
_LOOKALIKE = str(Path(__file__).resolve().parent / "lookalike") + os.sep
# Changing all the time, or once for each kind of evidence.
_NOISE = ("rankguard_dump_free_bytes", "rankguard_capture_seconds", "rankguard_failfast_seconds_bucket")


class Screen:
    def __init__(self) -> None:
        self._out = console()
        self._seen_ranks = 0

    def title(self, engine: str) -> None:
        self._print(f"Rankguard demo: a stand-in for {_NAMES[engine]} with 4 ranks, on real processes, no GPU", _HEAD)

    def engine(self, standin: StandIn, victim: str, waiting: str) -> None:
        table = _table()
        for process in standin.processes:
            if process.role not in ("helper", "resource_tracker"):
                where = {victim: "in the attention; will be killed", waiting: "in an all-reduce, waiting"}
                role_where = {"scheduler": "in the attention", "worker": "in the attention"}
                note = where.get(process.label) or role_where.get(process.role, "")
                table.add_row(process.label, str(process.pid), _text(note, _DIM), _text(_title(process)))
        self._section("The engine", table)

    def watching(self, pid: int, port: int | None, metrics: dict[Sample, float]) -> None:
        up = sum(value == 1 for (name, _), value in metrics.items() if name == "rankguard_rank_up")
        expected = next((int(v) for (name, _), v in metrics.items() if name == "rankguard_ranks_expected"), None)
        words = f"rankguard run ({pid}) watches {up} processes; it expects {expected} ranks, as the command line says"
        self._section("The watch", _text(f"{words}. http://127.0.0.1:{port}/readyz says 200."))

    def death(self, victim: Process) -> None:
        self._section("What happens", None)
        self._moment(0.0, "died", f"SIGKILL to {victim.label} ({victim.pid})", _BAD)

    def said(self, line: dict[str, Any], killed_at: float) -> None:
        """One log line of the sidecar's, where it is the guard's about the incident."""
        if line.get("process") != "guard":
            return
        ms = max(0.0, (_wall(line.get("time")) - killed_at) * 1000)
        event = line.get("event")
        if event == "rank died":
            cascade = "a cascade of it" if line.get("cascade") else f"the first, seen by {line.get('seen_by')}"
            self._moment(ms, "seen", f"{line.get('rank')}: {line.get('cause') or line.get('status')}; {cascade}")
        elif event == "frozen":
            self._moment(ms, "frozen", f"{line.get('processes')} processes stopped in {_ms(line.get('ms'))}")
        elif event == "captured":
            if line.get("kind") == _TEXT_STACK and line.get("status") != "skipped":
                took = units.shown_seconds(float(line.get("seconds") or 0.0))
                self._moment(ms, "captured", f"stacks of {line.get('rank')}: {line.get('status')} in {took}")
        elif event == "killed":
            self._moment(ms, "killed", f"SIGKILL to {line.get('processes')} processes in {_ms(line.get('ms'))}")
        elif event == "gone":
            self._moment(ms, "gone", f"{line.get('outcome')}, {_ms(line.get('ms'))} after the kill", _GOOD)
        elif event == "sealed":
            self._moment(ms, "sealed", "the record is complete", _GOOD)
        elif line.get("incident"):
            self._moment(ms, str(event), " ".join(f"{k}={v}" for k, v in line.items() if k not in _ROUTINE), _DIM)

    def record(self, entry: Entry, killed_at: float) -> None:
        """The sentence, the times as the record has them, and the files."""
        record = entry.record
        self._section("What is on record", _text(values.text(record, "summary"), _HEAD))
        steps = values.parts(record, "timeline")
        captured = [step for step in steps if step.get("event") == "captured"]
        table = _table("MS", "EVENT", "DETAIL")
        table.columns[0].justify = "right"
        for step in steps:
            if step.get("event") != "captured":
                table.add_row(
                    _since(step, killed_at),
                    _text(values.text(step, "event")),
                    _text(values.text(step, "detail")),
                )
            elif step is captured[0]:  # there are some for each process: one line for all of them
                detail = f"{len(captured)} pieces of evidence from here to {_since(captured[-1], killed_at)}"
                table.add_row(_since(step, killed_at), "captured", detail)
        self._section(None, table)

    def stack(self, dump_dir: Path, entry: Entry, rank: str) -> None:
        """The innermost frames of one survivor's main thread."""
        text = _stack(dump_dir / entry.path, values.parts(entry.record, "artifacts"), rank)
        if text:
            self._section(f"Where {rank} stood when the other one died", _text(text))

    def metrics(self, before: dict[Sample, float], after: dict[Sample, float]) -> None:
        table = _table("METRIC", "BEFORE", "AFTER")
        ended = 0
        for sample in sorted(before.keys() | after.keys()):
            name, labels = sample
            old, new = before.get(sample), after.get(sample)
            if not name.startswith("rankguard_") or (old or 0) == (new or 0) or name.startswith(_NOISE):
                continue
            if new is None:
                ended += 1
                continue
            shown = ",".join(f'{key}="{value}"' for key, value in labels)
            table.add_row(_text(f"{name}{{{shown}}}" if shown else name), _number(old or 0), _number(new))
        self._section("Metrics that changed", table)
        if ended:
            self._section(
                None, _text(f"{ended} more series ended with the engine: rankguard_rank_up and the like.", _DIM)
            )

    def next_steps(self, folder: Path, dump_dir: Path, entry: Entry) -> None:
        where = dump_dir / entry.path
        table = _table()
        for path in sorted(path for path in where.rglob("*") if path.is_file()):
            table.add_row(_text(str(path.relative_to(where))), _text(units.shown_size(path.stat().st_size), _DIM))
        self._section(f"The evidence: {where}", table)
        at = shlex.quote(str(dump_dir))
        self._section(
            "What to try next",
            _text(
                f"rankguard incidents show {entry.id} --dump-dir {at}\n"
                f"rankguard incidents list --dump-dir {at}\n"
                "rankguard run --dump-dir DIR                  beside an engine of yours\n"
                "rankguard run --dump-dir DIR -- CMD…          as its parent\n"
                f"rm -r {shlex.quote(str(folder))}"
            ),
        )

    def verdict(self, broken: list[str], folder: Path) -> None:
        self._out.print()
        for line in broken:
            self._print(f"Not as promised: {line}", _BAD)
        if broken:
            self._print(f"What there is lies in {folder}", _DIM)
        else:
            self._print("All as promised: the engine is gone, the record is sealed, no process is left.", _GOOD)

    def interrupted(self, folder: Path) -> None:
        self._out.print()
        self._print(f"Interrupted; everything that was started is being killed. What there is lies in {folder}")

    # How.

    def _section(self, title: str | None, what: Table | Text | None) -> None:
        self._out.print()
        if title is not None:
            self._print(title, _HEAD)
        if what is not None:
            self._out.print(Padding(what, (0, 0, 0, 2), expand=False))

    def _moment(self, ms: float, event: str, detail: str, style: str = "") -> None:
        line = Text(f"  {ms:8.1f} ms  ", _DIM)
        line.append(f"{printable(event):<8}  ", style)
        line.append(printable(detail), _DIM if style == _DIM else "")
        self._out.print(line)

    def _print(self, text: str, style: str = "") -> None:
        self._out.print(_text(text, style))


_ROUTINE = ("time", "process", "event", "incident")


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if heads else None, show_header=bool(heads), show_edge=False, pad_edge=False)
    for head in heads:
        table.add_column(head, header_style=_DIM, overflow="fold")
    return table


def _text(text: str, style: str = "") -> Text:
    return Text("\n".join(printable(line) for line in text.split("\n")), style)


def _title(process: Process) -> str:
    try:
        raw = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = raw.rstrip(b"\0").decode(errors="replace").split("\0")
    return " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in words)


def _wall(stamp: object) -> float:
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return 0.0


def _since(step: dict[str, Any], killed_at: float) -> str:
    at = values.seconds_of(step, "at")
    return "" if at is None else f"{(at - killed_at) * 1000:.1f}"


def _ms(value: object) -> str:
    return f"{float(value):.1f} ms" if isinstance(value, (int, float)) else "?"


def _number(value: float | None) -> Text:
    return _text("–" if value is None else f"{value:.3f}".rstrip("0").rstrip("."))


def _stack(folder: Path, artifacts: list[dict[str, Any]], rank: str) -> str:
    for artifact in artifacts:
        path = values.text(artifact, "path")
        is_stack = values.text(artifact, "kind").startswith("pyspy") and path.endswith(".txt")
        inside = bool(path) and ".." not in Path(path).parts and not Path(path).is_absolute()
        if is_stack and inside and artifact.get("rank") == rank:
            lines = (folder / path).read_text(errors="replace").splitlines()
            at = next((n for n, line in enumerate(lines) if "MainThread" in line), None)
            if at is not None:
                inner = takewhile(lambda line: line.startswith(" ") and "multiprocessing/" not in line, lines[at + 1 :])
                frames = [line.strip().replace(_LOOKALIKE, "") for line in islice(inner, _STACK_LINES)]
                return "\n".join([lines[at], *(f"  {frame}" for frame in frames)])
    return ""
