"""The analysis's program: it reads the evidence of one incident back from the volume and explains it.

It runs in a child with a limit of time and memory, so nothing that stands in those files can hold up the record. One
JSON argument says what to read. Its answer, on standard output: a line of JSON with the verdict and the sizes of the
files that follow it, `(name, bytes)`.
"""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from sidecar.model import Reason, failure_from, verdict_from
from sidecar.recorder.analysis import rendering
from sidecar.recorder.analysis.evidence import Behind, Case, Finding, Rank
from sidecar.recorder.analysis.ras import behind
from sidecar.recorder.analysis.reading import rank_of
from sidecar.recorder.analysis.stacks import Merged, Merger
from sidecar.recorder.analysis.threads import Reader
from sidecar.recorder.analysis.verdict import explain

_MOST_BYTES = 8 << 20  # of one file
_MOST_OF_ALL = 128 << 20
_BEGINNING = 1 << 20
_READING_SHARE = 0.6  # of the time
_STATES = ("process", "process2")
_TITLES = {"pyspy": "first snapshot", "pyspy2": "second snapshot", "pyspy_native": "with native frames"}

Read = Callable[[str], Any]  # a document by `folder/label`, None where there is none


def main(order: str) -> None:
    gc.disable()  # it lives for a moment and makes no cycles, but many objects
    told = json.loads(order)
    folder = os.open(told["folder"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = _Files(folder, time.monotonic() + _READING_SHARE * float(told["seconds"]))
    late = behind(files.text("nccl_ras/engine.txt")) or _recorded(_dumps(told, files))
    finding, snapshots = examine(told, files.document, late)
    notes = [f"{files.left_out} files were left out: more than can be read in time"] if files.left_out else []
    _answer(finding, snapshots, notes)


def examine(told: dict[str, Any], read: Read, late: Any = ()) -> tuple[Finding, list[tuple[str, Merged]]]:
    """The finding, and the merged stacks of each snapshot of which there are any."""
    labels = [row["rank"] for row in told["ranks"]]
    reader = Reader(told["engine"])
    first = Merger(labels, reader)
    mergers = {"pyspy": first, "pyspy2": Merger(labels, reader, before=first), "pyspy_native": Merger(labels, reader)}
    ranks: list[Rank] = []
    for row in told["ranks"]:
        name, pid = row.get("label", row["rank"]), row["pid"]
        threads = {folder: reader.threads(read(f"{folder}/{name}"), pid) for folder in mergers}
        states = [read(f"{folder}/{name}") for folder in _STATES]
        for folder, merger in mergers.items():
            merger.add(row["rank"], threads[folder])
        ranks.append(rank_of(row["rank"], row["role"], pid, reader, float(told["apart"]),
                             (threads["pyspy"], threads["pyspy2"], threads["pyspy_native"]),
                             (states[0], states[1])))  # fmt: skip
    case = Case(
        reason=Reason(told["reason"]),
        ranks=tuple(ranks),
        failures=tuple(failure_from(failure) for failure in told["failures"]),
        because=tuple(told.get("because", ())),
        liveness=verdict_from(told["liveness"]) if told["liveness"] else None,
        frozen=bool(told["frozen"]),
        apart=float(told["apart"]),
        behind=tuple(late),
    )
    merged = [(_TITLES[folder], merger.merged) for folder, merger in mergers.items() if merger.merged.main.threads]
    return explain(case), merged


def _recorded(dumps: dict[int, bytes]) -> tuple[Behind, ...]:
    if not dumps:
        return ()
    from sidecar.recorder.analysis import flight  # here, since few have dumps, and pickletools imports a lot

    return flight.behind(dumps)


def _dumps(told: dict[str, Any], files: _Files) -> dict[int, bytes]:
    rows = (
        (row["pid"], files.beginning(f"flight_recorder/{row.get('label', row['rank'])}.pickle"))
        for row in told["ranks"]
    )
    return {pid: data for pid, data in rows if data}


class _Files:
    """The incident's files. None is followed out of its folder, waited for, or read beyond what is kept for all."""

    def __init__(self, folder: int, until: float) -> None:
        self.left_out = 0
        self._folder = folder
        self._until = until
        self._room = _MOST_OF_ALL

    def document(self, name: str) -> Any:
        data = self._read(f"{name}.json")
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError, MemoryError):
            return None

    def text(self, name: str) -> str:
        return self._read(name).decode("utf-8", "replace")

    def beginning(self, name: str) -> bytes:
        """At most so much as the verdict looks at: a dump can be large."""
        return self._read(name, _BEGINNING)

    def _read(self, path: str, beginning: int = 0) -> bytes:
        """b"" for what is not there, is no file, or is too large; of that the `beginning`, where one is asked for."""
        if self._room <= 0 or time.monotonic() >= self._until:
            self.left_out += 1
            return b""
        kind, _, name = path.partition("/")
        try:
            inner = os.open(kind, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inner)
            finally:
                os.close(inner)
        except OSError:
            return b""
        try:
            about = os.fstat(fd)
            size = min(about.st_size, beginning) if beginning else about.st_size
            if not stat.S_ISREG(about.st_mode) or size > min(_MOST_BYTES, self._room):
                self.left_out += 1
                return b""
            self._room -= size
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(size)
        except (OSError, MemoryError):
            return b""
        finally:
            os.close(fd)


def _answer(finding: Finding, snapshots: list[tuple[str, Merged]], notes: list[str]) -> None:
    """The most telling first: who reads it may not keep it all."""
    texts: list[tuple[str, bytes]] = []
    if snapshots:
        texts.append(("stacks.txt", rendering.text(finding, snapshots, notes).encode("utf-8", "backslashreplace")))
        for name, made in (("stacks.json", rendering.document(snapshots, notes)),
                           ("speedscope.json", rendering.speedscope(snapshots))):  # fmt: skip
            texts.append((name, json.dumps(made, separators=(",", ":")).encode()))
    header = {
        "verdict": {
            "sentence": finding.sentence,
            "confidence": finding.confidence.value,
            "judgement": finding.judgement.value,
            "reasons": list(finding.reasons),
            "apart": list(finding.apart),
            "fingerprint": snapshots[0][1].fingerprint if snapshots else "",
        },
        "files": [[name, len(data)] for name, data in texts],
    }
    out = sys.stdout.buffer
    out.write(json.dumps(header).encode() + b"\n")
    for _, data in texts:
        out.write(data)
    out.flush()
