"""One sentence about an incident: who failed or stalled, and where the others stood. Pure.

It says what was seen. That a rank is the reason is said only where the others wait for it; where nothing tells, the
sentence says so. A healthy engine may stand in one place for as long as two snapshots are apart, so "stuck" takes more:
the word of the engine's own numbers (`Case.liveness`), or a rank that somebody has stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.model import Failure, Liveness, Reason, Role
from sidecar.policy.stacks import Kind
from sidecar.recorder.analysis import deaths, reasons
from sidecar.recorder.analysis.evidence import Behind, Case, Confidence, Finding, Judgement, Motion, Rank
from sidecar.recorder.analysis.rank_sets import Ranks
from sidecar.recorder.analysis.words import callers, count, does, each, groups, motion, of, place, several

_DEATHS = (Reason.RANK_DIED, Reason.ENGINE_EXITED)
_NO_RANKS = (Role.SERVER.value, Role.DETOKENIZER.value, Role.CONTROLLER.value)


def explain(case: Case) -> Finding:
    """The finding. Whatever the case holds, there is one."""
    failures: list[Failure] = sorted(case.failures, key=lambda failure: failure.at)
    ranks = Ranks(rank.label for rank in case.ranks)
    peers = peers_of(case.ranks)
    if failures and case.reason in _DEATHS:
        return deaths.explain(case, failures, peers, ranks)
    if case.reason is Reason.RANK_MISSING:
        return deaths.missing(case, peers, ranks)
    standing = [rank for rank in peers if rank.spot is not None or _stopped(rank, case)]
    if not standing:
        why = "no stack of any rank could be read" if case.ranks else "no rank was known"
        return Finding(f"Unknown: {why}.", Judgement.UNKNOWN, Confidence.NONE, reasons.of_case(case, peers))
    found = _standing(standing, case, ranks)
    said = found.sentence + (f"; {deaths.meanwhile(failures)}" if failures else "")
    told = (*found.reasons, *reasons.of_case(case, peers))
    return Finding(f"{said}.", found.judgement, found.confidence, told, found.apart)


def peers_of(ranks: Sequence[Rank]) -> list[Rank]:
    """Those that work together and so should stand alike: an engine core that waits for its workers is none of them."""
    for roles in ((Role.WORKER.value,), (Role.SCHEDULER.value,), (Role.ENGINE_CORE.value,)):
        found = [rank for rank in ranks if rank.role in roles]
        if found:
            return found
    return [rank for rank in ranks if rank.role not in _NO_RANKS] or list(ranks)


def _standing(peers: list[Rank], case: Case, ranks: Ranks) -> Finding:
    stopped = [rank for rank in peers if _stopped(rank, case)]
    running = [rank for rank in peers if rank not in stopped]
    if stopped:
        return _somebody_stopped(stopped, running, case, ranks)
    kinds = {rank.spot.kind for rank in running if rank.spot is not None}
    waiting = [rank for rank in running if _waits(rank)]
    working = [rank for rank in running if rank not in waiting]
    if Kind.COMPILE in kinds:
        some = [rank for rank in running if rank.spot is not None and rank.spot.kind is Kind.COMPILE]
        said = each([*some, *(rank for rank in running if rank not in some)], case, ranks)
        return Finding(said, Judgement.COMPILING, Confidence.MEDIUM, apart=_labels(some, running))
    if kinds == {Kind.IDLE}:
        said = f"{count(running, len(peers), ranks)} {several('waits for requests', len(running))}"
        return _but_stuck(Finding(said, Judgement.IDLE, Confidence.HIGH), case, "what calls the ranks may be")
    moved = [rank for rank in running if motion(rank) is Motion.MOVED]
    if moved and len(moved) == len([rank for rank in running if rank.first and rank.second]):
        who = count(moved, len(peers), ranks)
        said = f"{who} {'moves' if len(moved) == 1 else 'move'} between the snapshots"
        return _but_stuck(Finding(said, Judgement.BUSY, Confidence.HIGH), case, "slow rather than stuck")
    if waiting and working:
        return _some_wait(waiting, working, case, ranks, len(peers))
    if waiting:
        return _all_wait(waiting, case, ranks)
    return _none_waits(running, case, ranks)


def _some_wait(waiting: list[Rank], working: list[Rank], case: Case, ranks: Ranks, everybody: int) -> Finding:
    """The usual hang: most wait in a collective for one that is elsewhere."""
    said = f"{_where_they_wait(waiting, everybody, ranks)}; {each(working, case, ranks)}"
    standing = [motion(rank) for rank in working]
    if Motion.MOVED in standing:
        return Finding(said, Judgement.BUSY, Confidence.MEDIUM, apart=_labels(working, waiting + working))
    if Motion.UNKNOWN in standing:
        judgement = Judgement.STUCK if _found_stuck(case) else Judgement.UNKNOWN
        return Finding(said, judgement, Confidence.LOW, apart=_labels(working, waiting + working))
    sure = Confidence.HIGH if _found_stuck(case) or set(standing) == {Motion.STILL} else Confidence.MEDIUM
    return Finding(said, _judged(working, case), sure, apart=_labels(working, waiting + working))


def _all_wait(waiting: list[Rank], case: Case, ranks: Ranks) -> Finding:
    """Nobody is elsewhere: a mismatch, a rank that left the group, the network. Or just a moment of a fast run."""
    judgement = _judged(waiting, case)
    calls, ways = groups(waiting), callers(waiting)
    steady = not any(motion(rank) in (Motion.MOVED, Motion.UNKNOWN) for rank in waiting)
    if len(waiting) > 1 and steady and len(calls) > 1:
        said = f"The ranks wait in different collectives: {each(waiting, case, ranks)}"
        return Finding(said, judgement, Confidence.MEDIUM, apart=_rest(calls))
    who = count(waiting, len(waiting), ranks)
    if len(waiting) > 1 and steady and len(ways) > 1 and not any(rank.native for rank in waiting):
        from_where = "; ".join(f"{ranks.shown(of(some, ranks))} from {some[0].caller or '?'}" for some in ways[:3])
        said = f"{who} {several(does_native(waiting[0]), len(waiting))}, which they called from different places"
        return Finding(f"{said}: {from_where}", judgement, Confidence.MEDIUM, apart=_rest(ways))
    said = _where_they_wait(waiting, len(waiting), ranks)
    if steady and case.apart >= 1:
        said += f", not moving for {case.apart:.0f} s"
    late = _late(waiting, case)
    if late:
        rank, behind = late
        number = f" ({behind.launched} of {behind.most} operations)" if behind.most else ""
        words = f"is behind the others{number}" if behind.most else "does not answer"
        said += f"; by {behind.source} {rank.label} {words}"
        return Finding(said, judgement, Confidence.MEDIUM, apart=(rank.label,))
    if len(waiting) > 1:
        said += "; which of them is late does not show in their stacks"
    return Finding(said, judgement, Confidence.LOW)


def _none_waits(running: list[Rank], case: Case, ranks: Ranks) -> Finding:
    together = groups(running)
    judgement = _judged(running, case)
    known = not any(motion(rank) is Motion.UNKNOWN for rank in running)
    sure = Confidence.MEDIUM if known and judgement is not Judgement.UNKNOWN else Confidence.LOW
    return Finding(each(running, case, ranks), judgement, sure, apart=_rest(together))


def _somebody_stopped(stopped: list[Rank], running: list[Rank], case: Case, ranks: Ranks) -> Finding:
    traced = all(rank.state == "t" for rank in stopped)
    words = "is stopped by a debugger" if traced else "is stopped by a signal (state T)"
    said = f"{count(stopped, len(stopped) + len(running), ranks)} {several(words, len(stopped))}"
    waiting = [rank for rank in running if _waits(rank)]
    if waiting:
        said = f"{said}; {_lower(_where_they_wait(waiting, len(stopped) + len(running), ranks))}"
    judgement = Judgement.STUCK if not traced else Judgement.STILL
    return Finding(said, judgement, Confidence.HIGH, apart=_labels(stopped, stopped + running))


def _judged(some: Sequence[Rank], case: Case) -> Judgement:
    """Of ranks that have not moved."""
    moves = {motion(rank) for rank in some}
    if Motion.MOVED in moves:
        return Judgement.BUSY
    if _found_stuck(case):
        return Judgement.STUCK
    if Motion.UNKNOWN in moves:
        return Judgement.UNKNOWN
    if Motion.SPUN in moves or Motion.SAME in moves:
        return Judgement.BUSY
    return Judgement.STILL


def _but_stuck(found: Finding, case: Case, then: str) -> Finding:
    """Where the engine was found stuck, and its ranks are not: both are said."""
    if not _found_stuck(case):
        return found
    said = f"{found.sentence}: {then}, though the engine made no progress for {case.liveness.since:.0f} s" \
        if case.liveness is not None else f"{found.sentence}: {then}"  # fmt: skip
    return Finding(said, found.judgement, Confidence.LOW)


def _where_they_wait(waiting: list[Rank], everybody: int, ranks: Ranks) -> str:
    """`7 of 8 ranks wait in all_reduce`, of all who wait, wherever that is."""
    together = _by_call(waiting)
    said = []
    for words, some in together[:3]:
        who = count(some, everybody, ranks) if len(together) == 1 else ranks.shown(of(some, ranks))
        said.append(f"{who} {several(words, len(some))}")
    return " and ".join(said)


def _by_call(waiting: Sequence[Rank]) -> list[tuple[str, list[Rank]]]:
    found: dict[str, list[Rank]] = {}
    for rank in waiting:
        found.setdefault(does_native(rank), []).append(rank)
    return sorted(found.items(), key=lambda row: len(row[1]), reverse=True)


def does_native(rank: Rank) -> str:
    """What one does that waits; by its native stack where Python's does not show it."""
    if rank.spot is not None and rank.spot.kind is Kind.COLLECTIVE:
        return does(rank.spot)
    return f"waits in {rank.native}{f', called by {place(rank.spot)}' if rank.spot else ''}"


def _late(waiting: Sequence[Rank], case: Case) -> tuple[Rank, Behind] | None:
    by_pid = {rank.pid: rank for rank in waiting}
    late = [(by_pid[one.pid], one) for one in case.behind if one.pid in by_pid]
    return late[0] if len(late) == 1 else None


def _waits(rank: Rank) -> bool:
    return rank.spot is not None and (rank.spot.kind is Kind.COLLECTIVE or bool(rank.native))


def _stopped(rank: Rank, case: Case) -> bool:
    return rank.state in ("T", "t") and not case.frozen


def _found_stuck(case: Case) -> bool:
    return case.liveness is not None and case.liveness.liveness in (Liveness.STUCK, Liveness.DEAD)


def _labels(some: Sequence[Rank], everybody: Sequence[Rank]) -> tuple[str, ...]:
    """Those apart; none where there is nobody to be apart from."""
    return tuple(rank.label for rank in some) if len(some) < len(everybody) else ()


def _rest(together: Sequence[Sequence[Rank]]) -> tuple[str, ...]:
    """All but the largest group; none where two are as large."""
    if len(together) < 2 or len(together[0]) == len(together[1]):
        return ()
    return tuple(rank.label for some in together[1:] for rank in some)


def _lower(said: str) -> str:
    return said[0].lower() + said[1:] if said.startswith(("All ", "Both ")) else said
