"""How often an hour something is done that goes past the kubelet's back-off: counted on the volume, since a process's
memory does not outlive what is counted. Where the volume cannot say, nothing is done.

Written before the deed: a crash between the two costs one deed, and not one that nobody counted.
"""

from __future__ import annotations

import json
import os

from sidecar.web.counters import BrokenCounters
from sidecar.web.keeper import KeptFile

WINDOW = 3600.0  # seconds
_KEPT = 64  # entries


def limit_path(dump_dir: str) -> str:
    """Not by the pod's uid: it is to be found by the pod that takes the place of a deleted one, if that has the
    folder."""
    return os.path.join(dump_dir, ".after-kill.json")


class Limit:
    """Every call may hang; only a `Worker` makes it."""

    def __init__(self, dump_dir: str, per_hour: int) -> None:
        self._file = KeptFile(limit_path(dump_dir))
        self._per_hour = per_hour

    def take(self, now: float, incident: str) -> str:
        """ "" where it may be done, and then it is counted; else why not. `now` is wall time. Raises OSError.

        One that lies within an hour ahead counts too: the clock was set back.
        """
        try:
            done = self._entries()
        except (BrokenCounters, ValueError, RecursionError) as error:
            return f"its count on the volume is broken: {self._file.set_aside(str(error))}"
        if any(name == incident for name, _ in done):
            return "it was done for this incident before"
        near = [entry for entry in done if abs(now - entry[1]) < WINDOW]
        if len(near) >= self._per_hour:
            return f"it was done {len(near)} times within the hour, and --after-kill-per-hour is {self._per_hour}"
        kept = [*done, (incident, now)][-max(_KEPT, self._per_hour) :]
        self._file.write(json.dumps([{"incident": name, "at": at} for name, at in kept]).encode())
        return ""

    def _entries(self) -> list[tuple[str, float]]:
        try:
            rows = json.loads(self._file.data())
        except FileNotFoundError:
            return []
        if not isinstance(rows, list):
            raise ValueError("it is no list")
        found = []
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("incident"), str):
                raise ValueError("an entry without an incident")
            at = row.get("at")
            if isinstance(at, bool) or not isinstance(at, (int, float)):
                raise ValueError("an entry without a time")
            found.append((row["incident"], float(at)))
        return found
