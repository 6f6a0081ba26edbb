"""The collectors: one file each, one signature, one table."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.recorder.capture import process, pyspy
from sidecar.recorder.capture.base import Collector


@dataclass(frozen=True, slots=True)
class Entry:
    """`kinds`: what it makes, by the ending of the file. `ranks_only`: not for what merely belongs to the engine."""

    name: str
    collect: Collector
    kinds: dict[str, str]
    ranks_only: bool


# Cheapest first: in this order they begin.
TABLE = (
    Entry("process", process.collect, {"json": process.KIND}, ranks_only=False),
    Entry("pyspy", pyspy.collect, {"json": pyspy.JSON_KIND, "txt": pyspy.TEXT_KIND}, ranks_only=True),
)


def kind_of(path: str) -> str:
    """The kind of the artifact in a file `<collector>/<label>.<ending>`, "" where no collector makes such."""
    folder, _, name = path.partition("/")
    kinds = next((entry.kinds for entry in TABLE if entry.name == folder), {})
    return kinds.get(name.rpartition(".")[2], "")
