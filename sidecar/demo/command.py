"""`rankguard demo`: a stand-in engine, a rank killed, and what Rankguard makes of it, on real processes.

It promises, and checks at its end, that the engine was gone without our doing, that one sealed incident names the rank
that was killed and holds the Python stacks of all survivors, that the metrics count it, and that no process is left.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.demo.screen import Screen
from sidecar.demo.standin import StandIn, StandInError
from sidecar.demo.watcher import Sample, Watcher
from sidecar.dumps import folder as dump_folder
from sidecar.dumps import values
from sidecar.dumps.folder import Entry
from sidecar.system.subreaper import become_subreaper

VICTIM = "TP2"
WAITING = "TP1"
LIMIT = 60.0  # seconds for everything; a machine with nothing else to do takes some five
_FAREWELL = 4.0  # of them for the cleaning up


@dataclass
class _Course:
    """What the demo finds as it goes. `broken`: each promise that was not kept, in words."""

    end: float
    broken: list[str] = field(default_factory=list)
    killed_at: float = 0.0
    before: dict[Sample, float] = field(default_factory=dict)
    after: dict[Sample, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def demo(engine: str = "sglang", limit: float = LIMIT) -> int:
    """Run it, print it, and return the exit status: 0 where everything was as promised, 1 otherwise, 130 at a Ctrl-C.

    `limit` in seconds, for everything. The folder with the incident is kept, and printed.
    """
    screen = Screen()
    course = _Course(time.monotonic() + limit - _FAREWELL)
    folder = Path(tempfile.mkdtemp(prefix="rankguard-demo-"))
    dump_dir = folder / "incidents"
    standin: StandIn | None = None
    watcher: Watcher | None = None
    try:
        become_subreaper()  # whatever PID 1 is here: the dead are collected at once, as a pod's pause process does it
        screen.title(engine)
        standin = _engine(engine, course)
        screen.engine(standin, VICTIM, WAITING)
        watcher = Watcher(standin.server, dump_dir, folder / "rankguard.log")
        if _watching(watcher, standin, course):
            screen.watching(watcher.pid, watcher.port, course.before)
            _kill_one(screen, watcher, standin, course)
            _wait_for_counters(watcher, course)
    except StandInError as error:
        course.broken.append(str(error))
    except KeyboardInterrupt:
        screen.interrupted(folder)
        return 130
    finally:
        _clean_up(standin, watcher, course)
    entry = _incident(dump_dir, standin, course)
    if entry is not None:
        screen.record(entry, course.killed_at)
        screen.stack(dump_dir, entry, WAITING)
        screen.metrics(course.before, course.after)
        screen.next_steps(folder, dump_dir, entry)
    screen.verdict(course.broken, folder)
    return 1 if course.broken else 0


def _engine(engine: str, course: _Course) -> StandIn:
    standin = StandIn(engine=engine, tp=4, memory_mib=32, work="forward", waiting=(WAITING,), stderr=subprocess.DEVNULL)
    try:
        standin.wait_ready(course.left)
    except BaseException:
        standin.kill_all()
        raise
    return standin


def _watching(watcher: Watcher, standin: StandIn, course: _Course) -> bool:
    """Wait until it watches every rank and says that it is ready."""
    wanted = {rank.label for rank in standin.ranks}
    while course.left:
        watcher.line(0.02)
        if watcher.ended:
            course.broken.append(f"rankguard run ended at once with status {watcher.process.returncode}")
            return False
        if watcher.ready():
            course.before = watcher.metrics()
            up = {
                dict(labels).get("rank")
                for (name, labels), value in course.before.items()
                if name == "rankguard_rank_up" and value == 1
            }
            if wanted <= up:
                watcher.meet()
                return True
    course.broken.append("rankguard run did not see all ranks in time")
    return False


def _kill_one(screen: Screen, watcher: Watcher, standin: StandIn, course: _Course) -> None:
    """Kill a rank, show what is said about it as it is said, and wait for the end of the engine and of the record."""
    course.killed_at = time.time()
    standin.kill(VICTIM)
    screen.death(standin.find(VICTIM))
    sealed = False
    while course.left and not sealed and not watcher.ended:
        line = watcher.line(0.005)
        standin.collect()
        if line is not None:
            screen.said(line, course.killed_at)
            sealed = (line.get("process"), line.get("event")) == ("guard", "sealed")
    watcher.meet()
    if not sealed:
        course.broken.append("the incident was not sealed in time")
    if alive := standin.wait_gone(min(5.0, course.left)):
        names = ", ".join(f"{process.label} ({process.pid})" for process in alive)
        course.broken.append(f"Rankguard left of the engine: {names}")


def _wait_for_counters(watcher: Watcher, course: _Course) -> None:
    """The web counts when the guard tells it, a moment after the record is sealed."""
    sample: Sample = ("rankguard_incidents_total", (("reason", "RankDied"),))
    deadline = time.monotonic() + min(10.0, course.left)
    while time.monotonic() < deadline:
        course.after = watcher.metrics()
        if course.after.get(sample, 0) == course.before.get(sample, 0) + 1:
            return
        watcher.line(0.05)
    course.broken.append("the metrics do not count the incident")


def _clean_up(standin: StandIn | None, watcher: Watcher | None, course: _Course) -> None:
    if watcher is not None and (left := watcher.stop(2.0)):
        pids = ", ".join(str(identity.pid) for identity in left)
        course.broken.append(f"processes of rankguard run did not end at SIGTERM: {pids}")
    if standin is not None:
        try:
            standin.kill_all(1.5)
        except StandInError as error:
            course.broken.append(str(error))


def _incident(dump_dir: Path, standin: StandIn | None, course: _Course) -> Entry | None:
    """The one incident, held against what was promised of it."""
    try:
        entries = dump_folder.read(str(dump_dir)).entries
    except OSError:
        entries = ()
    if standin is None or not course.killed_at:
        return None
    if len(entries) != 1:
        course.broken.append(f"{len(entries)} incidents on record instead of one")
        return None
    entry = entries[0]
    if entry.unreadable:
        course.broken.append(f"the record cannot be read: {entry.unreadable}")
        return None
    if not entry.sealed:
        course.broken.append("the record is not sealed")
    first: dict[str, Any] = values.first_failure(entry.record)
    if first.get("rank") != VICTIM or first.get("cause") != "sigkill":
        course.broken.append(f"the record says that {first.get('rank')} died first, of {first.get('cause')}")
    stacks = {
        artifact.get("rank")
        for artifact in values.parts(entry.record, "artifacts")
        if str(artifact.get("kind")).startswith("pyspy") and artifact.get("status") == "captured"
    }
    if missing := sorted({rank.label for rank in standin.ranks} - {VICTIM} - stacks):
        course.broken.append(f"no stacks of {', '.join(missing)}")
    return entry
