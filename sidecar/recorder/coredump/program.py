"""The collector's program, one for each rank: trigger a CUDA coredump, wait for it, bring it home.

Told by one JSON argument, answers by lines of JSON on its standard output: what it does (`step`), and last how it went
(`status`, `detail`, and for a dump `file`, `bytes`, `sha256`). Ends by itself before its deadline; a kill at any moment
leaves at most a `.partial` file.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from sidecar.engines.sglang import crash_folder
from sidecar.errors import ProcessGone
from sidecar.model import ArtifactStatus, Identity
from sidecar.recorder.capture.inherited import command_lines, inherited
from sidecar.recorder.coredump import pipe as pipes
from sidecar.recorder.coredump.take import NoRoom, NotTaken, Shelf
from sidecar.recorder.coredump.target import TargetProcess
from sidecar.recorder.coredump.template import FILE, VARIABLES, expand, likely_file, names
from sidecar.recorder.coredump.watch import Found, Watch
from sidecar.system.proc import Proc

_LOOK_EVERY = 0.05
_ESCALATE_AFTER = (3.0, 3.0)  # seconds until more is written; at most a fifth of the time each
_TAKING_SHARE = 0.2  # of the time, for what is not whole by then
_LONGEST_TAKING = 2.0
REMEDY = "run the sidecar as the engine's user, or as root with SYS_PTRACE and DAC_OVERRIDE; see docs/coredumps.md"


@dataclass(frozen=True, slots=True)
class Order:
    """`deadline` is monotonic. `others`: pids of the same engine. `lethal`: the engine is going to be killed anyway."""

    proc: str
    pid: int
    start: int
    others: tuple[int, ...]
    folder: str
    label: str
    room: int
    most: int
    deadline: float
    lethal: bool


@dataclass(frozen=True, slots=True)
class Answer:
    status: ArtifactStatus
    detail: str
    file: str = ""
    bytes: int = 0
    sha256: str = ""


class _End(Exception):
    """Nothing more to be done; `args[0]` is the answer."""


def main(order: str) -> None:
    """Do what is ordered and say how it went."""
    _say(answer_to(Order(**{**json.loads(order), "others": tuple(json.loads(order)["others"])})))


def answer_to(order: Order) -> Answer:
    try:
        return _Run(order).all()
    except _End as end:
        answer = end.args[0]
        assert isinstance(answer, Answer)
        return answer
    except ProcessGone:
        return Answer(ArtifactStatus.SKIPPED, "the process is gone")
    except PermissionError as error:
        what = errno.errorcode.get(error.errno or 0, "?")
        return Answer(ArtifactStatus.FAILED, f"no permission to look into the process ({what}): {REMEDY}")
    except NotTaken as error:
        return Answer(ArtifactStatus.FAILED, str(error))


class _Run:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._began = time.monotonic()
        self._target = TargetProcess(order.proc, Identity(order.pid, order.start))
        self._pipe: pipes.Pipe | None = None
        self._read = False

    def all(self) -> Answer:
        if self._target.stat().state in ("T", "t"):
            raise _End(Answer(ArtifactStatus.SKIPPED, "needs a running process: this one is stopped"))
        self._target.enter()
        proc = Proc(self._order.proc)
        environ = inherited(proc, self._order.pid, VARIABLES, self._order.others)
        lines = command_lines(proc, self._order.pid, self._order.others)
        folder = next((folder for line in lines if (folder := crash_folder(line))), "")
        called = names(environ, folder)
        host, pid = self._target.host(), self._target.pid_inside
        pipe = self._find_pipe(tuple(expand(template, host, pid) for template in called.pipes), called.enabled)
        if not (called.keeps_running or self._order.lethal):
            why = "a dump may end the process, which is to live: CUDA_COREDUMP_GENERATION_FLAGS lacks skip_abort"
            raise _End(Answer(ArtifactStatus.SKIPPED, why))
        shelf = Shelf(self._order.folder, self._order.label, self._order.room, self._order.most)
        patterns = tuple(expand(template, host, pid) for template in called.files)
        guess = None if FILE in environ else likely_file(pid)
        watch = Watch(self._target, patterns, (pipe.folder,), guess)
        mounts = self._target.mounts()
        _say({"step": "triggering the dump"})
        self._pipe = pipe
        self._trigger(pipe, pipes.SIZES[0])
        found, why = self._wait(pipe, watch, shelf)
        _say({"step": f"taking {found.path}"})
        return self._take(shelf, found, mounts, why, called.keeps_running)

    def _find_pipe(self, patterns: tuple[pipes.Pattern, ...], enabled: bool | None) -> pipes.Pipe:
        try:
            return pipes.find(self._target, patterns)
        except pipes.Refused as refused:
            if refused.there:
                raise _End(Answer(ArtifactStatus.FAILED, f"{refused}: {REMEDY}")) from None
            if enabled:
                why = "user-triggered coredumps are enabled, but the driver has made no pipe: CUDA has not begun there"
            else:
                why = (
                    "user-triggered coredumps are not enabled: set CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1 in the"
                    " engine's environment"
                )
            raise _End(Answer(ArtifactStatus.SKIPPED, why)) from None

    def _trigger(self, pipe: pipes.Pipe, size: int) -> None:
        try:
            pipe.write(size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                why = f"nobody reads the trigger pipe {pipe.path}"
            elif error.errno in (errno.EACCES, errno.EPERM):
                why = f"no permission for the trigger pipe {pipe.path}: {REMEDY}"
            else:
                why = f"cannot write to the trigger pipe {pipe.path}: {error.strerror}"
            raise _End(Answer(ArtifactStatus.FAILED, why)) from error

    def _wait(self, pipe: pipes.Pipe, watch: Watch, shelf: Shelf) -> tuple[Found, str]:
        """The dump, and why it is not whole ("": it is)."""
        total = max(0.0, self._order.deadline - self._began)
        give_up = self._order.deadline - min(_LONGEST_TAKING, total * _TAKING_SHARE)
        sizes = list(pipes.SIZES[1:])
        pauses = [min(pause, total / 5) for pause in _ESCALATE_AFTER]
        more_at = time.monotonic() + pauses[0]
        saying = ""
        while True:
            alive = self._target.alive()
            found = watch.look(alive)
            if found is not None:
                self._check_room(shelf, found)
                if saying != found.path:
                    saying = found.path
                    _say({"step": f"waiting until {saying} is whole"})
                missing = watch.missing()
                if not missing and (not alive or watch.is_still()):
                    return found, ""
                if not alive:
                    return found, f"the process died while the dump was written: {missing}"
            elif not alive:
                found = watch.look(False) or self._last_look(watch)
                if found is None:
                    raise _End(
                        Answer(ArtifactStatus.FAILED, f"the process died before it wrote a dump; {self._sent()}")
                    )
                continue
            now = time.monotonic()
            if now >= give_up:
                if found is not None:
                    return found, f"the dump was not whole at the deadline: {watch.missing() or 'it still grew'}"
                self._no_file(pipe, watch)
            pipe.feed()
            if found is None and sizes and now >= more_at:
                self._read = self._read or pipe.unread() == 0
                self._trigger(pipe, sizes.pop(0))
                pauses.pop(0)
                more_at = now + pauses[0] if pauses else now
            time.sleep(_LOOK_EVERY)

    def _last_look(self, watch: Watch) -> Found | None:
        time.sleep(0.3)  # the folder is listed four times a second at most
        return watch.look(False)

    def _check_room(self, shelf: Shelf, found: Found) -> None:
        try:
            shelf.fits(found.size)
        except NoRoom as error:
            raise _End(
                Answer(ArtifactStatus.SKIPPED, f"no room for the dump: {error}; left at {found.path}")
            ) from error

    def _no_file(self, pipe: pipes.Pipe, watch: Watch) -> None:
        unread = pipe.unread()
        if watch.foreign:
            why = f"no dump of the driver's: {watch.foreign}"
        elif unread > 0 and not self._read:
            why = f"the driver has not read its trigger pipe {pipe.path} ({unread} bytes wait in it)"
        else:
            why = (
                f"the driver read its trigger pipe, but no dump file came within {time.monotonic() - self._began:.1f} s"
            )
        raise _End(Answer(ArtifactStatus.TIMED_OUT, f"{why}; {self._sent()}"))

    def _take(self, shelf: Shelf, found: Found, mounts: str, why: str, keeps_running: bool) -> Answer:
        try:
            # What is still being written, and by a process that is to live, would go on growing on our volume.
            still = not why or self._order.lethal or not self._target.alive()
            taken = shelf.take(found, mounts, not why, self._order.deadline, still)
        except NoRoom as error:
            return Answer(ArtifactStatus.SKIPPED, f"no room for the dump: {error}; left at {found.path}")
        except NotTaken as error:
            return Answer(ArtifactStatus.FAILED, f"{error}; the dump is left at {found.path}")
        told = [why, f"{taken.how} from {found.path}", taken.lost, self._sent()]
        if not taken.sha256:
            told.append("not hashed: there was no time" if taken.whole else "not hashed")
        if not why and not keeps_running:
            told.append("skip_abort was not set, so the process may end itself now")
        status = ArtifactStatus.CAPTURED if taken.whole and not why else ArtifactStatus.PARTIAL
        return Answer(status, "; ".join(part for part in told if part), shelf.path, taken.bytes, taken.sha256)

    def _sent(self) -> str:
        written = self._pipe.written if self._pipe is not None else 0
        return f"triggered with {written} byte{'s' if written != 1 else ''}"


def _say(what: Answer | dict[str, Any]) -> None:
    data = what if isinstance(what, dict) else {name: getattr(what, name) for name in Answer.__slots__}
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()
