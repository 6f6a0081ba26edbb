"""Where a rank stands, by its Python stack. Pure.

A stack is what `py-spy dump --json` says of one thread: frames, the innermost first. It comes from a process that may
be broken or hostile, so nothing here raises and everything is bounded. Calls into C have no frame: a rank that waits
in `Work.wait` or `time.sleep` shows the Python function that called it.

The tables of known places are in `sidecar.policy.places`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from sidecar.policy import places
from sidecar.policy.places import Uses

_MOST_FRAMES = 1000
_KEPT_FRAMES = 24
_LONGEST_WORD = 40
_LINE = re.compile(r":[0-9]+(?=<|$)")


class Kind(StrEnum):
    """What sort of place a main thread stands in."""

    IDLE = "idle"  # the engine's own loop, waiting for requests
    COLLECTIVE = "collective"  # waits for other ranks: all_reduce, broadcast, barrier, a shared-memory queue
    WAIT = "wait"  # waits for something else: a lock, a queue, a socket, the device
    COMPILE = "compile"  # inside a compiler that runs in the process
    RUN = "run"  # anything else


@dataclass(frozen=True, slots=True)
class Spot:
    """`key` is the same for two stacks that stand in the same place; `name` is that place for people.

    `step`: it is inside of a step of the engine's own, so there is work, whatever its numbers say.
    """

    kind: Kind
    name: str
    key: str
    step: bool = False


class Frame(NamedTuple):
    """One call of a thread; `line` is 0 where it is not known. A tuple, since a thousand ranks have many of them."""

    function: str
    path: str
    line: int

    @property
    def place(self) -> str:
        """The frame without its line: the function and the last two parts of its file's path."""
        return f"{_word(self.function)}@{_word('/'.join(self.path.split('/')[-2:]))}"

    @property
    def name(self) -> str:
        """For people: `all_reduce (distributed_c10d.py:2810)`."""
        parts = self.path.split("/")
        file = "/".join(parts[-2:] if parts[-1] == "__init__.py" else parts[-1:])
        return f"{_word(self.function)} ({_word(file)}:{self.line})"


def spot_of(threads: Sequence[Mapping[str, Any]], pid: int, engine: str) -> Spot | None:
    """The place of the main thread of process `pid`, or None where nothing usable was told.

    The main thread is the one with the process's own id; a py-spy that sees another PID namespace's numbers still tells
    its name, `MainThread`. `engine` ("sglang", "vllm") chooses whose idle loop is known.
    """
    return spot_in(frames_of(main_thread_of(threads, pid)), Uses(engine))


def spot_in(frames: Sequence[Frame], uses: Uses) -> Spot | None:
    """The place of a thread with these frames, the innermost first; None for no frames."""
    if not frames:
        return None
    known = [uses.of(frame.function, frame.path) for frame in frames]
    spot = _spot(frames, known)
    return replace(spot, step=True) if any(use & places.STEP for use in known) else spot


def _spot(frames: Sequence[Frame], known: list[int]) -> Spot:
    idle = _idle(known)
    if idle is not None:
        return _waiting(Kind.IDLE, frames, idle)
    # From the outermost inwards: what is inside of a place in which a rank waits is how it waits, and it jitters.
    for at in range(len(frames) - 1, -1, -1):
        if known[at] & places.COMPILE:
            return _waiting(Kind.COMPILE, frames, at)
        if known[at] & places.COLLECTIVE:
            inside = any(use & places.COMPILE for use in known[:at])
            return _waiting(Kind.COMPILE if inside else Kind.COLLECTIVE, frames, at)
        if known[at] & places.WAIT:
            return _waiting(Kind.WAIT, frames, at)
    innermost = frames[0]
    return Spot(Kind.RUN, innermost.name, _key(Kind.RUN, [_with_line(f) for f in frames]))


def moved(before: Spot | None, after: Spot | None) -> bool | None:
    """Whether a rank stands elsewhere than before; None where one of the two is not known.

    A rank that polls in a wait does not move, whatever line of the polling it is in.
    """
    if before is None or after is None:
        return None
    return before.key != after.key


def waits_for_device(spot: Spot) -> bool:
    """Whether it waits for its own GPU, which looks alike for one long kernel and for one that never ends."""
    return spot.kind is Kind.WAIT and spot.name.startswith("synchronize ")


def fingerprint(spots: Mapping[str, Spot]) -> str:
    """What tells this failure from others, by where the ranks stand: 12 hexadecimal digits, "" for no stack at all.

    The same failure gives the same one again, whichever rank it hit and however many ranks there are: it is made of
    the set of places, without lines and labels.
    """
    found = {place_of(spot) for spot in spots.values()}
    return _digest("\n".join(sorted(found))) if found else ""


def place_of(spot: Spot) -> str:
    """Its key without lines, so that it outlives an upgrade of the engine."""
    return _LINE.sub("", spot.key.partition("#")[0])


def main_thread_of(threads: Any, pid: int) -> Mapping[str, Any] | None:
    """The process's main thread, or the first there is; None where nothing usable was told."""
    if not isinstance(threads, Sequence) or isinstance(threads, (str, bytes)):
        return None
    usable = [t for t in threads[:_MOST_FRAMES] if isinstance(t, Mapping) and isinstance(t.get("frames"), list)]
    for thread in usable:
        if thread.get("os_thread_id") == pid:
            return thread
    for thread in usable:
        if thread.get("thread_name") == "MainThread":
            return thread
    return usable[0] if usable else None


def frames_of(thread: Mapping[str, Any] | None) -> list[Frame]:
    """The thread's frames, the innermost first; what is no frame is left out."""
    found = []
    for frame in thread["frames"][:_MOST_FRAMES] if thread is not None else ():
        if not isinstance(frame, dict):
            continue
        function, path, line = frame.get("name"), frame.get("filename"), frame.get("line")
        if isinstance(function, str) and isinstance(path, str):
            # From Python 3.11 on, py-spy tells qualified names (seen with 0.4.3): Condition.wait, f.<locals>.g.
            function = function.rpartition(".")[2]
            if type(line) is not int or not 0 <= line < 10_000_000:  # a bool is none either
                line = 0
            found.append(Frame(function[:500], path[-500:], line))
    return found


def _idle(known: list[int]) -> int | None:
    """The index of the frame in which the engine's own loop waits for requests, or None; the outermost such one.

    It takes two: the loop's own frame, and inside of it a wait or nothing at all (a wait in C has no frame). With
    work inside of it, the loop is busy handling what it got.
    """
    found = None
    waits = True  # where nothing is inside, and then where a wait is
    for at, use in enumerate(known):
        if use & places.IDLE_LOOP and waits:
            found = at
        elif at and use & places.WORK_LOOP and known[at - 1] & places.REQUEST_QUEUE:
            found = at - 1
        waits = bool(use & (places.COLLECTIVE | places.WAIT)) or (waits and at > 0)
    return found


def _waiting(kind: Kind, frames: Sequence[Frame], at: int) -> Spot:
    """A spot that is known by the frame at `at`: what is inside of it is dropped, and so is its own line."""
    outside = [_with_line(frame) for frame in frames[at + 1 :]]
    return Spot(kind, frames[at].name, _key(kind, [frames[at].place, *outside]))


def _key(kind: Kind, parts: list[str]) -> str:
    kept = "<".join(parts[:_KEPT_FRAMES])
    rest = parts[_KEPT_FRAMES:]
    return f"{kind}|{kept}" + (f"#{_digest('<'.join(rest))}" if rest else "")


def _with_line(frame: Frame) -> str:
    return f"{frame.place}:{frame.line}"


def _word(text: str) -> str:
    """A part of a key or name: printable, short, and without the marks that a key is made of."""
    text = text[-_LONGEST_WORD:]
    if text.isprintable() and "#" not in text and "|" not in text:
        return text
    return "".join(c if c.isprintable() and c not in "#|" else "?" for c in text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
