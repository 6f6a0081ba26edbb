"""Series of what is seen of an engine, and a caller that sees it as the monitor does: on a clock of its own.

A `World` tells what the engine looks like at a moment. `watch` plays the caller: each period a health check, a scrape
and a quick look, a closer look when one is asked for, and a judgement after each of them and at `decide_at`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import policy_stacks as stacks

from sidecar.model import Liveness
from sidecar.policy.progress import Judgement, Limits, judge, keep_from
from sidecar.policy.sightings import Answer, Compiler, Gpu, Look, ProbeResult, RankLook, Scrape
from sidecar.policy.stacks import Spot

DEFAULTS = Limits()
PROBE_TIMEOUT = 5.0


@dataclass(frozen=True)
class Rank:
    """What a rank does. `share` of a core and `switches` a second are rates since the rank was first seen."""

    label: str
    stack: str | Callable[[float], str] | None
    share: float = 0.0
    role: str = "worker"
    state: str = "S"
    traced: bool = False
    switches: float | None = 20.0
    wchan: str = ""

    def look(self, at: float, engine: str, quick: bool) -> RankLook:
        text = self.stack(at) if callable(self.stack) else self.stack
        spot: Spot | None = None if quick or text is None else stacks.at(text, engine)
        switches = None if quick or self.switches is None else int(self.switches * at)
        return RankLook(
            self.label, self.role, self.state, self.traced, self.share * at, switches, "" if quick else self.wchan, spot
        )


@dataclass
class World:
    """An engine over time. Each part may be a function of the time since the watch began."""

    ranks: Callable[[float], list[Rank]]
    engine: str = "vllm"
    queue: Callable[[float], tuple[float | None, float | None]] = lambda at: (None, None)
    tokens: Callable[[float], float | None] = lambda at: None
    health: Callable[[float], Answer] = lambda at: Answer.OK
    compilers: Callable[[float], tuple[Compiler, ...]] = lambda at: ()
    gpus: Callable[[float], tuple[Gpu, ...]] = lambda at: ()
    up: float | None = 0.0
    seen: list[tuple[float, Judgement]] = field(default_factory=list)
    close_looks: list[float] = field(default_factory=list)

    def scrape(self, at: float) -> Scrape:
        return Scrape(at, *self.queue(at), self.tokens(at))

    def look(self, at: float, quick: bool = False) -> Look:
        ranks = tuple(rank.look(at, self.engine, quick) for rank in self.ranks(at))
        return Look(at, ranks) if not quick else Look(at, ranks, quick=True)

    def close(self, at: float) -> Look:
        look = self.look(at)
        return Look(at, look.ranks, self.compilers(at), self.gpus(at))

    def watch(self, until: float, limits: Limits = DEFAULTS, first: float = 0.0) -> World:
        """See it until then, or until it is found to have failed. A health check is known when it is answered."""
        probes: list[ProbeResult] = []
        scrapes: list[Scrape] = []
        looks: list[Look] = []
        period = limits.probe_period
        tick, now = first, first
        answers: list[tuple[float, ProbeResult]] = []
        judgement: Judgement | None = None
        while now <= until:
            if now >= tick:
                answer = self.health(now)
                took = min(PROBE_TIMEOUT, period / 2) if answer is Answer.TIMEOUT else 0.0
                answers.append((now + took, ProbeResult(now, answer, answer.value)))
                scrapes.append(self.scrape(now))
                looks.append(self.look(now, quick=True))
                tick += period
            while answers and answers[0][0] <= now:
                probes.append(answers.pop(0)[1])
            if judgement is not None and judgement.look_at is not None and judgement.look_at <= now:
                looks.append(self.close(now))
                self.close_looks.append(now)
            oldest = keep_from(limits, now)
            for kept in (probes, scrapes, looks):
                while len(kept) > 1 and kept[0].at < oldest:  # type: ignore[attr-defined]
                    del kept[0]
            judgement = judge(probes, scrapes, looks, limits, now, up_since=self.up)
            self.seen.append((now, judgement))
            if judgement.reason is not None:
                for later in (1.0, 60.0, 4000.0):  # with nothing new it stays so
                    again = judge(probes, scrapes, looks, limits, now + later, up_since=self.up)
                    assert again.reason is judgement.reason
                    assert again.verdict.odd == judgement.verdict.odd
                break
            due = [tick, *(at for at, _ in answers), judgement.look_at, judgement.decide_at]
            now = max(min(at for at in due if at is not None), now + 0.001)
        return self

    @property
    def failed_at(self) -> float | None:
        at, judgement = self.seen[-1]
        return at if judgement.reason is not None else None

    @property
    def last(self) -> Judgement:
        return self.seen[-1][1]

    @property
    def verdicts(self) -> set[Liveness]:
        return {judgement.verdict.liveness for _, judgement in self.seen}

    def between(self, start: float, end: float) -> set[Liveness]:
        return {judgement.verdict.liveness for at, judgement in self.seen if start <= at < end}
