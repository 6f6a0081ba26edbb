"""Watches whether a living engine makes progress, and tells the guard when it does not.

Each period: a health check, a reading of its metrics, the state of its ranks. Closer looks only while something is
suspicious. What it all means is said by `policy.progress`, what is to be done by the guard.

Nothing is judged before the engine was up once, by its own word: loading weights takes any time. While an incident is
open nobody looks, since then the ranks may be frozen by us.

A few lines over 400: one period, from the probe to the word to the guard, in one place.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from sidecar.errors import OutOfDescriptors
from sidecar.log import Log
from sidecar.masking import mask_text
from sidecar.messages import Message
from sidecar.model import Identity, State, plain
from sidecar.policy.progress import Judgement, Limits, hurried, hurried_period, judge, keep_from
from sidecar.policy.sightings import Answer, ProbeResult, Scrape
from sidecar.settings import Settings
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
from sidecar.web.liveness.cpu_times import CpuTimes, History
from sidecar.web.liveness.fetch import Fetcher, url_of
from sidecar.web.liveness.gpu import Gpus
from sidecar.web.liveness.look import quick_look, take_look, watched
from sidecar.web.liveness.probe import Prober
from sidecar.web.liveness.pyspy import PySpy
from sidecar.web.liveness.report import Report, shown_verdict
from sidecar.web.liveness.scrape import scrape
from sidecar.web.liveness.series import Series
from sidecar.web.state import EngineState

_LOOK_TAKES = 5.0  # seconds at most; a sixth of the stall timeout where that is less
_BETWEEN_LOOKS = 0.4  # seconds at least, and as long as the last one took: looking must not be what the node does
_BETWEEN_JUDGEMENTS = 0.05  # seconds
_RUNS = "/health_generate"  # SGLang's way to ask for a health check that needs every rank
_LATE = 1.0  # seconds before we hear of an incident in which the ranks may be frozen already


class Monitor:
    """One for the life of the web. `tell` gives a message to the guard, False where it does not take it."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        tell: Callable[[Message], bool],
        *,
        pyspy: str,
        history: History | None = None,
        proc: Proc | None = None,
        gpus: Gpus | None = None,
        memory: OwnMemory | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._tell = tell
        self._report = Report(tell, log, settings.stall_timeout)
        self._history = history
        self._proc = proc or Proc()
        self._gpus = gpus or Gpus()
        self._pyspy = PySpy(pyspy, memory)
        self._fetcher = Fetcher()
        self._prober = Prober(self._fetcher)
        self._window = settings.target_probe_window
        self._period = settings.probe_period
        if self._window is not None:
            self._period = hurried_period(self._period, settings.probe_failures, self._window)
        self._cpu_times = CpuTimes(history, self._period)
        self._limits = Limits(
            stall_timeout=settings.stall_timeout,
            stall_limit=settings.stall_limit,
            probe_failures=settings.probe_failures,
            probe_period=self._period,
        )
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: set[str] = set()  # kinds of trouble that were logged since all was well

        # Of this generation of the engine.
        self._state: EngineState | None = None
        self._known: frozenset[Identity] = frozenset()
        self._seen = Series()
        self._up_since: float | None = None
        self._judgement: Judgement | None = None
        self._look_at: float | None = None
        self._decide_at: float | None = None
        self._awake = time.monotonic()
        self._looked = 0.0  # before this no closer look is taken

    # What is known.

    @property
    def failing(self) -> bool:
        """The last health check failed, or the engine was found stuck or dead."""
        known = [probe for probe in self._seen.probes if probe.answer is not Answer.UNKNOWN]
        return self._report.bad is not None or (bool(known) and known[-1].answer is not Answer.OK)

    @property
    def running(self) -> bool:
        """Requests run or wait, by the engine's metrics."""
        return bool(self._seen.scrapes) and _work(self._seen.scrapes[-1]) > 0

    @property
    def urls(self) -> tuple[str, str]:
        """Of the health check and of the metrics, "" for none."""
        endpoint = self._state.endpoint if self._state is not None else None
        found = []
        for told, kind in ((self._settings.health_url, "health"), (self._settings.metrics_url, "metrics")):
            if told == "auto":
                found.append(url_of(endpoint, getattr(endpoint, kind)) if endpoint is not None else "")
            else:
                found.append("" if told == "none" else told)
        return found[0], found[1]

    def summary(self) -> dict[str, Any]:
        """What /api/v1/status shows. Times are in seconds."""
        health, metrics = (mask_text(url) or None for url in self.urls)
        return {
            "watching": self._active(),
            "up": self._up_since is not None,
            "health_url": health,
            "metrics_url": metrics,
            **shown_verdict(self._judgement.verdict if self._judgement is not None else None),
            **self._seen.shown(time.monotonic()),
        }

    # What comes in.

    def on_state(self, state: EngineState | None) -> None:
        """The engine as the guard last described it, None where there is no guard."""
        before = self._active()
        self._state = state
        if state is not None:
            self._take_generation(state)
            if state.failed and self._report.bad is None:
                self._report.take_over()
            if (state.up or state.failed) and self._up_since is None:
                self._up_since = time.monotonic()  # an earlier web had seen it answer
            elif self._up_since is not None and not state.up and watched(state.ranks):
                self._say_up(state)  # the guard is a new one
        if self._active() != before:
            self._report.pause()
            self._end_tasks()
            if before:
                # The ranks may have been frozen by us before we heard of it: that is nothing that the engine did.
                self._seen.drop_looks(time.monotonic() - _LATE)
            elif self._report.bad is None:
                self._begin_anew()
            self._wake.set()

    def _take_generation(self, state: EngineState) -> None:
        """Another engine begins where none of the ranks known is there any more. That some are added is a start, and
        that some went may be a helper that ended: what stands still must not look new because of that.
        """
        known = frozenset(Identity(rank.pid, rank.start) for rank in watched(state.ranks))
        gone = state.state == State.RESTARTING
        if not known and not gone:
            return
        if gone or (self._known and not self._known & known):
            self._seen.forget()
            self._report.forget()
            self._up_since = self._judgement = self._look_at = self._decide_at = None
            self._troubles.clear()
            self._end_tasks()
        self._known = known

    def _begin_anew(self) -> None:
        """Nobody looked for a while. What the engine did meanwhile is not known, so it did not stand still."""
        self._seen.forget()
        self._end_tasks()
        self._look_at = self._decide_at = None
        if self._up_since is not None:
            self._up_since = time.monotonic()

    def _slept(self, now: float) -> bool:
        """Whether we ourselves stood still (stopped, or starved of CPU): old sightings then look like a long stall."""
        gap = now - self._awake
        self._awake = now
        if gap <= self._period + self._settings.stall_timeout / 4 + _LATE:
            return False
        self._log("the liveness watch stood still itself and begins anew", seconds=round(gap, 1))
        self._begin_anew()
        return True

    def _end_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _active(self) -> bool:
        """Whether to look at all. An engine that was let run after a failure is watched, so that its recovery shows."""
        state = self._state
        if state is None or state.incident:
            return False
        return state.state in (State.STARTING, State.SERVING) or (
            state.state == State.FAILING and self._report.bad is not None
        )

    # The loop.

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                try:
                    await self._watch()
                except Exception as error:  # noqa: BLE001 - the task's outermost loop: the web must not end of this
                    self._trouble("the liveness watch", error)
                    await asyncio.sleep(self._period)
        finally:
            self._end_tasks()
            self._pyspy.close()

    async def _watch(self) -> None:
        period = self._period
        tick = 0.0
        while True:
            self._wake.clear()
            now = time.monotonic()
            if not self._active():
                await self._wake.wait()
                tick, self._awake = 0.0, time.monotonic()
                continue
            self._slept(now)
            if now >= tick:
                self._observe()
                # On a grid from the first one, whatever a round takes.
                tick = tick + period * ((now - tick) // period + 1) if tick else now + period
            if self._look_at is not None and now >= max(self._look_at, self._looked):
                self._look_at = None
                self._begin("look", self._take_look())
            if self._decide_at is not None and now >= self._decide_at:
                self._decide_at = None
                self._decide()
            at = [tick]
            if self._look_at is not None and "look" not in self._tasks:
                at.append(max(self._look_at, self._looked))
            if self._decide_at is not None:
                at.append(self._decide_at)
            try:
                async with asyncio.timeout(max(0.0, min(at) - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _observe(self) -> None:
        health, metrics = self.urls
        if not health and not metrics:
            self._say_once("whether the engine makes progress is not known: it has neither health check nor metrics")
        if health:
            self._begin("probe", self._take_probe(health))
        if metrics:
            self._begin("scrape", self._take_scrape(metrics))
        self._take_quick_look()

    def _begin(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside the loop. One of a kind at a time: what is still under way has its own limit."""
        if kind in self._tasks:
            work.close()
            return
        task = self._tasks[kind] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[kind]
            self._wake.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                self._trouble(kind, error)

        task.add_done_callback(ended)

    # Seeing.

    async def _take_probe(self, url: str) -> None:
        result = await self._prober.probe(url, self._settings.probe_timeout, self._unhealthy_is_dead(url))
        if result.answer is Answer.OK:
            self._is_up(result.at)
        self._note_change(result)
        self._seen.probes.append(result)
        self._decide()

    async def _take_scrape(self, url: str) -> None:
        engine = self._state.engine if self._state is not None else ""
        numbers, lines = await scrape(url, self._settings.probe_timeout, engine, self._fetcher, self._no_metrics)
        if lines and self._history is not None:
            self._history.add(time.time(), numbers.at, lines)
        if numbers.running is not None or numbers.moved is not None:
            self._troubles.discard("the engine's metrics cannot be read")
            # An engine with a health check is up when that says so, or when it has done work: its server may answer
            # before the first kernel is compiled.
            if not self.urls[0] or numbers.moved:
                self._is_up(numbers.at)
        self._seen.scrapes.append(numbers)
        self._decide()

    async def _take_look(self) -> None:
        state = self._state
        if state is None:
            return
        began = time.monotonic()
        deadline = began + min(_LOOK_TAKES, max(1.0, self._settings.stall_timeout / 6))
        try:
            look = await take_look(state.ranks, state.engine, self._proc, self._pyspy, self._gpus, deadline)
        finally:
            now = time.monotonic()
            self._looked = now + max(_BETWEEN_LOOKS, now - began)
        self._cpu_times.add(look)
        self._seen.looks.append(look)
        self._decide()

    def _take_quick_look(self) -> None:
        """What stands out is judged at once, and anything else when the engine has answered. Of one that starts only
        its CPU times are kept."""
        state = self._state
        if state is None or "look" in self._tasks:  # a closer one is being taken; they are kept in order
            return
        try:
            look = quick_look(state.ranks, self._proc)
        except OutOfDescriptors as error:
            self._trouble("quick look", error)
            return
        self._cpu_times.add(look)
        if self._up_since is None:
            return
        self._seen.looks.append(look)
        if any(rank.state in "TD" for rank in look.ranks):
            self._decide()

    def _unhealthy_is_dead(self, url: str) -> bool:
        endpoint = self._state.endpoint if self._state is not None else None
        return endpoint is not None and endpoint.unhealthy_is_dead and url == url_of(endpoint, endpoint.health)

    def _is_up(self, at: float) -> None:
        if self._up_since is None:
            self._up_since = at
            if self._state is not None:
                self._say_up(self._state)
            self._log("the engine answers", url=mask_text(self.urls[0] or self.urls[1]))

    def _say_up(self, state: EngineState) -> None:
        self._tell({"type": "up", "ranks": [plain(Identity(r.pid, r.start)) for r in watched(state.ranks)]})

    # Judging and telling.

    def _decide(self) -> None:
        state, seen, now = self._state, self._seen, time.monotonic()
        if state is None or not self._active() or self._slept(now):
            return
        limits = replace(self._limits, health_runs=_RUNS in self.urls[0])
        seen.keep_from(keep_from(limits, now))
        if self._window is not None and seen.probes and seen.probes[-1].answer not in (Answer.OK, Answer.UNKNOWN):
            limits = hurried(limits, self._window)
        judgement = judge(seen.probes, seen.scrapes, seen.looks, limits, now, up_since=self._up_since)
        self._judgement = judgement
        self._look_at = judgement.look_at
        decide_at = judgement.decide_at
        self._decide_at = None if decide_at is None else max(decide_at, now + _BETWEEN_JUDGEMENTS)
        about = [Identity(rank.pid, rank.start) for rank in watched(state.ranks)]
        self._report.judged(judgement, now, self._moved(), about)

    def _moved(self) -> float | None:
        return next((numbers.moved for numbers in reversed(self._seen.scrapes) if numbers.moved is not None), None)

    # Log lines: one a change, and one a kind of trouble.

    def _note_change(self, result: ProbeResult) -> None:
        if result.answer is Answer.UNKNOWN:
            self._say_once("the engine's health check cannot be made", because=result.detail)
            return
        before = self._seen.probes[-1].answer if self._seen.probes else Answer.OK
        if self._up_since is None or result.answer is before:
            return
        if result.answer is Answer.OK:
            self._log("the engine's health check passes again")
        else:
            self._log("the engine's health check failed", answer=result.answer.value, detail=result.detail)

    def _no_metrics(self, why: str) -> None:
        if self._up_since is not None:
            self._say_once("the engine's metrics cannot be read", because=why, url=mask_text(self.urls[1]))

    def _trouble(self, part: str, error: BaseException) -> None:
        what = f"{type(error).__name__}: {error}"
        self._say_once(f"the liveness watch failed in its part {part}", error=what, at=_place(error))

    def _say_once(self, what: str, **details: Any) -> None:
        """One line a kind of trouble, for each generation of the engine and after each time that it was over."""
        if what not in self._troubles:
            self._troubles.add(what)
            self._log(what, **details)


def _work(numbers: Scrape) -> float:
    return (numbers.running or 0) + (numbers.waiting or 0)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames[-4:]))
