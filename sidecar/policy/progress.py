"""Whether a running engine makes progress: what was seen in, a verdict out. Pure; time is an argument.

Everything follows from the sightings that the caller keeps: those since `keep_from`, and at least the newest of each
sort, in the order in which they were taken. What is asked, in this order:

1. Is there work? A queue that the engine's metrics show, a health check that fails (the check is a request), or an
   engine core that stands in the middle of a step.
2. Since when is there no progress? Since the last counter that moved, the last sign of no work, the last motion of a
   rank, and the last sign of a compiler or a debugger. The last three prove no token, but that it is not over yet.
3. Is there evidence that it stands still? With evidence it is stuck after `stall_timeout`, without after `stall_limit`:
   on a GPU a rank that waits for ever burns a core like one that computes. What kills a healthy engine costs more
   than a later kill, so evidence has to hold for half of `stall_timeout`, not only at its end.

A few lines over 400, since the questions are one argument and want to be read in order.

A rank that is stopped (SIGSTOP) is no matter of opinion: only counters, an idle engine and a debugger speak for it.

Known limits: counters are summed over an engine's replicas, so one that stands still beside others that serve is not
seen; a loop in Python code that never ends moves, and is never called stuck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sidecar.model import Liveness, Reason, Role, Verdict
from sidecar.policy import standing
from sidecar.policy.sightings import Answer, Look, ProbeResult, Scrape
from sidecar.policy.stacks import Kind
from sidecar.policy.standing import Run, Still

# SGLang's gauges show the last batch until it has been idle for 30 s (source: its idle check logs metrics when the
# last log is 30 s old), so ranks that all wait for requests are believed for as long, and for a scrape or two more.
STALE_GAUGES = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and failures in a row. `health_runs`: the health check asks the ranks themselves, so an answer is a sign
    of progress (SGLang's /health_generate makes a token; vLLM's /health asks nobody)."""

    stall_timeout: float = 30.0
    stall_limit: float = 300.0
    probe_failures: int = 3
    probe_period: float = 10.0
    health_runs: bool = False

    @property
    def timeout(self) -> float:
        """After how long it is stuck with evidence: not before a scrape or two could have shown a token."""
        return max(self.stall_timeout, 1.5 * self.probe_period)

    @property
    def patience(self) -> float:
        """After how long it is stuck without evidence."""
        return max(self.stall_limit, self.timeout)

    @property
    def first_look(self) -> float:
        """After how long a closer look is due: a healthy engine's next scrape comes first."""
        return max(self.timeout / 3, 1.25 * self.probe_period)

    @property
    def look_period(self) -> float:
        return max(0.5, self.timeout / 6)


WINDOW_SHARE = 0.5  # of the time until the kubelet stops the engine, to find that it is stuck; the rest is for evidence


def hurried(limits: Limits, window: float) -> Limits:
    """The limits for an engine whose health check fails, and that the kubelet stops by its own probe after `window`
    seconds of that: it ends either way, and before that its evidence is to be taken.
    """
    half = WINDOW_SHARE * window
    return replace(limits, stall_timeout=min(limits.stall_timeout, half), stall_limit=min(limits.stall_limit, half))


def hurried_period(period: float, failures: int, window: float) -> float:
    """How often to ask, so that `failures` failed checks in a row fit into our share of the window."""
    return min(period, WINDOW_SHARE * window / (failures + 1))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and when to ask again.

    `reason` is set where the verdict is a failure. `probe` is what found it: `progress` or `http`. `look_at`: when the
    next closer look is due, possibly already; None for no need of one. `decide_at`: when to judge again at the latest
    although nothing new was seen. Both are monotonic seconds.
    """

    verdict: Verdict
    reason: Reason | None = None
    probe: str = "progress"
    look_at: float | None = None
    decide_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """What the sightings say so far.

    `failing` are the health checks that failed in a row, the newest last; `answered` is when one was last answered.
    `queue` is the newest scrape that knows a queue. `core` is the engine core that stands in the middle of a step, and
    since when. `quiet` is since when there is no progress, `fact` the same by facts alone (no motion, no compiler).
    """

    limits: Limits
    now: float
    failing: tuple[ProbeResult, ...]
    answered: float | None
    queue: Scrape | None
    core: tuple[str, float] | None
    looks: tuple[Look, ...]  # all
    close: tuple[Look, ...]  # without the quick ones
    still: Still | None
    quiet: float
    fact: float
    counted: bool

    @property
    def waits(self) -> bool:
        """Whether the engine's own numbers say that it has work."""
        return self.queue is not None and _length(self.queue) > 0

    @property
    def works(self) -> bool:
        return bool(self.waits or self.failing or self.core)

    @property
    def certain(self) -> bool:
        """Whether there is work for certain, and not only a health check or two that failed."""
        return bool(self.waits or self.core or len(self.failing) >= self.limits.probe_failures)

    @property
    def since(self) -> float:
        return max(0.0, self.now - self.quiet)


def keep_from(limits: Limits, now: float) -> float:
    """Sightings older than this can be dropped, except for the newest scrape, look and answered health check."""
    return now - max(limits.patience, STALE_GAUGES) - 3 * limits.probe_period - limits.look_period


def judge(
    probes: Sequence[ProbeResult],
    scrapes: Sequence[Scrape],
    looks: Sequence[Look],
    limits: Limits,
    now: float,
    *,
    up_since: float | None,
) -> Judgement:
    """Judge what was seen until `now`. `up_since` is when the engine first answered; None while it starts, which is
    never a failure, however long it loads weights."""
    if up_since is None:
        return Judgement(Verdict(Liveness.BUSY, ("it is starting",)))
    case = _case(probes, scrapes, looks, limits, now, up_since)
    look_at = _look_at(case, up_since)
    if not case.works:
        forgotten = standing.stopped(case.looks)
        if forgotten is not None and forgotten.lasts(limits.patience):
            # vLLM's numbers stay 0 where what is stopped is what would set them; and whoever is stopped serves nobody.
            verdict = Verdict(Liveness.STUCK, (forgotten.words,), forgotten.ranks, forgotten.end - forgotten.start)
            return Judgement(verdict, Reason.ENGINE_STALLED, "progress", look_at)
        return Judgement(Verdict(Liveness.IDLE, (_no_work(case),)), look_at=look_at)
    found = _failure(case)
    if found is not None:
        if found.liveness is Liveness.DEAD:
            return Judgement(found, Reason.LIVENESS_FAILED, "http", look_at)
        return Judgement(found, Reason.ENGINE_STALLED, "progress", look_at)
    verdict = replace(_alive(case), since=case.since)
    return Judgement(verdict, look_at=look_at, decide_at=_decide_at(case))


def _case(
    probes: Sequence[ProbeResult],
    scrapes: Sequence[Scrape],
    looks: Sequence[Look],
    limits: Limits,
    now: float,
    up_since: float,
) -> _Case:
    failing = _failing(probes)
    answered = max((p.at for p in probes if p.answer is Answer.OK), default=None)
    queue = next((s for s in reversed(scrapes) if s.running is not None or s.waiting is not None), None)
    close = tuple(look for look in looks if not look.quick)
    moves = [b.at for a, b in standing.pairs([s for s in scrapes if s.moved is not None]) if a.moved != b.moved]
    # Only where nothing else speaks of work is it asked where an engine core stands.
    heard = max([up_since, *moves, *(s.at for s in scrapes if _length(s) > 0)])
    core = _core_in_a_step([look for look in close if look.at > heard])

    # A queue of 0 says nothing once a health check failed or a core stands in a step: both engines' numbers come from
    # the loop that hangs, so they stay what they were.
    blind = min([p.at for p in failing[:1]] + ([core[1]] if core is not None else []), default=float("inf"))
    facts = [up_since, *moves]
    facts += [s.at for s in scrapes if _knows(s) and not _length(s) > 0 and s.at < blind]
    waits = queue is not None and _length(queue) > 0
    # An answer of one replica says nothing of the others.
    asked = limits.health_runs and not (looks and standing.replicated(looks[-1]))
    if answered is not None and (asked or not (waits or core)):
        facts.append(answered)
    if core is not None and not waits and not failing:
        facts.append(core[1])
    facts += [look.at for look in looks if standing.traced(look)]
    if not failing:
        # vLLM sets its gauges in a step alone: a pause, or an abort of all requests, leaves them what they were.
        facts += [look.at for look in close if standing.waits_for_requests(look)]
    signs = [b.at for a, b in standing.pairs(close) if standing.in_motion(a, b) or standing.compiling(a, b)]
    if close and standing.compiling(None, close[0]):
        signs.append(close[0].at)
    fact = max(facts)
    quiet = max([fact, *signs])
    return _Case(
        limits, now, failing, answered, queue, core, tuple(looks), close,
        standing.standing([look for look in close if look.at >= quiet]),
        quiet, fact, counted=any(s.moved is not None for s in scrapes),
    )  # fmt: skip


def _failure(case: _Case) -> Verdict | None:
    """What is wrong with an engine that has work, or None."""
    if case.looks and standing.traced(case.looks[-1]):
        return None
    gone = _gone(case)
    if gone and any(p.answer is Answer.OVER for p in gone):
        return Verdict(Liveness.DEAD, (_health(case),), (), case.since)
    stopped = _stopped(case)
    if stopped is not None:
        return Verdict(Liveness.STUCK, (*_work(case), stopped.words), stopped.ranks, max(0.0, case.now - case.fact))
    if _compilers(case) or not case.certain:
        return None
    evidence, odd = _evidence(case)
    if evidence and gone and not odd:
        seen = [look for look in case.close if look.at >= gone[0].at]
        return Verdict(Liveness.DEAD, (_health(case), *evidence), (), case.since) if len(seen) > 1 else None
    if evidence:
        return Verdict(Liveness.STUCK, (*_work(case), *evidence), odd, case.since)
    if case.since < case.limits.patience:
        return None
    words = (f"nothing showed for {case.since:.0f} s that it goes on", *_places(case))
    if gone:
        return Verdict(Liveness.DEAD, (_health(case), *words), (), case.since)
    odd = standing.minority(case.still) if case.still is not None else ()
    return Verdict(Liveness.STUCK, (*_work(case), *words), odd, case.since)


def _stopped(case: _Case) -> Run | None:
    """Ranks that are stopped, or held by the kernel, long enough."""
    limits = case.limits
    # The counters of other replicas say nothing for one that is stopped.
    replica = bool(case.looks) and standing.replicated(case.looks[-1])
    run = standing.stopped(case.looks) if replica else None
    if run is not None and case.waits and run.lasts(limits.timeout):
        return run
    if case.now - case.fact < limits.timeout:
        return None
    if not (case.certain or len(case.failing) >= min(2, limits.probe_failures)):
        return None
    for run in (standing.stopped(case.looks), standing.blocked(case.looks)):
        if run is not None and run.lasts(limits.timeout / 3):
            return run
    return None


def _evidence(case: _Case) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the looks show of ranks that stand still, in words, and the odd ones; nothing where they may be at work."""
    limits, still = case.limits, case.still
    if still is None or not still.readable or not still.run.lasts(limits.timeout / 2):
        return (), ()
    if case.since < limits.timeout or standing.gpus_work(case.close):
        return (), ()
    if any(spot.kind is Kind.COMPILE for spot in still.spots.values()):
        return (), ()  # it may wait for a compiler that runs elsewhere
    # Where only the gauges speak of work, ranks that wait for requests speak against it.
    certain = case.core is not None or len(case.failing) >= limits.probe_failures or case.since >= STALE_GAUGES
    odd = standing.apart(still, believe_idle=certain or not _is_sglang(still))
    if odd is not None:
        return (odd.words,), odd.ranks
    if still.all_rest and (certain or not (still.some_idle if _is_sglang(still) else still.all_idle)):
        seconds = still.run.end - still.run.start
        return (f"all ranks have been at rest for {seconds:.0f} s", *standing.places_of(still)), ()
    return (), ()


def _alive(case: _Case) -> Verdict:
    """The verdict where there is work and nothing that proves a failure."""
    work = _work(case)
    if case.looks and (debugged := standing.traced(case.looks[-1])):
        return Verdict(Liveness.BUSY, (*work, f"a debugger has {', '.join(debugged[:4])}"))
    if compilers := _compilers(case):
        return Verdict(Liveness.COMPILING, (*work, f"at work: {', '.join(compilers[:4])}"))
    if len(case.close) > 1 and (moving := standing.in_motion(*case.close[-2:])):
        return Verdict(Liveness.BUSY, (*work, f"{', '.join(moving[:4])} moved between the last two looks"))
    return Verdict(Liveness.BUSY, (*work, *filter(None, (standing.gpus_work(case.close), *_places(case)))))


def _look_at(case: _Case, up_since: float) -> float | None:
    """When the next closer look is due."""
    limits = case.limits
    last = case.close[-1].at if case.close else None
    wanted: list[float] = []
    if case.works:
        wanted.append(case.quiet + limits.first_look)
    if case.failing:
        wanted.append(case.failing[-1].at)
    held = [run for run in (standing.stopped(case.looks), standing.blocked(case.looks)) if run is not None]
    if any(run.looks > 1 for run in held) or standing.stopped(case.looks[-1:]):
        wanted.append(case.looks[-1].at)
    if not case.works and case.looks and any(rank.role == Role.ENGINE_CORE for rank in case.looks[-1].ranks):
        # An engine core that got its first request and hangs shows a queue of 0 for ever: now and then, look.
        wanted.append((last if last is not None else up_since) + limits.patience)
    if not wanted:
        return None
    due = min(wanted)
    return due if last is None else max(due, last + limits.look_period)


def _decide_at(case: _Case) -> float | None:
    limits = case.limits
    ends = [
        case.fact + limits.timeout,
        case.quiet + limits.timeout,
        case.quiet + STALE_GAUGES,
        case.quiet + limits.patience,
    ]
    return min((end for end in ends if end > case.now), default=None)


def _failing(probes: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """The health checks that failed since the last good one. One of which nothing was learnt counts for nothing."""
    failing: list[ProbeResult] = []
    for probe in probes:
        if probe.answer is Answer.OK:
            failing.clear()
        elif probe.answer is not Answer.UNKNOWN:
            failing.append(probe)
    return tuple(failing)


def _gone(case: _Case) -> tuple[ProbeResult, ...]:
    """The last failures in a row of which all say that nobody is there or that the engine is over; () for too few."""
    last: list[ProbeResult] = []
    for probe in reversed(case.failing):
        if probe.answer not in (Answer.REFUSED, Answer.OVER):
            break
        last.insert(0, probe)
    return tuple(last) if len(last) >= case.limits.probe_failures else ()


def _core_in_a_step(close: Sequence[Look]) -> tuple[str, float] | None:
    """The engine core that waits for its workers in every one of the last looks, and since when."""
    found: tuple[str, float] | None = None
    for look in reversed(close):
        cores = [r.rank for r in look.ranks if r.role == Role.ENGINE_CORE and r.spot is not None
                 and (r.spot.kind is Kind.COLLECTIVE or r.spot.step)]  # fmt: skip
        if not cores or (found is not None and found[0] not in cores):
            break
        found = (found[0] if found is not None else cores[0], look.at)
    return found


def _compilers(case: _Case) -> tuple[str, ...]:
    """What compiles by the newest look."""
    if not case.close:
        return ()
    return standing.compiling(case.close[-2] if len(case.close) > 1 else None, case.close[-1])


def _is_sglang(still: Still) -> bool:
    return Role.SCHEDULER in still.roles.values()


def _knows(scrape: Scrape) -> bool:
    return scrape.running is not None or scrape.waiting is not None


def _length(scrape: Scrape) -> float:
    return (scrape.running or 0.0) + (scrape.waiting or 0.0)


def _work(case: _Case) -> tuple[str, ...]:
    """What work there is and for how long it stands, in words."""
    words = []
    if case.waits and case.queue is not None:
        counts = f"{case.queue.running or 0:g} requests run and {case.queue.waiting or 0:g} wait"
        words.append(f"{counts}, no token in {case.since:.0f} s" if case.counted else counts)
    if case.failing:
        words.append(_health(case))
    if case.core is not None and not case.waits:
        words.append(f"{case.core[0]} stands in the middle of a step")
    return tuple(words)


def _health(case: _Case) -> str:
    last = case.failing[-1]
    times = "once" if len(case.failing) == 1 else f"{len(case.failing)} times in a row"
    return f"the health check failed {times}: {last.detail or last.answer.value}"


def _no_work(case: _Case) -> str:
    if case.queue is not None:
        return "no request runs or waits"
    return "nothing says that it has work"


def _places(case: _Case) -> list[str]:
    return standing.places_of(case.still) if case.still is not None else []
