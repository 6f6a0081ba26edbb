"""The doctor's program: told by its command line (`sidecar.checkup.argv`), answers by one JSON document, and ends.

It runs without third-party packages, so that it starts in a moment and weighs little beside an engine.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import Any

from sidecar.checkup import MOST_BYTES, Checkup, Order, Result, Status, encoded, order_from, results_from
from sidecar.doctor import credentials, running, table, targets
from sidecar.doctor.scene import Scene, Step
from sidecar.doctor.tier import tier
from sidecar.model import plain
from sidecar.settings import Launch, launch_from_fd
from sidecar.system.proc import Proc

_MOST_DESCRIPTORS = 4096


def main(launch_fd: str, order: str) -> None:
    """Check all, write the document to standard output, and exit with 0 whatever was found."""
    launch = launch_from_fd(int(launch_fd))
    os.closerange(3, _MOST_DESCRIPTORS)  # a check that hangs must not keep a port or a channel open
    told = order_from(order)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: then there is nothing left to do
    if told.quiet:
        _give_way()
    data = memoryview(encoded(checkup(launch, told))[:MOST_BYTES])
    while data:
        data = data[os.write(1, data) :]
    sys.stdout.flush()
    os._exit(0)  # not through the interpreter's end, which would wait for nothing of ours but takes its time


def checkup(launch: Launch, order: Order) -> Checkup:
    """All checks, none of which can hold up another."""
    proc = Proc()
    scene = Scene(
        settings=launch.settings, order=order, proc=proc, own=credentials.read("/proc/self"), python=launch.python,
        wraps=bool(launch.command),
    )  # fmt: skip
    scene = _with_targets(scene)
    forks = running.run([_work(entry, scene) for entry in table.TABLE], order.seconds)
    results: list[Result] = []
    for entry, fork in zip(table.TABLE, forks, strict=True):
        results += _results(entry, fork, scene)
    name, because = tier(scene, results)
    return Checkup(name, because, tuple(targets.shown(target) for target in scene.targets), tuple(results))


def _with_targets(scene: Scene) -> Scene:
    def look(step: Step) -> Any:
        step("look for the engine's processes")
        return targets.encoded(targets.find(scene.proc, scene.settings, scene.order))

    (fork,) = running.run([look], scene.order.seconds)
    if fork.answer is None:
        why = fork.failure or f"the processes could not be read within {scene.order.seconds:g} s"
        return replace(scene, blind=why)
    found = targets.decoded(fork.answer)
    return replace(scene, targets=found.targets, engine=found.engine, shared=found.shared)


def _work(entry: table.Entry, scene: Scene) -> running.Work:
    def work(step: Step) -> Any:
        found = entry.check(scene, step)
        return [
            plain(
                Result(
                    one.capability, one.status, targets.printable(one.seen), table.lost(one.capability), one.remedies,
                    table.required(one.capability, scene.settings),
                )
            )
            for one in found
        ]  # fmt: skip

    return work


def _results(entry: table.Entry, fork: running.Fork, scene: Scene) -> tuple[Result, ...]:
    if fork.answer is not None:
        return results_from(fork.answer)
    if fork.failure:
        status, seen = Status.UNKNOWN, fork.failure
    else:
        status, seen = Status.HUNG, f"no answer within {scene.order.seconds:g} s: {fork.step or 'not begun'}"
    return tuple(
        Result(name, status, targets.printable(seen), lost, (), table.required(name, scene.settings))
        for name, lost in entry.lost.items()
    )


def _give_way() -> None:
    """The last to run, and the first to go when memory is short: the engine next door is worth more."""
    os.nice(19)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass
