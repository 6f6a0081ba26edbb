"""The sentence about a rank that died, or never came: what became of it, and where the others stood. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.model import Cause, Failure, Role
from sidecar.policy.stacks import Kind
from sidecar.recorder.analysis import reasons
from sidecar.recorder.analysis.evidence import Case, Confidence, Finding, Judgement, Rank
from sidecar.recorder.analysis.rank_sets import Ranks
from sidecar.recorder.analysis.words import does, each, past
from sidecar.recorder.summary import how, who

_AT_ONCE = 0.005  # seconds between two deaths that may have been either way round


def explain(case: Case, failures: Sequence[Failure], peers: Sequence[Rank], ranks: Ranks) -> Finding:
    """`failures` in the order of their times; there is one at least."""
    first = failures[0]
    failed = {failure.pid for failure in failures}
    others = [rank for rank in peers if rank.pid not in failed]
    said = f"{who(first)} {how(first)}"
    stood = where_others_stood(others, case, ranks, first.role is not Role.SERVER)
    said += f"; {stood}" if stood else ""
    told = list(reasons.of_failures(failures))
    sure = Confidence.HIGH if first.status.known and first.cause is not Cause.UNKNOWN else Confidence.LOW
    at_once = [one for one in failures[1:] if one.at - first.at <= _AT_ONCE and one.role is not Role.SERVER]
    if at_once and sure is Confidence.HIGH:
        sure = Confidence.MEDIUM
        told.append(f"{len(at_once)} more failed within {_AT_ONCE * 1000:.0f} ms: which was the first is not certain")
    told += reasons.of_case(case, others)
    return Finding(f"{said}.", Judgement.DIED, sure, tuple(told), (who(first),) if first.rank else ())


def missing(case: Case, peers: Sequence[Rank], ranks: Ranks) -> Finding:
    """Not all ranks came up: what those wait for that did is where to look."""
    said = case.because[0] if case.because else "Not all ranks came up in time"
    stood = where_others_stood(list(peers), case, ranks, False, "those that came: ")
    said = f"{said[0].upper()}{said[1:]}{f'; {stood}' if stood else ''}."
    return Finding(said, Judgement.UNKNOWN, Confidence.LOW, tuple(reasons.of_case(case, peers)))


def meanwhile(failures: Sequence[Failure]) -> str:
    return f"while its evidence was taken {who(failures[0])} {how(failures[0])}"


def where_others_stood(others: Sequence[Rank], case: Case, ranks: Ranks, waited_for: bool, before: str = "") -> str:
    """`the other 7 ranks waited for it in all_reduce`; "" where no stack tells."""
    known = [rank for rank in others if rank.spot is not None]
    if not known:
        return ""
    waiting = [rank for rank in known if rank.spot is not None and rank.spot.kind is Kind.COLLECTIVE]
    rest = [rank for rank in known if rank not in waiting]
    calls = {does(rank.spot) for rank in waiting if rank.spot is not None}
    if len(calls) == 1 and len(waiting) > len(rest):
        some = _others(waiting, others) if not before else f"{before}{ranks.shown(ranks.of(r.label for r in waiting))}"
        said = past(next(iter(calls)))
        if waited_for:
            said = said.replace("waited in", "waited for it in", 1)
        return f"{some} {said}" + (f"; {each(rest, case, ranks, before=True)}" if rest else "")
    spots = {does(rank.spot) for rank in known if rank.spot is not None}
    if len(spots) == 1 and not before:
        return f"{_others(known, others)} {_plural_past(next(iter(spots)), len(known))}"
    return before + each(known, case, ranks, before=True)


def _others(some: Sequence[Rank], others: Sequence[Rank]) -> str:
    if len(some) < len(others):
        return f"{len(some)} of the other {len(others)} ranks"
    return f"the other {len(some)} ranks" if len(some) > 1 else f"the other rank, {some[0].label},"


def _plural_past(said: str, number: int) -> str:
    said = past(said)
    return f"were {said.removeprefix('was ')}" if number > 1 and said.startswith("was ") else said
