"""Death to whole engine gone: a server, 8 ranks and a child that left the group, under a real `rankguard run`.

A rank is killed; the moment at which the last process of the engine has let go of what it held is seen here, by a
pidfd of each, and not taken from what Rankguard says. The peer is a bare `killpg` of the same engine: what it takes is
the kernel's own time.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from bench.machine import free_gib
from bench.pump import Pump
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.sidecar_run import Sidecar
from bench.stats import ms, percentile, times
from bench.usage import Used, used
from sidecar.demo.standin import Process, StandIn

NAME = "engine-gone"
RANKS = 8
BIG_MIB = 512
ROUNDS = {Scale.FULL: (10, 5), Scale.QUICK: (2, 1), Scale.SMOKE: (1, 1)}  # engines of small and of big ranks
SENT = 0.020  # s
GONE, GONE_WITH_STACKS = 0.1, 1.0
_READY, _SERVING, _DEAD = 90.0, 30.0, 30.0
_SETTLE = 1.0  # until the warm recorder has nothing more to do than to wait


@dataclass(frozen=True, slots=True)
class Ended:
    """One engine's end, in seconds from the rank's death. `sent`: decision to last SIGKILL; `to_first`: decision to
    first SIGKILL. `used`: by the guard, from before the death until all was gone. `missing`: survivors without a stack.
    """

    gone: float
    decided: float = math.nan
    to_first: float = math.nan
    sent: float = math.nan
    last_kill: float = math.nan
    used: Used = Used(0, 0, 0)
    missing: tuple[str, ...] = ()
    steps: dict[str, float] = field(default_factory=dict)


def run(scale: Scale) -> Report:
    rounds, big_rounds = ROUNDS[scale]
    small: list[Ended] = []
    small_bare: list[Ended] = []
    stacks: list[Ended] = []
    big: list[Ended] = []
    big_bare: list[Ended] = []
    for _ in range(rounds):
        small.append(by_rankguard(0, "none"))
        small_bare.append(by_killpg(0))
        stacks.append(by_rankguard(0, "pyspy"))
    mib = BIG_MIB if scale is not Scale.SMOKE and free_gib() * 1024 > 1.3 * RANKS * BIG_MIB else 32
    for _ in range(big_rounds):
        big.append(by_rankguard(mib, "none"))
        big_bare.append(by_killpg(mib))
    return report(small, small_bare, stacks, big, big_bare, mib)


def engine(mib: int) -> StandIn:
    return StandIn(engine="sglang", tp=RANKS, detokenizer=False, escape="session", memory_mib=mib)


def by_rankguard(mib: int, captures: str) -> Ended:
    """Kill a rank of a watched engine, and let Rankguard do the rest."""
    with (
        tempfile.TemporaryDirectory(prefix="rankguard-bench-") as folder,
        closing(Pump()) as pump,
        engine(mib) as standin,
    ):
        standin.wait_ready(_READY)
        flags = ("--root-pid", str(standin.server), "--captures", captures, "--listen", "none", "--api-listen", "none")
        with Sidecar(pump, folder, *flags) as sidecar:
            sidecar.until("watching", _SERVING, state="serving")
            sidecar.until("recorder stands by", _SERVING)
            pump.run(_SETTLE)
            victim = standin.find("TP3")
            guard = sidecar.tree()["guard"]
            before = used(guard)
            at = standin.kill("TP3")
            left = standin.wait_gone(_DEAD)
            gone = math.inf if left else time.monotonic() - at
            spent = used(guard) - before
            sidecar.until("sealed", _DEAD, process="guard")
            return _from_record(sidecar, standin.processes, victim, at, gone, spent)


def _from_record(
    sidecar: Sidecar, processes: Sequence[Process], victim: Process, at: float, gone: float, spent: Used
) -> Ended:
    """The steps as the record has them: monotonic times, so they compare with ours."""
    record = sidecar.record()
    step = {entry["event"]: entry["at"] - at for entry in reversed(record["guard"]["timeline"])}
    killed = sidecar.until("killed", 1.0)
    last = step["killed"] + killed["ms"] / 1000
    captured = {
        artifact["rank"]
        for artifact in record["artifacts"]
        if artifact["kind"].startswith("pyspy") and artifact["status"] == "captured"
    }
    survivors = {p.label for p in processes if p.role in ("scheduler", "server") and p.pid != victim.pid}
    return Ended(
        gone, step["detected"], step["killed"] - step["detected"], last - step["detected"], last, spent,
        tuple(sorted(survivors - captured)), step,
    )  # fmt: skip


def by_killpg(mib: int) -> Ended:
    """The peer: a SIGKILL to the group and to the one that left it, and nothing read or checked."""
    with engine(mib) as standin:
        standin.wait_ready(_READY)
        escaped = standin.find("escaped")
        group = os.getpgid(standin.server)
        assert group == standin.server
        at = time.monotonic()
        os.killpg(group, signal.SIGKILL)
        os.kill(escaped.pid, signal.SIGKILL)
        left = standin.wait_gone(_DEAD)
        return Ended(math.inf if left else time.monotonic() - at)


def report(
    small: list[Ended], small_bare: list[Ended], stacks: list[Ended], big: list[Ended], big_bare: list[Ended], mib: int
) -> Report:
    missing = [label for one in stacks for label in one.missing]
    rows = (
        _row("without captures", small, small_bare,
             (_worst("decision to last SIGKILL", small, "sent", SENT), _worst("gone", small, "gone", GONE))),
        _row("with the stacks of all survivors", stacks, small_bare,
             (_worst("gone", stacks, "gone", GONE_WITH_STACKS),
              Goal("survivors without a stack", len(missing), 0, why=", ".join(missing)))),
        _row(f"{mib} MiB in each rank, without captures", big, big_bare,
             (_worst("decision to last SIGKILL", big, "sent", SENT),)),
    )  # fmt: skip
    notes = (
        f"A server, {RANKS} ranks, a resource tracker and a child in a session of its own; {len(small)}, "
        f"{len(stacks)} and {len(big)} engines. Milliseconds from the SIGKILL of one rank, median / worst. 'gone': the "
        "last process had let go of everything, by a pidfd of each, seen from outside. 'kernel' is the part after the "
        "last SIGKILL was sent, in which only the kernel works.",
        "'bare killpg' is the same engine killed by one killpg and one kill, from the signal until all is gone.",
    )
    columns = ("gone", "decided", "first SIGKILL", "last SIGKILL", "kernel", "bare killpg", "gone / killpg")
    return Report(NAME, "Death to whole engine gone", columns, rows, notes)


def _row(name: str, ours: list[Ended], bare: list[Ended], goals: tuple[Goal, ...]) -> Row:
    def both(values: list[float]) -> str:
        return f"{ms(percentile(values, 0.5))} / {ms(max(values))}"

    gone, peer = [one.gone for one in ours], [one.gone for one in bare]
    cells = (
        both(gone),
        both([one.decided for one in ours]),
        both([one.decided + one.to_first for one in ours]),
        both([one.last_kill for one in ours]),
        both([one.gone - one.last_kill for one in ours]),
        both(peer),
        times(percentile(gone, 0.5) / percentile(peer, 0.5)),
    )
    engines = [
        one.steps | {"all gone": one.gone, "sent": one.sent, "guard cpu": one.used.cpu, "guard queued": one.used.waited}
        for one in ours
    ]
    return Row(name, cells, goals, {"engines": engines, "killpg": peer})


def _worst(what: str, ours: list[Ended], attribute: str, limit: float) -> Goal:
    """The worst engine against the limit; where it is missed, that engine's own steps say where the time went."""
    worst = max(ours, key=lambda one: float(getattr(one, attribute)))
    measured = float(getattr(worst, attribute))
    over = sum(getattr(one, attribute) > limit for one in ours)
    steps = ", ".join(f"{event} {ms(at)}" for event, at in sorted(worst.steps.items(), key=lambda item: item[1]))
    median = percentile([float(getattr(one, attribute)) for one in ours], 0.5)
    why = (
        f"{over} of {len(ours)} engines, the median is {ms(median)}; the record of the worst, in ms after the death: "
        f"{steps}; last SIGKILL sent {ms(worst.last_kill)}, all seen gone {ms(worst.gone)}. In all that time the guard "
        f"worked {ms(worst.used.cpu)} and stood {ms(worst.used.waited)} in the queue for a core"
    )
    return Goal(what, measured * 1000, limit * 1000, " ms", why=why)
