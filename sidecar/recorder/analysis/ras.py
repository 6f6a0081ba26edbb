"""Which ranks NCCL says are behind or gone, out of the report of its RAS service. Pure.

The report is text for people, and its words changed between releases (2.24 names a rank that is behind in two lines,
or in one where it is alone): what is not understood is left out.
"""

from __future__ import annotations

import re

from sidecar.recorder.analysis.evidence import Behind

_MOST_LINES = 20_000
_GROUP = re.compile(r"\s*\d{1,9} ranks have (?:launched up to operation (\d{1,18})|not launched any operations)\s*$")
_MEMBER = re.compile(r"\s*Rank \d{1,9} -- GPU .{1,64} (?:managed by )?process (\d{1,9})\b")
_ALONE = re.compile(
    r"\s*Rank \d{1,9} has (?:launched up to operation (\d{1,18})|not launched any operations)"
    r" -- GPU .{1,64} ?(?:managed by )?process (\d{1,9})\b"
)
_DEAD = re.compile(r"\s*Process (\d{1,9}) on node \S{1,256} managing GPU")


def behind(report: str) -> tuple[Behind, ...]:
    """Those with fewer operations than the most of their communicator, and the processes that do not answer."""
    found: dict[int, Behind] = {}
    launched: dict[int, int] = {}
    most, group = 0, 0
    for line in report.splitlines()[:_MOST_LINES]:
        if line.startswith("#") or not line.strip():
            _settle(launched, most, found)
            launched, most, group = {}, 0, 0
        elif together := _GROUP.match(line):
            group = int(together[1] or 0)
            most = max(most, group)
        elif alone := _ALONE.match(line):
            launched[int(alone[2])] = int(alone[1] or 0)
            most = max(most, int(alone[1] or 0))
        elif member := _MEMBER.match(line):
            launched[int(member[1])] = group
        elif dead := _DEAD.match(line):
            found[int(dead[1])] = Behind(int(dead[1]), 0, 0)
    _settle(launched, most, found)
    return tuple(found.values())


def _settle(launched: dict[int, int], most: int, found: dict[int, Behind]) -> None:
    for pid, count in launched.items():
        if count < most:
            found.setdefault(pid, Behind(pid, count, most))
