"""Incidents that somebody made to harm who looks at them, beside those that a dying process left half done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dump_folders import incident, put, rewrite

POD = "hostile/pod-0"
OUTSIDE = "outside-of-the-volume"
# Each would be seen: by a dialog, an element or a request that the page never makes, or the title.
MARK = "harmed"
_CHECKED = {"schema", "id", "failures", "timeline", "artifacts", "pod", "decision", "termination"}
SCRIPT = f"<script>document.title='{MARK}';alert('{MARK}')</script>"
IMAGE = f"<img id='{MARK}' src='/{MARK}.png' onerror=\"alert('{MARK}')\">"
VECTOR = f"\"'><svg id='{MARK}' onload=\"document.title='{MARK}'\"></svg><a href=\"javascript:alert('{MARK}')\">x</a>"
ANSI = "\x1b[2J\x1b]0;harmed\x07\x1b[31mred\x1b[0m\x00\x08"
BIDI = "\u202e\u2066gpj.exe\u2069 \u200b\ufeff"
ALL = IMAGE + VECTOR + SCRIPT + ANSI + BIDI
HUGE = "A" * (2 << 20)
DEEP = "[" * 100_000 + "]" * 100_000
NAMES = (
    "<b>bold.txt", "java\nscript.html", "\u202etxt.exe", "a" * 250, "%2e%2e%2fup", "..\\up", "page.html", "?q#frag",
)  # fmt: skip


def make_hostile(folder: Path) -> dict[str, str]:
    """One incident of each kind, by the name of what is wrong with it: the paths."""
    pod = folder / POD
    (folder.parent / "outside").mkdir(parents=True)
    (folder.parent / "outside" / "incident.json").write_text(json.dumps({"summary": OUTSIDE}))
    (folder.parent / "outside" / "secret.txt").write_text(OUTSIDE)
    made = {}
    for n, (name, spoil) in enumerate(KINDS.items()):
        home = put(pod, incident(n + 1.0, rank=f"TP{n}", pod=POD))
        spoil(home)
        made[name] = f"{POD}/{home.name}"
    return made


def _markup(home: Path) -> None:
    """Markup and control characters in every text, and names of files that lead elsewhere."""
    for name in NAMES:
        (home / name).write_text(ALL)
    (home / "analysis").mkdir()
    (home / "metrics").mkdir()
    (home / "process").mkdir()
    (home / "analysis" / "stacks.json").write_text(json.dumps(_stacks(ALL)))
    (home / "analysis" / "stacks.txt").write_text(ALL * 3)
    (home / "process" / "TP0.json").write_text(
        json.dumps({"pid": ALL, "state": ALL, "cmdline": [ALL], "environ": {ALL: ALL}})
    )
    lines = [ALL, f'sglang:num_running_reqs{{a="{IMAGE}"}} NaN', "sglang:num_queue_reqs 1e999"]
    (home / "metrics" / "engine.jsonl").write_text(
        json.dumps({"wall": ALL, "at": 1, "lines": lines}) + "\n"
        + '{"wall": 1e300, "at": -1e300, "lines": {"a": 1}}\nno json\n[]\n' + ALL
    )  # fmt: skip
    artifacts: list[dict[str, Any]] = [
        dict.fromkeys(("kind", "rank", "bytes", "sha256", "status", "seconds", "detail"), ALL) | {"path": path}
        for path in (
            "../../../../outside/secret.txt", "/etc/passwd", "javascript:alert(1)", "//evil.example/x", IMAGE, *NAMES,
        )
    ]  # fmt: skip
    artifacts += [
        {"kind": kind, "rank": rank, "path": path, "bytes": 1, "sha256": "0" * 64, "status": "captured", "detail": ALL}
        for kind, rank, path in (
            ("analysis_json", "engine", "analysis/stacks.json"), ("analysis_text", "engine", "analysis/stacks.txt"),
            ("process", "TP0", "process/TP0.json"), ("engine_metrics", "engine", "metrics/engine.jsonl"),
        )
    ]  # fmt: skip
    failure = {"role": ALL, "rank": ALL, "pid": 1, "exit_code": None, "signal": 9, "cause": ALL, "detail": ALL,
               "observed_at": ALL, "first": True}  # fmt: skip
    rewrite(
        home, reason=IMAGE, summary=ALL, engine=VECTOR, group=ALL, notes=[ALL],
        pod={"namespace": IMAGE, "name": VECTOR, "uid": ALL, "node": SCRIPT}, failures=[failure],
        decision={"reason": ALL, "action": ALL, "because": [ALL], "captures": [ALL]},
        timeline=[{"at": "2026-11-20T23:59:59.000000Z", "event": ALL, "detail": ALL},
                  {"at": ALL, "event": "killed", "detail": ALL}],
        artifacts=artifacts, termination={"outcome": ALL, "killed": [ALL], "survivors": [ALL], "seconds": ALL},
        verdict=dict.fromkeys(("sentence", "confidence", "fingerprint"), ALL)
        | {key: [ALL] for key in ("reasons", "apart", "odd")},
    )  # fmt: skip


def _stacks(text: str) -> dict[str, Any]:
    """As the analysis writes it in shape, with places that lead nowhere and parents that go round in a circle."""
    node = {"parent": -1, "function": text, "file": text, "lines": [text, 1e300], "set": 0, "threads": text, "ends": 1}
    trees = [
        {"thread": text, "main": True, "nodes": [node, node | {"parent": 0}, node | {"parent": 2}, [text], 7]},
        {"thread": text, "main": text, "nodes": text}, None,
    ]  # fmt: skip
    snapshot = {
        "name": text, "ranks": [text, "TP0", 7], "fingerprint": text, "gil": [text, [text]],
        "places": {text: {"kind": text, "name": text}},
        "sets": [[0, 1, 99, -1, text], text, []], "trees": trees, "dropped": text, "apart": [text],
        "threads": [[0, 0, 0, 1, 0], [9, 9, 9, 9, 9], [1, 0, -1, text, -5], text, None],
    }  # fmt: skip
    return {"schema": "rankguard.dev/stacks/v1", "notes": [text, 7], "snapshots": [snapshot, snapshot, {}, None]}


def _wrong_types(home: Path) -> None:
    """No value has the type that it should have, where that alone makes no record unreadable."""
    record = json.loads((home / "incident.json").read_text())
    odd: list[Any] = [7, None, [[]], {"a": {}}, True, -1.5, "text"]
    spoilt = {key: odd[n % len(odd)] for n, key in enumerate(sorted(set(record) - _CHECKED))}
    rewrite(home, **spoilt)


def _wrong_within(home: Path) -> None:
    """Objects and lists with the wrong things in them; an analysis that breaks off."""
    (home / "analysis").mkdir()
    (home / "analysis" / "stacks.json").write_text('{"snapshots": [{"ranks"')
    rewrite(
        home, failures=[{}, {"rank": [], "first": "yes", "pid": {}}], notes={"a": 1}, sealed="yes",
        artifacts=[{}, {"path": 5, "kind": None, "bytes": -1, "sha256": []},
                   {"kind": "analysis_json", "path": "analysis/stacks.json", "status": "captured", "rank": 3}],
        timeline=[{"at": 5}, {}, {"event": []}, {"at": "yesterday", "event": 1, "ms": "soon"},
                  {"event": "killed", "ms": -1e308}],
        verdict={"sentence": {}, "apart": "TP1", "reasons": 5},
        termination={"killed": 3, "seconds": [], "survivors": {}},
        decision={"because": "x", "captures": 1}, pod={"namespace": [], "name": {}},
    )  # fmt: skip


def _huge(home: Path) -> None:
    """Texts of two megabytes."""
    rewrite(home, summary=HUGE, reason=HUGE[:70_000], verdict={"sentence": HUGE, "apart": [HUGE[:70_000]]})


def _half(home: Path) -> None:
    """What a crash left of a record."""
    data = (home / "incident.json").read_bytes()
    (home / "incident.json").write_bytes(data[: len(data) // 2])


def _unsealed(home: Path) -> None:
    rewrite(home, sealed=False, termination=None, artifacts=[])


def _gigabyte(home: Path) -> None:
    os.truncate(home / "incident.json", 1 << 30)


def _deep(home: Path) -> None:
    (home / "incident.json").write_text(f'{{"schema": "rankguard.dev/incident/v1", "notes": {DEEP}}}')


def _record_is_a_link(home: Path) -> None:
    (home / "incident.json").unlink()
    (home / "incident.json").symlink_to(home.parents[3] / "outside" / "incident.json")


def _file_is_a_link(home: Path) -> None:
    """A file that its record names, and its folder, lead out of the volume."""
    (home / "pyspy" / "TP0.json").unlink()
    (home / "pyspy" / "TP0.json").symlink_to(home.parents[3] / "outside" / "secret.txt")
    (home / "process").symlink_to(home.parents[3] / "outside")


KINDS: dict[str, Callable[[Path], None]] = {
    "markup": _markup, "wrong types": _wrong_types, "wrong within": _wrong_within, "huge": _huge, "half": _half,
    "unsealed": _unsealed, "gigabyte": _gigabyte, "deep": _deep, "record is a link": _record_is_a_link,
    "file is a link": _file_is_a_link,
}  # fmt: skip
