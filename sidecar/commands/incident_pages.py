"""How incidents look in a terminal: the table of many, the page of one.

Everything in a record may come from outside (a process title, a kernel's word): it is made printable, and given to
rich as `Text`, never as markup.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sidecar.commands import units
from sidecar.commands.terminal import console, printable
from sidecar.dumps.folder import Entry
from sidecar.dumps.opening import top
from sidecar.dumps.stacks import FILE, snapshots_of
from sidecar.dumps.values import first_failure, number, part, parts, seconds_of, text
from sidecar.recorder.analysis.rank_sets import Ranks, compact

_BAD = "bold red"
_GOOD = "green"
_DIM = "dim"
_NONE = "–"
_DIGITS = re.compile("[0-9]+")
_FEW = 2  # artifacts of a kind that get a line each


def print_table(dump_dir: str, entries: Sequence[Entry]) -> None:
    out = console()
    if not entries:
        out.print(_text(f"No incidents in {dump_dir}"))
        return
    pods = [_pod(entry) for entry in entries]
    several = len(set(pods)) > 1
    table = _table("TIME (UTC)", "REASON", "FIRST", "CAUSE", "ENGINE")
    if several:
        table.add_column("POD", overflow="fold")
    for title in ("EVIDENCE", "ENDED", "SEALED"):
        table.add_column(title, no_wrap=title != "ENDED")
    table.add_column("ID", overflow="fold")
    for entry, pod in zip(entries, pods, strict=True):
        record = entry.record
        first = first_failure(record)
        row = [_text(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.wall)))]
        if entry.unreadable:
            row += [_text(f"unreadable: {entry.unreadable}", _BAD)] + [_text(_NONE)] * 3
        else:
            verdict = part(record, "verdict")
            odd = _words(verdict.get("odd"))
            about = text(first, "rank") or text(first, "role") or (odd[0] if len(odd) == 1 else "")
            row += [_text(text(record, "reason")), _text(about, _BAD)]
            row += [_text(text(first, "cause") or text(verdict, "liveness")), _text(text(record, "engine"))]
        if several:
            row.append(_text(pod))
        count = len(parts(record, "artifacts"))
        row += [_text(f"{count} · {units.shown_size(entry.bytes)}"), _ended(part(record, "termination"))]
        row += [_text("yes", _GOOD) if entry.sealed else _text("no"), _text(entry.id)]
        table.add_row(*row)
    out.print(table)


def print_page(dump_dir: str, entry: Entry) -> None:
    """The story of one incident: what it was, then what that rests on, then all there is."""
    record = entry.record
    out = console()
    verdict = part(record, "verdict")
    sentence = text(verdict, "sentence")
    if sentence:
        sure = text(verdict, "confidence")
        said = _text(sentence, "bold")
        out.print(said.append(printable(f" (confidence: {sure})"), _DIM) if sure else said)
    out.print(_text(text(record, "summary") or text(record, "reason"), "" if sentence else "bold"))
    out.print()
    out.print(_indented(_facts(dump_dir, entry)))
    _section(out, "Because", _lines(_words(verdict.get("reasons"))))
    _section(out, "Failures", _failures(record))
    _section(out, "Timeline", _timeline(record))
    _print_stacks(out, dump_dir, entry, sentence != "")
    _section(out, "Artifacts", _artifacts(record))
    _section(out, "Termination", _termination(record))
    for title, key in (("Verdict", "verdict"), ("Notes", "notes")):
        value = record.get(key)
        _section(out, title, _lines(_words(value) if isinstance(value, list) else [text(record, key)]))


def _print_stacks(out: Console, dump_dir: str, entry: Entry, explained: bool) -> None:
    from sidecar.commands.incident_stacks import stacks_of

    try:
        with top(dump_dir) as root:
            snapshots = snapshots_of(root, entry.path)
    except (OSError, ValueError) as error:
        why = f"{FILE}: {getattr(error, 'strerror', None) or error}"
        if not explained:
            why = "there is no analysis: it failed, was not begun, or the incident is of an older version"
        _section(out, "Stacks", _text(why, _DIM))
        return
    if not snapshots:
        _section(out, "Stacks", _text("no stack could be read", _DIM))
        return
    apart = _words(part(entry.record, "verdict").get("apart"))
    for title, lines in stacks_of(snapshots, apart, out.width):
        _section(out, title, Text("\n").join(lines))


def _lines(words: Sequence[str]) -> Text | None:
    return Text("\n").join(_text(line) for line in words) if any(words) else None


def _facts(dump_dir: str, entry: Entry) -> Table:
    record = entry.record
    decision = part(record, "decision")
    because = decision.get("because")
    reasons = _words(because)
    pod = part(record, "pod")
    grid = Table.grid(padding=(0, 2))
    for name, value in (
        ("id", entry.id),
        ("reason", text(record, "reason")),
        ("verdict", _verdict(record)),
        ("decision", text(decision, "action") + (f" ({'; '.join(reasons)})" if reasons else "")),
        ("engine", text(record, "engine")),
        ("group", text(record, "group")),
        ("pod", "/".join(filter(None, (text(pod, "namespace"), text(pod, "name"))))),
        ("pod uid", text(pod, "uid")),
        ("node", text(pod, "node")),
        ("folder", os.path.join(os.path.abspath(dump_dir), entry.path)),
        ("size", f"{units.shown_size(entry.bytes)} in {entry.files} file{'' if entry.files == 1 else 's'}"),
        ("signature", text(record, "signature")),
        ("not in full", _not_in_full(record)),
        ("sealed", "yes" if entry.sealed else "no: still being written, or its writer was ended"),
    ):
        if value:
            grid.add_row(_text(name, _DIM), _text(value))
    return grid


def _verdict(record: dict[str, Any]) -> str:
    """`stuck for 31 s; TP1 stands apart`, "" where the incident is about no living engine."""
    verdict = part(record, "verdict")
    since = seconds_of(verdict, "since_seconds")
    odd = _words(verdict.get("odd"))
    said = text(verdict, "liveness") + (f" for {since:.0f} s" if since is not None else "")
    return said + (f"; {', '.join(odd)} stand{'s' if len(odd) == 1 else ''} apart or still" if odd else "")


def _not_in_full(record: dict[str, Any]) -> str:
    """Why evidence is missing that was never to be there, or that is there no more."""
    throttled = part(record, "throttled")
    if throttled:
        return f"number {text(throttled, 'count')} since the last one in full, at {text(throttled, 'since')}"
    return "a repeat: its evidence was removed to make room" if record.get("collapsed") is True else ""


def _words(value: object) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _failures(record: dict[str, Any]) -> Table | None:
    failures = parts(record, "failures")
    if not failures:
        return None
    first = first_failure(record)
    table = _table("", "RANK", "ROLE", "PID", "CAUSE", "STATUS", "SEEN (UTC)", "DETAIL")
    for failure in failures:
        style = _BAD if failure is first else ""
        table.add_row(
            _text("first" if failure is first else "", style),
            _text(text(failure, "rank"), style),
            *(_text(text(failure, key)) for key in ("role", "pid", "cause")),
            _text(_status(failure)),
            _text(_moment(failure, "observed_at")),
            _text(text(failure, "detail")),
        )
    return table


def _status(failure: dict[str, Any]) -> str:
    """`signal 9 (SIGKILL)`, `exit 1`, or nothing where nobody knows."""
    ending = failure.get("signal")
    if isinstance(ending, int) and not isinstance(ending, bool):
        try:
            return f"signal {ending} ({signal.Signals(ending).name})"
        except ValueError:
            return f"signal {ending}"
    code = failure.get("exit_code")
    return _NONE if code is None else f"exit {text(failure, 'exit_code')}"


def _timeline(record: dict[str, Any]) -> Table | None:
    steps = parts(record, "timeline")
    if not steps:
        return None
    # `ms` is by the monotonic clock, from the first failure; where it is missing, wall times have to do.
    times = [seconds_of(step, "at") for step in steps]
    start = next((at for at in times if at is not None), 0.0)
    table = _table("MS", "TIME (UTC)", "EVENT", "DETAIL")
    table.columns[0].justify = "right"
    for step, at, detail in _together(steps, times):
        since = number(step, "ms") if "ms" in step else None if at is None else (at - start) * 1000
        table.add_row(
            _text("" if since is None else f"{since:+.1f}"),
            _text(_moment(step, "at"), _DIM),
            _text(text(step, "event")),
            _text(detail),
        )
    return table


def _together(
    steps: Sequence[dict[str, Any]], times: Sequence[float | None]
) -> Iterator[tuple[dict[str, Any], float | None, str]]:
    """Each step with its time and detail; captures that follow one another and became the same as one of them,
    `pyspy_json of 8: captured`: of many ranks nobody reads each."""
    waiting: dict[tuple[str, str], list[int]] = {}  # places of captures, by kind and what became of them

    def over() -> Iterator[tuple[dict[str, Any], float | None, str]]:
        for (kind, became), places in waiting.items():
            step = steps[places[0]]
            detail = text(step, "detail") if len(places) == 1 else f"{kind} of {len(places)}: {became}"
            yield step, times[places[0]], detail
        waiting.clear()

    for place, step in enumerate(steps):
        kind, _, rest = text(step, "detail").partition(" ")
        _, of_one, became = rest.rpartition(": ")
        if text(step, "event") == "captured" and of_one:
            waiting.setdefault((kind, became), []).append(place)
            continue
        yield from over()
        yield step, times[place], text(step, "detail")
    yield from over()


def _artifacts(record: dict[str, Any]) -> Table | None:
    artifacts = parts(record, "artifacts")
    if not artifacts:
        return None
    table = _table("KIND", "RANK", "STATUS", "SIZE", "TOOK", "PATH", "DETAIL")
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in artifacts:
        why = _DIGITS.sub("", text(one, "detail"))  # times differ, and say no more
        alike.setdefault((text(one, "kind"), text(one, "status"), why), []).append(one)
    for (kind, status, _), some in alike.items():
        style = {"captured": _GOOD, "failed": _BAD, "timed_out": _BAD}.get(status, "yellow")
        for rows in [some] if len(some) > _FEW else [[one] for one in some]:
            table.add_row(
                _text(kind),
                _text(compact(Ranks(text(row, "rank") for row in rows).labels)),
                _text(status, style),
                _text(units.shown_size(int(sum(number(row, "bytes") for row in rows)))),
                _text(units.shown_seconds(max(number(row, "seconds") for row in rows))),
                _text(_path_of(rows)),
                _text(text(rows[0], "detail")),
            )
    return table


def _path_of(artifacts: Sequence[dict[str, Any]]) -> str:
    """Of one its path, of many their folder and what their names end in."""
    paths = [text(artifact, "path") for artifact in artifacts]
    if len(paths) == 1 or not all(paths):
        return paths[0] if len(paths) == 1 else ""
    folders = {path.rpartition("/")[0] for path in paths}
    endings = {os.path.splitext(path)[1] for path in paths}
    return f"{folders.pop()}/*{endings.pop()}" if len(folders) == len(endings) == 1 else f"{len(paths)} files"


def _termination(record: dict[str, Any]) -> Table | None:
    termination = part(record, "termination")
    if not termination:
        return None
    grid = Table.grid(padding=(0, 2))
    grid.add_row(_text("ended", _DIM), _ended(termination))
    killed = [_process(member) for member in parts(termination, "killed")]
    if killed:
        grid.add_row(_text("killed", _DIM), _text(f"{len(killed)}: {', '.join(killed)}"))
    for survivor in parts(termination, "survivors"):
        wchan = text(survivor, "wchan")
        where = f", in {wchan}" if wchan else ""
        drain = "; the node needs a drain" if text(survivor, "state") == "D" else ""
        words = f"{_process(survivor)} in state {text(survivor, 'state') or '?'}{where}{drain}"
        grid.add_row(_text("survivor", _DIM), _text(words, _BAD))
    if detail := text(termination, "detail"):
        grid.add_row(_text("detail", _DIM), _text(detail))
    return grid


def _process(member: dict[str, Any]) -> str:
    """`TP3 (1234)`, by what there is: the rank, else the role, else the command name."""
    pid = text(member, "pid") or text(part(member, "identity"), "pid") or "?"
    name = text(member, "rank") or text(member, "role") or text(member, "comm") or "process"
    return f"{name} ({pid})"


def _ended(termination: dict[str, Any]) -> Text:
    outcome = text(termination, "outcome")
    if not outcome:
        return _text(_NONE)
    style = _BAD if outcome in ("still_alive", "denied") else _GOOD
    return _text(f"{outcome} {units.shown_seconds(number(termination, 'seconds'))}", style)


def _pod(entry: Entry) -> str:
    pod = part(entry.record, "pod")
    written = "/".join(filter(None, (text(pod, "namespace"), text(pod, "name"))))
    return written or entry.path.rpartition("/")[0]


def _moment(data: dict[str, Any], key: str) -> str:
    """The time of day with milliseconds; a monotonic time has none."""
    at = seconds_of(data, key)
    if at is None or not isinstance(data.get(key), str) or not 0 <= at < 2**35:
        return ""
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03d}"


def _section(out: Console, title: str, content: Table | Text | None) -> None:
    if content is not None:
        out.print()
        out.print(_text(title, "bold"))
        out.print(_indented(content))


def _indented(content: Table | Text) -> Padding:
    return Padding(content, (0, 0, 0, 2), expand=False)


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style=_DIM)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in ("KIND", "TIME (UTC)", "SEEN (UTC)", "MS", "FIRST"))
    return table


def _text(value: str, style: str = "") -> Text:
    return Text(printable(value), style=style)
