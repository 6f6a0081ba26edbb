"""What every collector has in common: one signature, and the words for what it takes and gives.

A collector is a function (target, scene, seconds left) that gives either the pieces at once (there is nothing to
take) or an `Attempt`: work for one child process with a time limit. When the child has ended, or was ended, the
attempt's `judge` makes the pieces of what it left, or gives another attempt (a fallback).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.model import ArtifactStatus, Identity
from sidecar.system.proc import Proc

MIB = 1 << 20
GONE = "the process is gone"
NEEDS_RUNNING = "needs a running process"


@dataclass(frozen=True, slots=True)
class Target:
    """A process to capture. `label` is its name in paths: safe, and like no other target's of the incident."""

    identity: Identity
    role: str
    rank: str
    title: str
    label: str
    is_rank: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """What holds for all targets. `frozen`: the guard has stopped them. `pyspy`: the program, "" if there is none.

    `python` and `package_root` start a program of our own (`program`). `folder` is the incident's folder, an absolute
    path, "" until it is on the volume; `room` is how many bytes this collector may write there by itself, and
    `coredump_max_bytes` how many one coredump may have. `history_fd` holds the engine's last metrics, -1 where nobody
    keeps them. `targets` is everybody, for a collector that runs once for all. `lethal`: the engine is killed when the
    captures are done, so a collector may do what could end it. `question` is what the analysis is asked, as JSON.
    """

    proc: Proc
    frozen: bool
    pyspy: str
    python: str = ""
    package_root: str = ""
    folder: str = ""
    room: int = 0
    coredump_max_bytes: int = 0
    history_fd: int = -1
    lethal: bool = False
    targets: tuple[Target, ...] = ()
    question: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """One artifact to be. `file` is relative to the incident's folder.

    With `render`, the file holds render(data), which is made only when nothing is being captured any more. With
    `written`, its child has put the file there already: (bytes, sha256), the latter "" where it was not computed.
    """

    kind: str
    status: ArtifactStatus
    file: str = ""
    data: bytes = b""
    detail: str = ""
    render: Callable[[bytes], bytes] | None = None
    written: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """What a child left. `wait_status` is None where it was ended at a limit; `failure` says why it never began, or
    that it had no memory: then it is not tried again.
    """

    wait_status: int | None
    out: bytes = b""
    err: bytes = b""
    cut: bool = False
    seconds: float = 0.0
    failure: str = ""

    @property
    def exit_code(self) -> int | None:
        """The exit status, or None where it did not exit."""
        return None if self.wait_status is None or self.wait_status & 0x7F else self.wait_status >> 8


Judge = Callable[[Ended], "Attempt | tuple[Piece, ...]"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Work for a child: a command line, or a function that runs in a fork of ours and writes to the descriptor given.

    `limit` is seconds, `cap` the bytes of output that are kept. `pauses`: killing this child may leave its target
    stopped, so the target then gets SIGCONT.
    """

    work: tuple[str, ...] | Callable[[int], None]
    judge: Judge
    limit: float
    cap: int = 8 * MIB
    pauses: bool = False


Collector = Callable[[Target, Scene, float], Attempt | tuple[Piece, ...]]


_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from importlib import import_module;"
    " import_module(sys.argv[2]).main(*sys.argv[3:])"
)


def program(scene: Scene, module: str, *arguments: str, bare: bool = False) -> tuple[str, ...]:
    """The command line of a program of ours: `main(*arguments)` of the module named, in a fresh interpreter.

    -I keeps the environment's and the working folder's Python files out. For collectors that must import something;
    `bare` for one that imports the standard library alone: it starts in half the time.
    """
    flags = ("-I", "-S") if bare else ("-I",)
    return (scene.python, *flags, "-c", _BOOT, scene.package_root, module, *arguments)


def over_limit(ended: Ended) -> str:
    """Why a child that was ended at a limit gave nothing, in words."""
    if not ended.seconds:
        return "not begun before the deadline"
    return f"ended after {ended.seconds:.2f} s without an answer"
