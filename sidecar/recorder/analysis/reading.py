"""What was captured of a rank, as the verdict wants it. Pure: documents in, values out; nothing here raises.

The documents are py-spy's and ours, but they tell of a process that may be broken or hostile, so a value of another
sort than expected counts as not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.policy import places
from sidecar.policy.stacks import Frame, Kind, Spot
from sidecar.recorder.analysis import collectives
from sidecar.recorder.analysis.evidence import Rank
from sidecar.recorder.analysis.threads import Reader, Thread

_TICKS = 100.0  # of a second: what the kernel tells user programs, on every architecture
_MOST_LOCKED = 8

Threads = Sequence[Thread]


def rank_of(
    label: str, role: str, pid: int, reader: Reader, apart: float,
    stacks_of: tuple[Threads, Threads, Threads], states: tuple[Any, Any],
) -> Rank:  # fmt: skip
    """`stacks_of`: the first, the second and the native snapshot; `states`: the two process states; None for none."""
    first, second, native = stacks_of
    before, after = (state if isinstance(state, Mapping) else {} for state in states)
    frames = _main(second or first)
    spot = reader.spot(frames)
    kind = spot.kind if spot is not None else None
    deep = _main(native)
    state = after or before
    return Rank(
        label=label,
        role=role,
        pid=pid,
        first=reader.spot(_main(first)),
        second=reader.spot(_main(second)),
        caller=_caller(frames, spot),
        library=(reader.library(deep) or reader.library(frames)) if kind in (Kind.COLLECTIVE, Kind.RUN) else "",
        native=collectives.native_call(deep) if kind is Kind.RUN else "",
        holder=_holder(first, second),
        locked=_locked(first, second, state),
        cpu=_cpu(before, after, apart),
        wakes=_wakes(before, after),
        state=_state(before, after),
        wchan=_wchan(state),
    )


def _main(threads: Threads) -> tuple[Frame, ...]:
    """The main thread comes first."""
    return threads[0].frames if threads else ()


def _state(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The last one. Held by a tracer in one of two only, it was our own py-spy that had it just then."""
    last, other = (_text(_part(state, "stat").get("state"))[:1] for state in ((after or before), before))
    return other if last == "t" and other else last


def _caller(frames: Sequence[Frame], spot: Spot | None) -> str:
    """Who called the place in which it waits; "" where nobody did, and for a place that is no wait."""
    if spot is None or spot.kind in (Kind.RUN, Kind.IDLE):
        return ""
    at = max((place for place, frame in enumerate(frames) if frame.name == spot.name), default=-1)
    for frame in frames[at + 1 :] if at >= 0 else ():
        if not frame.path.endswith("torch/distributed/c10d_logger.py"):
            return frame.name
    return ""


def _holder(first: Threads, second: Threads) -> str:
    """The thread that had the GIL in both snapshots, at the same line."""
    before, after = (next((thread for thread in threads if thread.gil), None) for threads in (first, second))
    if before is None or after is None or before.id != after.id:
        return ""
    if not before.frames or before.frames != after.frames:
        return ""
    return f"{after.name} in {after.frames[0].name}"


def _locked(first: Threads, second: Threads, state: Mapping[str, Any]) -> tuple[str, ...]:
    """Threads that stand in code of the engine's own, in both snapshots, and which the kernel holds in a lock.

    A thread of a pool that has nothing to do waits in a lock too, but in the standard library's code.
    """
    held = state.get("threads")
    rows = held if isinstance(held, list) else []
    locked = {
        row["tid"] for row in rows
        if isinstance(row, Mapping) and _text(row.get("wchan")).startswith("futex") and isinstance(row.get("tid"), int)
    }  # fmt: skip
    before = {thread.id: thread.frames for thread in first}
    found = []
    for thread in second:
        if not thread.frames or thread.number not in locked or before.get(thread.id) != thread.frames:
            continue
        inside = thread.frames[0]
        if places.is_collective(inside.function, inside.path) or places.waits(inside.function, inside.path):
            continue
        if not inside.path.endswith(("concurrent/futures/thread.py", "/threading.py", "/queue.py")):
            found.append(f"{thread.name} in {inside.name}")
    return tuple(found[:_MOST_LOCKED])


def _cpu(before: Mapping[str, Any], after: Mapping[str, Any], apart: float) -> float | None:
    ticks = [_number(_part(state, "stat").get("cpu_ticks")) for state in (before, after)]
    if ticks[0] is None or ticks[1] is None or apart <= 0 or ticks[1] < ticks[0]:
        return None
    return (ticks[1] - ticks[0]) / _TICKS / apart


def _wakes(before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
    """How often the main thread gave up the processor, or had to, between the two."""
    found = []
    for state in (before, after):
        counts = [
            _number(_part(state, "status").get(f"{kind}_ctxt_switches")) for kind in ("voluntary", "nonvoluntary")
        ]
        if counts[0] is None or counts[1] is None:
            return None
        found.append(counts[0] + counts[1])
    return int(found[1] - found[0])


def _wchan(state: Mapping[str, Any]) -> str:
    said = _text(state.get("wchan"))
    return said if said.isidentifier() else ""


def _part(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = state.get(name)
    return part if isinstance(part, Mapping) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and abs(value) < 10**15:
        return float(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return float(value)
    return None


def _text(value: Any) -> str:
    return value[:64] if isinstance(value, str) else ""
