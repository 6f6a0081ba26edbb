"""What a sentence rests on, one line each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.model import Failure
from sidecar.recorder.analysis.evidence import Behind, Case, Motion, Rank
from sidecar.recorder.analysis.words import motion
from sidecar.recorder.summary import how, who

_MOST_LINES = 12
_MOST_ROWS = 4


def of_case(case: Case, peers: Sequence[Rank]) -> tuple[str, ...]:
    """What the two snapshots, the kernel, NCCL and the engine's own numbers say."""
    lines: list[str] = []
    if case.liveness is not None:
        since = f" for {case.liveness.since:.0f} s" if case.liveness.since >= 1 else ""
        because = f": {'; '.join(case.liveness.because)}" if case.liveness.because else ""
        lines.append(f"by its own numbers the engine is {case.liveness.liveness.value}{since}{because}")
    lines += _motions(case, peers)
    lines += _places(peers)
    for rank in peers:
        if len(rank.locked) > 1:
            lines.append(f"{rank.label}: {len(rank.locked)} threads wait for a lock, perhaps for each other's: "
                         + "; ".join(rank.locked[:_MOST_ROWS]))  # fmt: skip
    lines += [f"{rank.label}: {rank.holder} held the GIL in both snapshots" for rank in peers if rank.holder]
    lines += [_behind(one, {rank.pid: rank.label for rank in case.ranks}) for one in case.behind[:_MOST_ROWS]]
    return tuple(lines[:_MOST_LINES])


def of_failures(failures: Sequence[Failure]) -> Iterable[str]:
    """The first, and what followed it."""
    first = failures[0]
    yield f"{who(first)} was the first to fail{f', seen by {first.seen_by}' if first.seen_by else ''}"
    for failure in failures[1:_MOST_ROWS]:
        yield f"{who(failure)} {how(failure)} {failure.at - first.at:.3f} s later"
    if len(failures) > _MOST_ROWS:
        yield f"{len(failures) - _MOST_ROWS} more followed"


def _motions(case: Case, peers: Sequence[Rank]) -> Iterable[str]:
    if not case.apart:
        return
    words = {
        Motion.MOVED: "moved",
        Motion.STILL: "slept in the same place",
        Motion.SPUN: "computed, or spun, in the same place",
        Motion.SAME: "ran, and stood in the same place both times",
    }
    for what, said in words.items():
        some = [rank.label for rank in peers if motion(rank) is what]
        if some:
            shown = ", ".join(some) if len(some) <= _MOST_ROWS else f"{len(some)} ranks"
            yield f"between two snapshots {case.apart:.1f} s apart: {shown} {said}"


def _places(peers: Sequence[Rank]) -> Iterable[str]:
    """The exact lines, for a few: the sentence has the functions."""
    seen: dict[str, list[Rank]] = {}
    for rank in peers:
        if rank.spot is not None:
            called = f", called by {rank.caller}" if rank.caller else ""
            library = f" [{rank.library}]" if rank.library else ""
            seen.setdefault(f"{rank.spot.name}{library}{called}", []).append(rank)
    for where, some in sorted(seen.items(), key=lambda row: len(row[1]))[:_MOST_ROWS]:
        shown = ", ".join(rank.label for rank in some) if len(some) <= _MOST_ROWS else f"{len(some)} ranks"
        yield f"{shown}: {where}"


def _behind(one: Behind, names: dict[int, str]) -> str:
    name = names.get(one.pid, f"process {one.pid}")
    if not one.most:
        return f"{one.source}: {name} does not answer"
    return f"{one.source}: {name} has launched {one.launched} operations, others {one.most}"
