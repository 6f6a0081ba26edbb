"""`python -m bench [--quick] [--only NAME]…`: run the benchmarks, print the tables, keep the results."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from bench import (
    admission,
    analysis,
    at_rest,
    big_memory,
    coredump,
    engine_gone,
    liveness,
    machine,
    observation,
    probing,
    quarters,
    stacks,
)
from bench.report import Report, keep, show, summary
from bench.scale import Scale
from sidecar.errors import RankguardError

BENCHMARKS: dict[str, Callable[[Scale], Report]] = {
    module.NAME: module.run
    for module in (
        observation,
        big_memory,
        engine_gone,
        at_rest,
        probing,
        liveness,
        stacks,
        analysis,
        coredump,
        admission,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Rankguard beside its peers, in one run.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", dest="scale", action="store_const", const=Scale.QUICK, default=Scale.FULL,
                     help="fewer and smaller rounds: a look, not a result")  # fmt: skip
    how.add_argument("--smoke", dest="scale", action="store_const", const=Scale.SMOKE,
                     help="only to see that it runs")  # fmt: skip
    parser.add_argument("--shared", action="store_true", help="stay in this PID namespace, with whoever else is there")
    parser.add_argument("--only", action="append", choices=tuple(BENCHMARKS), help="only this one; may be repeated")
    options = parser.parse_args()
    why_shared = "--shared" if options.shared else quarters.enter(sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False, soft_wrap=False)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us in the background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    here = machine.describe()
    console.print(Text(machine.line(here)))
    if why_shared:
        console.print(Text(f"in a PID namespace with others ({why_shared}): what they start is in the numbers", "dim"))
    if options.scale is not Scale.FULL:
        console.print(Text(f"--{options.scale}: few rounds, so a p99 is the slowest of them", "dim"))
    console.print()
    reports = []
    failed = []
    started = time.monotonic()
    try:
        for name in options.only or BENCHMARKS:
            began = time.monotonic()
            try:
                report = BENCHMARKS[name](options.scale)
            except RankguardError as error:
                failed.append(name)
                console.print(Text.assemble(("could not be measured ", "red"), f"{name}: {error}\n"))
                continue
            show(report, console)
            path = keep(report, here, options.scale)
            console.print(Text(f"  {time.monotonic() - began:.0f} s; kept in {path}\n", "dim"))
            reports.append(report)
    except KeyboardInterrupt:
        console.print("interrupted: everything that was started is ended")
        return 130
    summary(reports, console)
    console.print(Text(f"{time.monotonic() - started:.0f} s", "dim"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
