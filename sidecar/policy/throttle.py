"""How many incidents an hour are captured in full. Pure, and by what is on the volume: a crash loop that takes this
process down each time is counted all the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.model import Reason

WINDOW = 3600.0  # seconds
# Asked for, or the only word of what happened on another node: always in full, and no part of a crash loop.
EXEMPT = (Reason.PRE_STOP, Reason.MANUAL, Reason.PEER_FAILED)


@dataclass(frozen=True, slots=True)
class Earlier:
    """One incident of ours on the volume, begun at `wall` (seconds since the epoch). `count` is 0 where it was captured
    in full, else which summary in a row it is."""

    id: str
    wall: float
    count: int = 0


@dataclass(frozen=True, slots=True)
class Throttled:
    """This incident is only a summary, the `count`th in a row since the last full one, which began at `since`."""

    limit: int
    count: int
    since: float


def throttled(reason: Reason, wall: float, earlier: Iterable[Earlier], limit: int) -> Throttled | None:
    """Whether an incident that began at `wall` is to be a summary; None: in full.

    `earlier`: without this incident itself and without those whose reason is exempt. `limit`: how many full ones an
    hour may have. One that lies within an hour ahead counts too: the clock was set back.
    """
    if reason in EXEMPT:
        return None
    near = [one for one in earlier if abs(wall - one.wall) < WINDOW]
    full = [one.wall for one in near if not one.count]
    if len(full) < limit:
        return None
    since = max(full)
    # By the number that the last summary bears, and not by how many there are: retention may have removed some.
    return Throttled(limit, max((one.count for one in near if one.wall >= since), default=0) + 1, since)
