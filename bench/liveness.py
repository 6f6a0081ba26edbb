"""From a hang to `liveness failed`, and to the engine gone: a real `rankguard run` at its default settings.

A rank of an engine that serves is stopped; or it waits for a lock while the others wait for it in an all-reduce. Its
/health answers 200 all the while (vLLM) or no more (SGLang). Both times are seen from outside.
"""

from __future__ import annotations

import math
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.pump import Pump, now
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.sidecar_run import Sidecar
from bench.stats import percentile
from sidecar.demo.standin import StandIn

NAME = "hang"
RANKS, VICTIM = 4, "TP2"
STALL, PERIOD = 30.0, 10.0  # the default settings, in seconds
VERDICT = 40.0  # s, at these
STOPPED, APART = "one rank stopped", "one rank elsewhere"
ENGINES = ("sglang", "vllm")
ROUNDS = {Scale.FULL: (2, 1.0), Scale.QUICK: (1, 0.2), Scale.SMOKE: (1, 0.08)}  # rounds; the settings times this
_START, _GONE = 60.0, 90.0
_LOOKS = 0.05  # s between two looks whether the engine is gone


@dataclass(slots=True)
class Hang:
    """One engine. Times are seconds from the hang."""

    engine: str
    kind: str
    because: str = ""
    verdict: float = math.nan
    gone: float = math.nan
    captures: str = ""
    lacking: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)


def run(scale: Scale) -> Report:
    rounds, factor = ROUNDS[scale]
    hangs: list[Hang] = []
    engines = ENGINES if scale is not Scale.SMOKE else ENGINES[:1]
    for number in range(rounds):
        for engine in engines:
            hangs += measure(engine, factor, random.Random(f"{number}{engine}"))
    return report(hangs, factor)


def measure(engine: str, factor: float, dice: random.Random) -> list[Hang]:
    """Two engines at a time, which hang at some moment of the sidecar's period, each in its way."""
    with ExitStack() as stack:
        pump = Pump()
        stack.callback(pump.close)
        hangs = [Hang(engine, STOPPED), Hang(engine, APART)]
        seats = []
        for hang in hangs:
            standin = stack.enter_context(StandIn(engine=engine, tp=RANKS, health_port=0))
            standin.wait_ready(_START)
            standin.work("serve")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-"))
            flags: tuple[str, ...] = ("--root-pid", str(standin.server), "--listen", "none", "--api-listen", "none")
            if factor != 1.0:
                flags += ("--stall-timeout", str(max(1.0, STALL * factor)), "--probe-period", str(PERIOD * factor))
            sidecar = stack.enter_context(Sidecar(pump, folder, *flags))
            sidecar.until("the engine answers", _START)
            seats.append(_Seat(hang, standin, sidecar))
        for seat in seats:
            pump.run(dice.uniform(1.0, 2.0) * PERIOD * factor)
            seat.begin()
        while now() < seats[-1].at + _GONE + VERDICT * factor and not all(seat.over() for seat in seats):
            pump.run(_LOOKS)
        for seat in seats:
            seat.end(pump)
        return hangs


class _Seat:
    """One engine and the sidecar that watches it."""

    def __init__(self, hang: Hang, standin: StandIn, sidecar: Sidecar) -> None:
        self._hang = hang
        self._standin = standin
        self._sidecar = sidecar
        self._gone_at = math.inf
        self.at = math.inf

    def begin(self) -> None:
        if self._hang.kind is STOPPED:
            self.at = self._standin.kill(VICTIM, signal.SIGSTOP)
        else:
            self.at = now()
            self._standin.work("hang", VICTIM, running=2)

    def over(self) -> bool:
        """Whether all is gone; keeps when it was seen so first."""
        if self._gone_at == math.inf and not self._standin.alive():
            self._gone_at = now()
        return self._gone_at < math.inf

    def end(self, pump: Pump) -> None:
        """What the record says, whose times are monotonic as well."""
        hang = self._hang
        hang.gone = self._gone_at - self.at
        if math.isinf(hang.gone):
            hang.verdict = math.inf
            hang.because = f"the log ends with {[line.get('event') for line in self._sidecar.lines[-3:]]}"
            return
        self._sidecar.until("sealed", 10.0, process="guard")
        record = self._sidecar.record()
        hang.steps = {entry["event"]: entry["at"] - self.at for entry in reversed(record["guard"]["timeline"])}
        hang.verdict = hang.steps["detected"]
        hang.because = "; ".join((record.get("verdict") or {}).get("because", ())) or record["reason"]
        whole = sum(artifact["status"] == "captured" for artifact in record["artifacts"])
        lacking = (a for a in record["artifacts"] if a["status"] != "captured")
        hang.lacking = dict(Counter(f"{artifact['kind']} {artifact['status']}" for artifact in lacking))
        hang.captures = f"{whole} of {len(record['artifacts'])}"


def report(hangs: Sequence[Hang], factor: float) -> Report:
    rows = []
    limit = VERDICT * factor
    for engine in dict.fromkeys(hang.engine for hang in hangs):
        for kind in (STOPPED, APART):
            these = [hang for hang in hangs if (hang.engine, hang.kind) == (engine, kind)]
            worst = max(these, key=lambda hang: hang.verdict)
            steps = ", ".join(f"{what} {at:.1f}" for what, at in sorted(worst.steps.items(), key=lambda item: item[1]))
            why = f"{worst.because}; the record of the worst, in s after the hang: {steps}"
            cells = (
                _both(these, lambda hang: hang.verdict),
                _both(these, lambda hang: hang.gone - hang.verdict),
                _both(these, lambda hang: hang.gone),
                these[0].captures,
            )
            data = {
                "hangs": [
                    {"verdict": h.verdict, "gone": h.gone, "because": h.because, "lacking": h.lacking, "steps": h.steps}
                    for h in these
                ]
            }
            goals = (Goal("verdict", worst.verdict, limit, " s", why=why),)
            rows.append(Row(f"{engine}: {kind}", cells, goals, data))
    notes = (
        f"{RANKS} ranks under load, --stall-timeout {max(1.0, STALL * factor):g}, --probe-period {PERIOD * factor:g}"
        + (" (the defaults)" if factor == 1.0 else "")
        + "; the hang begins at any moment of a period. Seconds, median / worst, of "
        f"{len(hangs) // len(rows)} engines each, two at a time. 'then gone': capture of the running engine with two "
        "snapshots, freeze, kill.",
    )
    columns = ("hang to verdict", "then gone", "hang to gone", "artifacts whole")
    return Report(NAME, "Hang to verdict", columns, tuple(rows), notes)


def _both(hangs: Sequence[Hang], value: Callable[[Hang], float]) -> str:
    values = [value(hang) for hang in hangs]
    return f"{percentile(values, 0.5):.1f} / {max(values):.1f}"
