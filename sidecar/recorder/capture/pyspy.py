"""Python stacks of a process, by py-spy: one run, one snapshot, kept as JSON and as text made from that JSON.

py-spy's normal way pauses the target by ptrace, which fails on a process that is already stopped (seen with 0.4.3), so
the frozen are read with --nonblocking, and so is a running process that py-spy could not pause. A py-spy that hangs
while attaching can leave its target stopped: hence `pauses`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import GONE, Attempt, Ended, Piece, Scene, Target, over_limit

_LIMIT = 10.0
_PAUSING_SHARE = 0.6  # of the time that is left; the rest is for the other way


@dataclass(frozen=True, slots=True)
class Series:
    """Stacks of one sort: in `<folder>/<label>.json` and `.txt`, of the kinds `<folder>_json` and `<folder>_text`."""

    folder: str

    @property
    def kinds(self) -> dict[str, str]:
        return {"json": f"{self.folder}_json", "txt": f"{self.folder}_text"}

    def both(self, status: ArtifactStatus, detail: str) -> tuple[Piece, ...]:
        kinds = self.kinds
        return Piece(kinds["txt"], status, detail=detail), Piece(kinds["json"], status, detail=detail)


FIRST = Series("pyspy")
SECOND = Series("pyspy2")
NATIVE = Series("pyspy_native")


def collect(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The stacks of all Python threads: `pyspy/<label>.json` and `pyspy/<label>.txt`."""
    return _collect(FIRST, target, scene, left)


def collect_again(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The same some seconds later, to see what has moved meanwhile: `pyspy2/<label>.json` and `.txt`."""
    return _collect(SECOND, target, scene, left)


def _collect(series: Series, target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    obstacle = obstacle_of(series, target, scene)
    if obstacle:
        return obstacle
    stat = scene.proc.stat(target.identity.pid)
    if scene.frozen or (stat is not None and stat.state in ("T", "t")):
        return _attempt(series, target, scene, min(_LIMIT, left), "")
    return Attempt(
        work=(scene.pyspy, "dump", "--json", "--pid", str(target.identity.pid)),
        judge=lambda ended: _judge_pausing(series, target, scene, left, ended),
        limit=min(_LIMIT, left * _PAUSING_SHARE),
        pauses=True,
    )


def obstacle_of(series: Series, target: Target, scene: Scene) -> tuple[Piece, ...]:
    """Why no stacks can be read at all, as pieces; () where nothing is in the way."""
    stat = scene.proc.stat(target.identity.pid)
    if stat is None or stat.identity != target.identity or stat.zombie:
        return series.both(ArtifactStatus.SKIPPED, GONE)
    if stat.exiting:
        return series.both(ArtifactStatus.SKIPPED, f"{GONE}: the kernel is taking it apart")
    if not scene.pyspy:
        return series.both(ArtifactStatus.FAILED, "py-spy is neither beside our Python nor on the PATH")
    return ()


def _attempt(series: Series, target: Target, scene: Scene, limit: float, unpaused: str) -> Attempt:
    """The way that needs no pause. `unpaused` says why a running process is read like this."""
    return Attempt(
        work=(scene.pyspy, "dump", "--json", "--nonblocking", "--pid", str(target.identity.pid)),
        judge=lambda ended: judge(series, target, scene, unpaused, ended),
        limit=limit,
        pauses=bool(unpaused),  # it does not, but the way tried before this one may have left the target stopped
    )


def _judge_pausing(
    series: Series, target: Target, scene: Scene, left: float, ended: Ended
) -> Attempt | tuple[Piece, ...]:
    if _is_whole(ended) or ended.failure or ended.cut or (ended.wait_status is None and not ended.seconds):
        return judge(series, target, scene, "", ended)
    left = min(_LIMIT, left - ended.seconds)
    return _attempt(series, target, scene, left, f"taken without pausing the process: {_why(ended)}")


def judge(series: Series, target: Target, scene: Scene, unpaused: str, ended: Ended) -> tuple[Piece, ...]:
    """The pieces that a py-spy left which has ended. `unpaused`: see `_attempt`."""
    stat = scene.proc.stat(target.identity.pid)
    there = stat is not None and stat.identity == target.identity and not stat.zombie
    if not _is_whole(ended):
        if not there:
            return series.both(ArtifactStatus.SKIPPED, GONE)
        return series.both(ArtifactStatus.TIMED_OUT if _hung(ended) else ArtifactStatus.FAILED, _why(ended))
    if stat is not None and stat.identity != target.identity:
        return series.both(ArtifactStatus.SKIPPED, GONE)  # these are the stacks of whoever has the pid now
    detail = unpaused if there else "the process ended while its stacks were read"
    status = ArtifactStatus.PARTIAL if detail else ArtifactStatus.CAPTURED
    how = "frozen" if scene.frozen else "not paused" if unpaused else "paused by py-spy"

    def render(data: bytes) -> bytes:
        return text(data, target, how)

    return (
        Piece(series.kinds["txt"], status, f"{series.folder}/{target.label}.txt", ended.out, detail, render),
        Piece(series.kinds["json"], status, f"{series.folder}/{target.label}.json", ended.out, detail),
    )


def _is_whole(ended: Ended) -> bool:
    # Parsing megabytes would hold up the loop, so whether it is all there is told by its two ends.
    return ended.exit_code == 0 and not ended.cut and ended.out[:1] == b"[" and ended.out.rstrip()[-1:] == b"]"


def _hung(ended: Ended) -> bool:
    return ended.wait_status is None and not ended.cut and not ended.failure


def _why(ended: Ended) -> str:
    if ended.failure:
        return ended.failure
    if ended.cut:
        return "py-spy wrote more than is kept"
    if ended.wait_status is None:
        return f"py-spy {over_limit(ended)}"
    if ended.exit_code is None:
        return f"py-spy was ended by signal {ended.wait_status & 0x7F}"
    if b"permission denied" in ended.err.lower():
        # Its own advice is to use sudo.
        return "permission denied: py-spy may not look into the process (`rankguard doctor` says what is missing)"
    said = " ".join(ended.err.decode("utf-8", "backslashreplace").split())[:300]
    return f"py-spy exited with status {ended.exit_code}: {_printable(said) or 'it said nothing'}"


def text(data: bytes, target: Target, how: str) -> bytes:
    """Stacks for people, innermost call first, made from py-spy's JSON; the main thread comes first.

    Raises `ValueError` where `data` is not what `py-spy dump --json` writes.
    """
    threads = json.loads(data)
    if not isinstance(threads, list) or not all(isinstance(thread, dict) for thread in threads):
        raise ValueError("not a list of threads")
    pid = target.identity.pid
    threads.sort(key=lambda thread: (thread.get("os_thread_id") != pid, thread.get("os_thread_id") or 0))
    owners = [f'{_tid(thread)} "{_title(thread)}"' for thread in threads if thread.get("owns_gil")]
    lines = [
        f"Process {pid}: {_printable(target.rank)} ({target.role}), {how}",
        f"GIL: held by {', '.join(owners)}" if owners else "GIL: held by no thread",
        "",
    ]
    for thread in threads:
        state = "active" if thread.get("active") else "idle"
        if thread.get("owns_gil"):
            state += "+gil"
        lines.append(f'Thread {_tid(thread)} ({state}): "{_title(thread)}"')
        lines += [
            f"    {_printable(frame['name'])} ({_printable(frame['filename'])}:{frame['line']})"
            for frame in thread.get("frames", ())
        ]
        lines.append("")
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def _tid(thread: dict[str, Any]) -> Any:
    return thread.get("os_thread_id") or thread.get("thread_id")


def _title(thread: dict[str, Any]) -> str:
    return _printable(str(thread.get("thread_name") or ""))


def _printable(word: str) -> str:
    """Names come from the process that failed: none may write lines or terminal escapes of its own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in word)
