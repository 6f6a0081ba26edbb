"""What a row of looks says of the ranks: who moves, who stands still, and who stands apart. Pure.

Looks come in the order in which they were taken. What counts is always the last run of looks that agree: a rank that
worked at first and then stopped has stood still since then.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from sidecar.model import Role
from sidecar.policy.sightings import Look, RankLook
from sidecar.policy.stacks import Kind, Spot, moved, waits_for_device

# A share of one core. Below it a process only keeps its timers going; a rank that computes, or spins, is far above.
REST_SHARE = 0.05
# Voluntary context switches a second, of all threads. NCCL's and Gloo's watchdog threads wake some ten times a second
# for each group and do so in a hang too; a loop that sleeps 1 ms between polls (vLLM's, with nothing to schedule) does
# near 1,000.
REST_SWITCHES = 250.0
# A share of a GPU's power limit. An NCCL kernel that waits shows full utilisation at little power.
GPU_WORKS = 0.6

_DP = re.compile(r"DP[0-9]+")
_PP = re.compile(r"(?<![A-Z])PP[0-9]+")
_TP = re.compile(r"(?<![A-Z])TP[0-9]+")
Sighting = TypeVar("Sighting")

_WAITING = (Kind.COLLECTIVE, Kind.WAIT, Kind.IDLE)


@dataclass(frozen=True, slots=True)
class Run:
    """What has been so without a break since `start`, in `looks` looks, the last of them at `end`.

    `ranks` are labels. `words` says it for people.
    """

    start: float
    end: float
    looks: int
    ranks: tuple[str, ...] = ()
    words: str = ""

    def lasts(self, seconds: float) -> bool:
        """Whether more than one look saw it, over that long."""
        return self.looks > 1 and self.end - self.start >= seconds


@dataclass(frozen=True, slots=True)
class Still:
    """The ranks during the last run of looks in which none of them changed its place."""

    run: Run
    spots: dict[str, Spot]  # of each rank whose stack could be read at least once
    roles: dict[str, str]
    resting: frozenset[str]  # next to no CPU time and context switches between any two looks

    @property
    def readable(self) -> bool:
        """Whether every rank's place is known."""
        return bool(self.roles) and self.spots.keys() == self.roles.keys()

    @property
    def all_rest(self) -> bool:
        """Every rank rests, and not each of them for its GPU's sake: some runtimes sleep where CUDA's spins."""
        on_devices = all(waits_for_device(spot) for spot in self.spots.values())
        return self.readable and not on_devices and self.resting >= self.roles.keys()

    @property
    def all_idle(self) -> bool:
        return self.readable and all(spot.kind is Kind.IDLE for spot in self.spots.values())

    @property
    def some_idle(self) -> bool:
        return any(spot.kind is Kind.IDLE for spot in self.spots.values())


def pairs(sightings: Sequence[Sighting]) -> Iterator[tuple[Sighting, Sighting]]:
    """Each two that follow each other."""
    return pairwise(sightings)


def traced(look: Look) -> tuple[str, ...]:
    """The ranks that a debugger has."""
    return tuple(rank.rank for rank in look.ranks if rank.traced)


def replicated(look: Look) -> bool:
    """Whether there are replicas, by the ranks' labels."""
    return len({number for rank in look.ranks if (number := _first(_DP, rank.rank))}) > 1


def waits_for_requests(look: Look) -> bool:
    """Whether vLLM's engine cores ask for requests, with none under way, and so do all their workers."""
    asks = all(r.spot is not None and r.spot.kind is Kind.IDLE and r.state not in "TtD" for r in look.ranks)
    return asks and any(r.role == Role.ENGINE_CORE for r in look.ranks)


def in_motion(before: Look, after: Look) -> tuple[str, ...]:
    """The ranks that went on from one place to another, and used CPU time for it.

    A change of place with no CPU time is one of a loop that polls and sleeps.
    """
    earlier = {rank.rank: rank for rank in before.ranks}
    return tuple(
        rank.rank
        for rank in after.ranks
        if rank.rank in earlier
        and moved(earlier[rank.rank].spot, rank.spot)
        and _share(earlier[rank.rank], rank, after.at - before.at) >= REST_SHARE
    )


def compiling(before: Look | None, after: Look) -> tuple[str, ...]:
    """What compiles: compilers that are new or used CPU time since `before`, and ranks that do it themselves."""
    known = {(c.pid, c.name): c.cpu for c in before.compilers} if before is not None else {}
    found = [c.name for c in after.compilers if c.cpu > known.get((c.pid, c.name), -1.0)]
    earlier = {rank.rank: rank for rank in before.ranks} if before is not None else {}
    for rank in after.ranks:
        if rank.spot is None or rank.spot.kind is not Kind.COMPILE:
            continue
        then = earlier.get(rank.rank)
        if before is None or then is None or _share(then, rank, after.at - before.at) >= REST_SHARE:
            found.append(f"{rank.rank} in {rank.spot.name}")
    return tuple(dict.fromkeys(found))


def gpus_work(looks: Sequence[Look]) -> str:
    """Which GPU computes, in words, by the last two looks that know of GPUs; "" for none."""
    for look in [look for look in looks if look.gpus][-2:]:
        for gpu in look.gpus:
            if gpu.utilisation > 0 and gpu.power is not None and gpu.power > GPU_WORKS:
                return f"GPU {gpu.index} computes at {gpu.power:.0%} of its power limit"
    return ""


def stopped(looks: Sequence[Look]) -> Run | None:
    """Ranks in state T (SIGSTOP), with no debugger."""
    return _held(looks, lambda now, then: _is_stopped(now) and _is_stopped(then), "stopped (state T)")


def blocked(looks: Sequence[Look]) -> Run | None:
    """Ranks that the kernel holds (state D) in one place, and that use no CPU time: a disk or a driver that hangs."""
    return _held(
        looks,
        lambda now, then: (
            now.state == then.state == "D"
            and ("" in (now.wchan, then.wchan) or now.wchan == then.wchan)
            and not _loads(now)
            and not _loads(then)
        ),
        "held in the kernel (state D)",
    )


def _is_stopped(rank: RankLook) -> bool:
    return rank.state == "T" and not rank.traced


def _loads(rank: RankLook) -> bool:
    """Reading weights or kernels from a slow disk, it is in state D most of the time."""
    return rank.spot is not None and rank.spot.kind is Kind.COMPILE


def _held(looks: Sequence[Look], holds: Callable[[RankLook, RankLook], bool], words: str) -> Run | None:
    """The longest of the last runs in which a rank is held without using CPU time."""
    best: Run | None = None
    for rank in looks[-1].ranks if looks else ():
        if not holds(rank, rank):
            continue
        start, count, later = looks[-1].at, 1, rank
        for look in reversed(looks[:-1]):
            earlier = next((r for r in look.ranks if r.rank == rank.rank), None)
            if earlier is None or not holds(later, earlier) or _share(earlier, later, start - look.at) >= REST_SHARE:
                break
            start, count, later = look.at, count + 1, earlier
        if best is None or start < best.start:
            best = Run(start, looks[-1].at, count, (rank.rank,))
        elif start == best.start:
            best = replace(best, ranks=(*best.ranks, rank.rank))
    return replace(best, words=f"{_some(best.ranks)} {_verb(best.ranks)} {words}") if best is not None else None


def standing(looks: Sequence[Look]) -> Still | None:
    """Where all ranks have stood since the last of them moved; None for no looks at all.

    A stack that could not be read now and then breaks nothing, since a rank in a tight loop is hard to read.
    """
    if not looks:
        return None
    last = looks[-1]
    roles = {rank.rank: rank.role for rank in last.ranks}
    spots = {rank.rank: rank.spot for rank in last.ranks if rank.spot is not None}
    resting = set(roles)
    start, count = last.at, 1
    after = last
    for look in reversed(looks[:-1]):
        here = {rank.rank: rank for rank in look.ranks}
        if here.keys() != roles.keys():
            break
        if any(r.spot is not None and r.rank in spots and spots[r.rank].key != r.spot.key for r in look.ranks):
            break
        for rank in look.ranks:
            if rank.spot is not None:
                spots.setdefault(rank.rank, rank.spot)
        seconds = after.at - look.at
        resting -= {rank.rank for rank in after.ranks if not _rests(here[rank.rank], rank, seconds)}
        start, count, after = look.at, count + 1, look
    if count == 1:
        resting = set()  # one look tells no rate
    return Still(Run(start, last.at, count), spots, roles, frozenset(resting))


def apart(still: Still, believe_idle: bool) -> Run | None:
    """Ranks that stand still elsewhere, while at least as many wait in one common place.

    Only ranks that should do the same are compared: of one role, one replica and one stage of the pipeline.
    `believe_idle`: the common place may be the one in which they wait for requests, as they also do when all is well.
    """
    for labels in _peers(still.roles):
        places: dict[str, list[str]] = defaultdict(list)
        for label in labels:
            if label in still.spots:
                places[still.spots[label].key].append(label)
        if len(places) < 2 or sum(map(len, places.values())) < len(labels):
            continue
        common = max(places.values(), key=lambda group: (len(group), -_order(still.spots[group[0]].kind)))
        odd = [label for label in labels if label not in common]
        if still.spots[common[0]].kind is Kind.IDLE and not believe_idle:
            continue
        if _is_apart(still, common, odd):
            where = still.spots[common[0]]
            return replace(
                still.run,
                ranks=tuple(odd),
                words="; ".join(
                    (f"{_some(common)} {_verb(common)} in {where.name}", *_where(still, odd, " and does not move"))
                ),
            )
    return None


def minority(still: Still) -> tuple[str, ...]:
    """The ranks that stand elsewhere than most of their peers, still or not."""
    odd: list[str] = []
    for labels in _peers(still.roles):
        counts = Counter(still.spots[label].key for label in labels if label in still.spots)
        if len(counts) > 1 and (most := counts.most_common(2))[0][1] > most[1][1]:
            odd += [label for label in labels if label in still.spots and still.spots[label].key != most[0][0]]
    return tuple(odd)


def _where(still: Still, labels: Sequence[str], more: str = "") -> list[str]:
    return [f"{label} is in {still.spots[label].name}{more}" for label in labels[:4] if label in still.spots]


def places_of(still: Still) -> list[str]:
    """Where the ranks stand, in words: the commonest places first, at most three."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label, spot in still.spots.items():
        groups[spot.key].append(label)
    ordered = sorted(groups.values(), key=len, reverse=True)[:3]
    return [f"{_some(labels)} {_verb(labels)} in {still.spots[labels[0]].name}" for labels in ordered]


def _is_apart(still: Still, common: list[str], odd: list[str]) -> bool:
    where = still.spots[common[0]]
    kinds = {still.spots[label].kind for label in odd}
    if Kind.COMPILE in kinds or len(common) < len(odd):
        return False
    if where.kind is Kind.IDLE and kinds == {Kind.IDLE}:
        return False  # an idle engine: one rank asks for requests, the others wait for it
    if not all(_stands_still(still, label) for label in odd):
        return False
    if where.kind in (Kind.RUN, Kind.COMPILE) or (waits_for_device(where) and not still.resting.issuperset(common)):
        # They may compute. Then whoever waits for them is not odd; and with one against one nobody can tell.
        for_the_others = where.kind is not Kind.WAIT and kinds & {Kind.COLLECTIVE, Kind.IDLE}
        return where.kind is not Kind.COMPILE and not for_the_others and len(common) > len(odd)
    return where.kind in _WAITING


def _stands_still(still: Still, label: str) -> bool:
    spot = still.spots[label]
    return label in still.resting or (spot.kind in _WAITING and not waits_for_device(spot))


def _order(kind: Kind) -> int:
    return (Kind.COLLECTIVE, Kind.WAIT, Kind.IDLE, Kind.RUN, Kind.COMPILE).index(kind)


def _peers(roles: dict[str, str]) -> list[list[str]]:
    """The labels, in groups of ranks that should do the same."""
    # With data parallel attention all ranks step together, and each has a TP number of its own; replicas repeat them.
    numbers = [_first(_TP, label) for label in roles]
    together = "" not in numbers and len(set(numbers)) == len(numbers)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for label, role in roles.items():
        groups[role, "" if together else _first(_DP, label), _first(_PP, label)].append(label)
    return list(groups.values())


def _first(pattern: re.Pattern[str], label: str) -> str:
    found = pattern.search(label)
    return found[0] if found else ""


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _verb(labels: Sequence[str]) -> str:
    return "are" if len(labels) > 1 else "is"


def _rests(before: RankLook, after: RankLook, seconds: float) -> bool:
    if not seconds > 0 or _share(before, after, seconds) >= REST_SHARE:
        return False
    if before.switches is None or after.switches is None:
        return True
    return (after.switches - before.switches) / seconds < REST_SWITCHES


def _share(before: RankLook, after: RankLook, seconds: float) -> float:
    """The share of a core that it used between two looks."""
    return (after.cpu - before.cpu) / seconds if seconds > 0 else 0.0
