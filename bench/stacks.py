"""Stacks of 8 ranks with torch loaded, which hang in a gloo collective: a real recorder beside py-spy run in series.

The peer is the usual script: one rank after the other, first with native frames, then without. Each rank tells by
itself how long it stood still meanwhile. Plain stacks come first here, since they answer most questions; native ones
read the symbols of libraries of hundreds of MB.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.children import ROOT, Child
from bench.pump import Late, Pump, now
from bench.recorder_seat import RecorderSeat
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.stats import percentile, times
from bench.stillness import Reader
from sidecar.errors import RankguardError
from sidecar.model import Identity, RankProcess, Role
from sidecar.system.proc import Proc
from sidecar.system.programs import find_pyspy

NAME = "stacks"
TORCH = Path(ROOT) / ".venv-torch" / "bin" / "python"
SIZES = {Scale.FULL: (8, 5), Scale.QUICK: (8, 2), Scale.SMOKE: (2, 1)}  # ranks, rounds
HANG, ONCE, DEATH, SERIAL, NOTHING = (
    "recorder, as after a hang", "recorder, one snapshot", "recorder, frozen as after a death",
    "py-spy in series, native first", "nothing is read for 3 s",
)  # fmt: skip
SOONER = 5.0
_PLAIN, _NATIVE, _SECOND = "pyspy_json", "pyspy_native_json", "pyspy2_json"
_READY = (
    180.0  # limits in seconds: torch is loaded by all; one py-spy; an incident's captures, of a hang and of a death
)
_ONE = 60.0
_HANG_DEADLINE, _DEATH_DEADLINE = 60.0, 3.0
_REST = 3.0


@dataclass(frozen=True, slots=True)
class Taken:
    """One round of one way, in seconds. `plain`, `native`: until the last rank's stacks of that sort were there,
    infinite where one is missing. `all`: until the end. Of the rank for which it is longest: `still` at a stretch,
    `total` together.
    """

    plain: float
    native: float
    all: float
    still: float
    total: float
    lost: tuple[str, ...] = ()
    steps: dict[str, float] = field(default_factory=dict)


def run(scale: Scale) -> Report:
    size, rounds = SIZES[scale]
    if not TORCH.exists():
        raise RankguardError(f"it needs PyTorch: `make test-torch` puts it into {TORCH.parent.parent.name}")
    pyspy = find_pyspy(sys.executable, "")
    if not pyspy:
        raise RankguardError("there is no py-spy beside this Python: install the package again")
    found: dict[str, list[Taken]] = {name: [] for name in (HANG, ONCE, DEATH, SERIAL, NOTHING)}
    with Job(size) as job:
        for _ in range(rounds):
            found[SERIAL].append(job.serial(pyspy))
            found[HANG].append(job.recorded(("process", "pyspy", "pyspy_native"), twice=True))
            found[ONCE].append(job.recorded(("process", "pyspy", "pyspy_native"), twice=False))
            found[DEATH].append(job.frozen())
            found[NOTHING].append(job.rest())
    return report(found, size)


class Job:
    """`size` ranks in a collective that one of them never enters. A context manager that leaves nothing behind."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stack = ExitStack()
        self._pump = Pump()
        self._stack.callback(self._pump.close)
        self._children: list[Child] = []
        self._readers: list[Reader] = []

    def __enter__(self) -> Job:
        try:
            self._start(Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-"))))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, folder: Path) -> None:
        ready: list[str] = []
        log = self._stack.enter_context((folder / "log").open("wb"))
        stills = [str(folder / f"still{n}") for n in range(self._size)]
        for number, still in enumerate(stills):
            argv = [str(TORCH), "-m", "bench.programs.torch_rank", number, self._size, folder / "store", still]
            child = self._stack.enter_context(Child([str(word) for word in argv], stderr=log))
            self._pump.add_lines(child.out, lambda text, _: ready.append(text))
            self._children.append(child)
        try:
            self._pump.until(lambda: len(ready) == self._size, _READY, "every rank has loaded torch")
            self._pump.run(1.0)
            self._readers = [Reader(still) for still in stills]
        except (Late, OSError) as error:
            said = (folder / "log").read_text("utf-8", "backslashreplace").strip().split("\n")[-1]
            raise RankguardError(f"the ranks did not start: {said or error}") from error
        with closing(Proc()) as proc:
            stats = [proc.stat(child.pid) for child in self._children]
        if None in stats or not all(reader.ticking for reader in self._readers):
            raise RankguardError("a rank has ended, or does not tick")
        starts = [stat.start for stat in stats if stat is not None]
        self._ranks = [
            RankProcess(Identity(child.pid, start), Role.WORKER, f"RANK{number}", "torch", 1, child.pid, child.pid)
            for number, (child, start) in enumerate(zip(self._children, starts, strict=True))
        ]

    def serial(self, pyspy: str) -> Taken:
        """The peer."""
        began = now()
        last = {_NATIVE: math.nan, _PLAIN: math.nan}
        lost = []
        for rank in self._ranks:
            for kind, flags in ((_NATIVE, ("--native",)), (_PLAIN, ())):
                argv = [pyspy, "dump", "--json", *flags, "--pid", str(rank.identity.pid)]
                try:
                    done = subprocess.run(argv, capture_output=True, timeout=_ONE, check=False).returncode == 0
                except subprocess.TimeoutExpired:
                    done = False
                last[kind] = now() - began
                lost += [] if done else [f"{kind} of {rank.rank}"]
        return self._taken(began, now(), last, lost)

    def recorded(self, captures: tuple[str, ...], twice: bool, frozen: bool = False) -> Taken:
        """A recorder of its own for each round, as for each incident."""
        with (
            tempfile.TemporaryDirectory(prefix="rankguard-bench-") as folder,
            RecorderSeat(self._pump, folder) as recorder,
        ):
            seconds = _DEATH_DEADLINE if frozen else _HANG_DEADLINE
            began, heard = recorder.capture(self._ranks, captures, seconds, frozen, twice)
        last: dict[str, float] = {}
        lost = []
        kinds = [_PLAIN, *([_NATIVE] if not frozen else []), *([_SECOND] if twice else [])]
        missing = {(kind, rank.rank) for kind in kinds for rank in self._ranks}
        for one in heard:
            message = one.message
            if message["type"] != "captured" or message["kind"] not in kinds:
                continue
            last[message["kind"]] = one.at - began
            if message["status"] == "captured":
                missing.discard((message["kind"], message["rank"]))
        lost = [f"{kind} of {rank}" for kind, rank in sorted(missing)]
        return self._taken(began, heard[-1].at, last, lost)

    def frozen(self) -> Taken:
        """The ranks stopped for as long as the recorder takes, as the guard does it."""
        for child in self._children:
            child.process.send_signal(signal.SIGSTOP)
        try:
            return self.recorded(("process", "pyspy"), twice=False, frozen=True)
        finally:
            for child in self._children:
                child.process.send_signal(signal.SIGCONT)
            self._pump.run(0.2)

    def rest(self) -> Taken:
        """How long the ranks stand still because the machine is busy."""
        began = now()
        time.sleep(_REST)
        return self._taken(began, now(), {}, [])

    def _taken(self, began: float, ended: float, last: dict[str, float], lost: Sequence[str]) -> Taken:
        still = [reader.between(began, ended) for reader in self._readers]

        def until(kind: str) -> float:
            return math.inf if any(one.startswith(f"{kind} ") for one in lost) else last.get(kind, math.nan)

        return Taken(
            until(_PLAIN), until(_NATIVE), ended - began, max(one.longest for one in still),
            max(one.total for one in still), tuple(lost), last,
        )  # fmt: skip


def report(found: dict[str, list[Taken]], size: int) -> Report:
    serial = found[SERIAL]
    rows = []
    for name, rounds in found.items():
        goals: tuple[Goal, ...] = ()
        if name in (HANG, ONCE):
            ratio = _median(serial, "plain") / _median(rounds, "plain")
            why = f"{_seconds(_median(rounds, 'plain'))} s, in series {_seconds(_median(serial, 'plain'))} s"
            goals = (Goal("first complete plain stacks sooner", ratio, SOONER, "x", at_least=True, why=why),)
        if name in (HANG, ONCE, DEATH):
            lost = [one for taken in rounds for one in taken.lost]
            goals += (Goal("stacks that are missing", len(lost), 0, why=", ".join(lost[:8])),)
        sooner = "" if name in (SERIAL, NOTHING) else times(_median(serial, "plain") / _median(rounds, "plain"))
        cells = tuple(_cell(rounds, which) for which in ("plain", "native", "all", "still", "total"))
        data = {"rounds": [{**taken.steps, "still": taken.still, "total": taken.total} for taken in rounds]}
        rows.append(Row(name, (*cells[:1], sooner, *cells[1:]), goals, data))
    lost = [one for taken in serial for one in taken.lost]
    notes = (
        f"{size} ranks with torch, waiting in a gloo all_reduce that the last does not enter; {len(serial)} rounds in "
        "turns, seconds, median / worst. 'first plain': until the plain stacks of all ranks were there.",
        "'still': the longest time at a stretch in which some rank's own thread could not run; 'in all': all "
        "such times of over 8 ms of the rank with the most of them. In the last row nothing is done to them: that is "
        "the machine's own part. A hang is recorded with a second snapshot 2 s after the first, and then native.",
        f"In series {len(lost)} stacks are missing" + (f": {', '.join(lost[:4])}" if lost else "") + ".",
    )
    columns = ("first plain", "sooner", "native", "all", "still", "in all")
    return Report(NAME, f"Stacks of {size} ranks with torch", columns, tuple(rows), notes)


def _median(rounds: Sequence[Taken], which: str) -> float:
    return percentile([float(getattr(taken, which)) for taken in rounds], 0.5)


def _cell(rounds: Sequence[Taken], which: str) -> str:
    values = [float(getattr(taken, which)) for taken in rounds]
    if any(math.isnan(value) for value in values):
        return ""
    return f"{_seconds(percentile(values, 0.5))} / {_seconds(max(values))}"


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"
