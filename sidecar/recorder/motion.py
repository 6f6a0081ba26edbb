"""Which ranks have moved between two snapshots of their stacks: tells a slow engine from one that stands still."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.recorder.capture.pyspy import FIRST, SECOND
from sidecar.recorder.captures import Taken

if TYPE_CHECKING:
    from sidecar.policy.stacks import Spot

_MOST = 4 << 20  # bytes of one rank's stacks; parsing more would hold up the loop
MOST_OF_ALL = 32 << 20


@dataclass(frozen=True, slots=True)
class _Snapshot:
    pid: int
    at: float
    data: bytes


class Motion:
    """Give it everything that is taken; `line` says what has moved once all is taken."""

    def __init__(self) -> None:
        self._first: dict[str, _Snapshot] = {}
        self._second: dict[str, _Snapshot] = {}
        self._room = MOST_OF_ALL

    def bound(self, most: int) -> None:
        """Keep at most so many bytes; a rank that does not fit any more is not told of."""
        self._room = most

    def keep(self, taken: Taken) -> None:
        for series, snapshots in ((FIRST, self._first), (SECOND, self._second)):
            for piece in taken.pieces:
                if piece.kind == series.kinds["json"] and 0 < len(piece.data) <= min(_MOST, self._room):
                    self._room -= len(piece.data)
                    name = taken.target.rank or taken.target.label
                    snapshots[name] = _Snapshot(taken.target.identity.pid, taken.began, piece.data)

    @property
    def apart(self) -> float:
        """Seconds between the two snapshots of a rank, the shortest; 0.0 where no rank has two."""
        both = [name for name in self._first if name in self._second]
        return min((self._second[name].at - self._first[name].at for name in both), default=0.0)

    def line(self, engine: str) -> str:
        """For the record, "" where no rank has two snapshots."""
        from sidecar.policy.stacks import moved  # here, since a recorder that stands by has no use for it

        both = [name for name in self._first if name in self._second]
        if not both:
            return ""
        found: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for name in both:
            found[moved(_spot(self._first[name], engine), _spot(self._second[name], engine))].append(name)
        words = ((True, "moved"), (False, "did not"), (None, "cannot be told"))
        said = "; ".join(f"{', '.join(found[key])} {word}" for key, word in words if found[key])
        if not found[True]:
            said = said.replace("did not", "did not move", 1)
        return f"between two snapshots {self.apart:.1f} s apart: {said}"


def _spot(snapshot: _Snapshot, engine: str) -> Spot | None:
    from sidecar.policy.stacks import spot_of

    try:
        threads = json.loads(snapshot.data)
    except (ValueError, RecursionError, MemoryError):
        return None
    return spot_of(threads, snapshot.pid, engine) if isinstance(threads, list) else None
