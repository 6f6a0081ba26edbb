"""The driver's stand-in as a real process, and the collector run on it as the recorder runs it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from recorder_rig import PROC, ROOT, identity_of

from sidecar.model import Identity
from sidecar.recorder.capture import cuda_coredump
from sidecar.recorder.capture.base import Attempt, Ended, Piece, Scene, Target

GIB = 1 << 30


class Double:
    """One stand-in process in a folder of its own. `lines` it prints are waited for by `wait`."""

    def __init__(self, folder: Path, *arguments: str, environ: dict[str, str] | None = None, **popen: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        settings = {
            "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1",
            "CUDA_COREDUMP_PIPE": str(folder / "pipe.%h.%p.%t"),
            "CUDA_COREDUMP_FILE": str(folder / "dump.%h.%p.%t"),
            "CUDA_COREDUMP_GENERATION_FLAGS": "skip_global_memory,skip_abort",
        }
        settings = {name: value for name, value in {**settings, **(environ or {})}.items() if value}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sidecar.demo.cuda_double", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings}, **popen,
        )  # fmt: skip
        self.wait("ready")
        self.identity = identity_of(self.process.pid)

    def wait(self, word: str, seconds: float = 30.0) -> str:
        """The next line it prints, which must begin with `word`."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], f"it never said {word}"
        line = self.process.stdout.readline().decode().strip()
        assert line.startswith(word), line
        return line

    def dumps(self) -> list[Path]:
        return sorted(self.folder.glob("dump.*"))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


def target(identity: Identity, label: str = "TP0") -> Target:
    return Target(identity, "scheduler", label, f"sglang::scheduler_{label}", label, is_rank=True)


def scene(folder: Path, room: int = GIB, most: int = GIB, frozen: bool = False) -> Scene:
    return Scene(
        proc=PROC, frozen=frozen, pyspy="", python=sys.executable, package_root=str(ROOT), folder=str(folder),
        room=room, coredump_max_bytes=most,
    )  # fmt: skip


class Run:
    """The collector's program, begun as the recorder begins it. `piece` waits for what came of it."""

    def __init__(self, identity: Identity, where: Scene, seconds: float = 30.0, label: str = "TP0") -> None:
        begun = cuda_coredump.collect(target(identity, label), where, seconds)
        self._attempt = begun if isinstance(begun, Attempt) else None
        self._pieces = begun if not isinstance(begun, Attempt) else ()
        self.process: subprocess.Popen[bytes] | None = None
        if self._attempt is not None:
            assert not callable(self._attempt.work)
            self._began = time.monotonic()
            self._heard = b""
            self.process = subprocess.Popen(self._attempt.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def until(self, step: str) -> None:
        """Wait until it says that it is at this step."""
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard += line
            if step.encode() in line:
                return
        raise AssertionError(f"it never came to: {step}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def piece(self) -> Piece:
        pieces: Any = self._pieces
        if self.process is not None:
            assert self._attempt is not None
            out, err = self.process.communicate(timeout=60)
            status = self.process.returncode
            wait_status = None if status < 0 else status << 8
            ended = Ended(wait_status, self._heard + out, err, seconds=time.monotonic() - self._began)
            pieces = self._attempt.judge(ended)
        (piece,) = pieces
        assert isinstance(piece, Piece)
        assert piece.kind == "cuda_coredump"
        return piece


def collected(double: Double, where: Scene, seconds: float = 30.0, label: str = "TP0") -> Piece:
    return Run(double.identity, where, seconds, label).piece()
