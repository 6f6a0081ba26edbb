"""What was captured of a rank, as the verdict wants it. Pure: documents in, values out; nothing here raises.

The documents are py-spy's and ours, but they tell of a process that may be broken or hostile, so a value of another
sort than expected counts as not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.policy import places, stacks
from sidecar.policy.stacks import Frame, Kind, Spot
from sidecar.recorder.analysis import collectives
from sidecar.recorder.analysis.evidence import Rank
from sidecar.recorder.analysis.stacks import thread_name

_TICKS = 100.0  # of a second: what the kernel tells user programs, on every architecture
_MOST_LOCKED = 8


def rank_of(
    label: str, role: str, pid: int, engine: str, apart: float,
    stacks_of: tuple[Any, Any, Any], states: tuple[Any, Any],
) -> Rank:  # fmt: skip
    """`stacks_of`: the first, the second and the native snapshot; `states`: the two process states; None for none."""
    first, second, native = (_threads(threads) for threads in stacks_of)
    before, after = (state if isinstance(state, Mapping) else {} for state in states)
    last = second or first
    frames = stacks.frames_of(stacks.main_thread_of(last, pid))
    spot = stacks.spot_in(frames, engine)
    deep = stacks.frames_of(stacks.main_thread_of(native, pid))
    state = after or before
    return Rank(
        label=label,
        role=role,
        pid=pid,
        first=stacks.spot_of(first, pid, engine),
        second=stacks.spot_of(second, pid, engine) if second else None,
        caller=_caller(frames, spot),
        library=_library(frames, deep, spot),
        native=collectives.native_call(deep) if spot is not None and spot.kind is Kind.RUN else "",
        holder=_holder(first, second),
        locked=_locked(first, second, state),
        cpu=_cpu(before, after, apart),
        wakes=_wakes(before, after),
        state=_text(_part(state, "stat").get("state"))[:1],
        wchan=_wchan(state),
    )


def _library(frames: list[Frame], deep: list[Frame], spot: Spot | None) -> str:
    if spot is None or spot.kind not in (Kind.COLLECTIVE, Kind.RUN):
        return ""
    return collectives.family(deep) or collectives.family(frames)


def _caller(frames: list[Frame], spot: Spot | None) -> str:
    """Who called the place in which it waits; "" where nobody did, and for a place that is no wait."""
    if spot is None or spot.kind in (Kind.RUN, Kind.IDLE):
        return ""
    at = max((place for place, frame in enumerate(frames) if frame.name == spot.name), default=-1)
    for frame in frames[at + 1 :] if at >= 0 else ():
        if not frame.path.endswith("torch/distributed/c10d_logger.py"):
            return frame.name
    return ""


def _holder(first: list[Mapping[str, Any]], second: list[Mapping[str, Any]]) -> str:
    """The thread that had the GIL in both snapshots, at the same line."""
    held = [next((thread for thread in threads if thread.get("owns_gil") is True), None) for threads in (first, second)]
    if held[0] is None or held[1] is None:
        return ""
    before, after = (stacks.frames_of(thread) if isinstance(thread.get("frames"), list) else [] for thread in held
                     if thread is not None)  # fmt: skip
    if not before or before != after or _id(held[0]) != _id(held[1]):
        return ""
    return f"{thread_name(held[1])} in {after[0].name}"


def _locked(
    first: list[Mapping[str, Any]], second: list[Mapping[str, Any]], state: Mapping[str, Any]
) -> tuple[str, ...]:
    """Threads that stand in code of the engine's own, in both snapshots, and which the kernel holds in a lock.

    A thread of a pool that has nothing to do waits in a lock too, but in the standard library's code.
    """
    held = state.get("threads")
    rows = held if isinstance(held, list) else []
    locked = {
        row.get("tid") for row in rows if isinstance(row, Mapping) and _text(row.get("wchan")).startswith("futex")
    }
    before = {_id(thread): stacks.frames_of(thread) for thread in first}
    found = []
    for thread in second:
        frames = stacks.frames_of(thread)
        if not frames or thread.get("os_thread_id") not in locked or before.get(_id(thread)) != frames:
            continue
        inside = frames[0]
        if places.is_collective(inside.function, inside.path) or places.waits(inside.function, inside.path):
            continue
        if not inside.path.endswith(("concurrent/futures/thread.py", "/threading.py", "/queue.py")):
            found.append(f"{thread_name(thread)} in {inside.name}")
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


def _threads(found: Any) -> list[Mapping[str, Any]]:
    if not isinstance(found, list):
        return []
    return [thread for thread in found if isinstance(thread, Mapping) and isinstance(thread.get("frames"), list)]


def _id(thread: Mapping[str, Any]) -> tuple[Any, str]:
    number = thread.get("os_thread_id") or thread.get("thread_id")
    return number if isinstance(number, int) else 0, thread_name(thread)


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
