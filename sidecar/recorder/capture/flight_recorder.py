"""PyTorch's Flight Recorder: the last collectives of a rank, dumped on demand, as `flight_recorder/<label>.pickle`.

A rank that has TORCH_NCCL_DEBUG_INFO_PIPE_FILE set reads from the pipe `<value><rank>.pipe`, about once a second, and
whatever is written to it makes a thread dump to `<TORCH_FR_DUMP_TEMP_FILE><rank>`; it needs no Python and no GIL, so it
answers in a hang (PyTorch, torch/csrc/distributed/c10d: DumpPipe in ProcessGroupNCCL.hpp, DebugInfoWriter in
FlightRecorder.cpp). Which rank it is says the pipe itself, found among the process's descriptors: engines do not set
RANK. The dump is a pickle, so nobody here ever loads it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping

from sidecar.model import ArtifactStatus
from sidecar.recorder.capture import foreign
from sidecar.recorder.capture.base import GONE, MIB, Attempt, Piece, Scene, Target
from sidecar.recorder.capture.environment import variables
from sidecar.recorder.capture.inherited import inherited

KIND = "flight_recorder"
MOST = 64 * MIB
_LIMIT = 15.0
_MOST_NEIGHBOURS = 64
_MARGIN = 0.3  # of the limit, for reading and copying
_LOOK_EVERY = 0.05
_STILL = 0.3
PIPES = ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_FR_DEBUG_INFO_PIPE_FILE")
BUFFERS = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_FILES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
_DYNAMIC = "TORCH_FR_DUMP_DYNAMIC_FILE_NAME"
_NAMES = frozenset((*PIPES, *BUFFERS, *_FILES, _DYNAMIC, "XDG_CACHE_HOME", "HOME", "RANK"))
_WARNING = "a pickle: never load it where the engine is not trusted"

_Seen = tuple[int, int, int]


def collect(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """Trigger a dump and copy it, raw. Skipped where the target has not enabled it."""
    stat_ = scene.proc.stat(target.identity.pid)
    if stat_ is None or stat_.identity != target.identity or stat_.zombie:
        return (Piece(KIND, ArtifactStatus.SKIPPED, detail=GONE),)
    make = foreign.digest()
    limit = min(_LIMIT, left)
    return Attempt(
        work=lambda fd: _Dump(target, scene, limit, make).take(fd),
        judge=lambda ended: foreign.pieces(KIND, ended),
        limit=limit,
    )


class _Dump:
    """One dump; everything here runs in the child."""

    def __init__(self, target: Target, scene: Scene, limit: float, make: foreign.Digest) -> None:
        self._target = target
        self._scene = scene
        self._pid = target.identity.pid
        self._proc = scene.proc.root
        self._until = time.monotonic() + limit * (1 - _MARGIN)
        self._make = make

    def take(self, fd: int) -> None:
        status, detail, source = self._find()
        if source < 0:
            return foreign.report(fd, status, detail)
        file = f"flight_recorder/{self._target.label}.pickle"
        most = min(MOST, self._scene.room)
        try:
            written = foreign.keep(self._scene.folder, file, source, most, self._make)
        except OSError as error:
            why = f"larger than the {most} bytes it may take" if error.errno == errno.EFBIG else foreign.name_of(error)
            return foreign.report(fd, ArtifactStatus.FAILED, f"dumped, not copied: {why}")
        return foreign.report(fd, status, f"{detail}; {_WARNING}" if detail else _WARNING, file, written)

    def _find(self) -> tuple[ArtifactStatus, str, int]:
        """(status, detail, descriptor of the dump, or -1 where there is none)."""
        own = self._scene.proc.environ(self._pid)
        if own is None:
            return ArtifactStatus.FAILED, "its environment may not be read", -1
        # A title hides the environment, so what is the same for all is also taken from the processes around it.
        others = [target.identity.pid for target in self._scene.targets[:_MOST_NEIGHBOURS]]
        names = {n: v for n, v in inherited(self._scene.proc, self._pid, _NAMES, others).items() if n != "RANK"}
        names |= variables(own, ("RANK",))
        stem = next((names[name] for name in PIPES if names.get(name)), "")
        if not stem:
            return ArtifactStatus.SKIPPED, f"not enabled: {PIPES[0]} is not set", -1
        if any(is_zero(names[name]) for name in BUFFERS if name in names):
            return ArtifactStatus.SKIPPED, "not enabled: its buffer size is 0", -1
        try:
            root = foreign.root_of(self._proc, self._pid)
            pipe, rank = self._pipe(root, foreign.absolute(self._proc, self._pid, stem), names.get("RANK", ""))
        except FileNotFoundError:
            return ArtifactStatus.SKIPPED, "not enabled: it has made no pipe", -1
        except PermissionError:
            return ArtifactStatus.FAILED, "no permission to open its pipe; SYS_PTRACE and DAC_OVERRIDE give it", -1
        except OSError as error:
            nobody = error.errno == errno.ENXIO
            why = "nobody reads its pipe" if nobody else f"its pipe cannot be opened: {foreign.name_of(error)}"
            return ArtifactStatus.FAILED, why, -1
        try:
            paths = [foreign.absolute(self._proc, self._pid, path) for path in _paths(names, rank)]
            before = {path: _seen(root, path) for path in paths}
            os.write(pipe, b"1\n")
        except OSError as error:
            return ArtifactStatus.FAILED, f"it cannot be triggered: {foreign.name_of(error)}", -1
        try:
            return self._wait(root, before)
        except OSError as error:
            return ArtifactStatus.FAILED, f"its dump cannot be read: {foreign.name_of(error)}", -1

    def _pipe(self, root: int, stem: str, rank: str) -> tuple[int, str]:
        """A descriptor to write to and the rank's number. Raises `OSError`; ENOENT where there is no pipe."""
        try:
            numbers = os.listdir(f"{self._proc}/{self._pid}/fd")
        except OSError:
            numbers = []
        for number in numbers:
            link = f"{self._proc}/{self._pid}/fd/{number}"
            try:
                name = os.readlink(link)
                if name.startswith(stem) and name.endswith(".pipe") and stat.S_ISFIFO(os.stat(link).st_mode):
                    return os.open(link, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), name[len(stem) : -len(".pipe")]
            except OSError:
                continue
        if not rank.isdigit():
            raise FileNotFoundError(errno.ENOENT, "no pipe")
        found = foreign.find(root, f"{stem}{rank}.pipe")
        try:
            if not stat.S_ISFIFO(os.fstat(found).st_mode):
                raise OSError(errno.EINVAL, "not a pipe")
            return foreign.reopen(found, os.O_WRONLY), rank
        finally:
            os.close(found)

    def _wait(self, root: int, before: Mapping[str, _Seen | None]) -> tuple[ArtifactStatus, str, int]:
        """Until one of the files is new or another, and has been still for a while. Raises `OSError`."""
        at = time.monotonic()
        last = dict(before)
        since = dict.fromkeys(before, at)
        while (now := time.monotonic()) < self._until:
            for path in before:
                seen = _seen(root, path)
                if seen != last[path]:
                    last[path], since[path] = seen, now
                elif seen is not None and seen != before[path] and seen[1] and now - since[path] >= _STILL:
                    source = foreign.open_file(root, path)
                    if _is_whole(source):
                        return ArtifactStatus.CAPTURED, "", source
                    os.close(source)
            there = self._scene.proc.stat(self._pid)
            if there is None or there.identity != self._target.identity or there.zombie:
                return ArtifactStatus.FAILED, "the process ended while it dumped", -1
            time.sleep(_LOOK_EVERY)
        for path in before:
            if last[path] is not None and last[path] != before[path]:
                return ArtifactStatus.PARTIAL, "not written to its end in time", foreign.open_file(root, path)
        old = next((path for path in before if before[path] is not None), "")
        if old:
            why = "no answer to the trigger in time: an earlier dump"
            return ArtifactStatus.PARTIAL, why, foreign.open_file(root, old)
        return ArtifactStatus.TIMED_OUT, "triggered, and no file came in time", -1


def _paths(names: Mapping[str, str], rank: str) -> list[str]:
    """Where the dump may be written; the defaults are those of several versions of PyTorch."""
    told = [names[name] for name in _FILES if names.get(name)]
    if told:
        return [f"{prefix}{rank}" for prefix in told] + (told if names.get(_DYNAMIC) else [])
    cache = names.get("XDG_CACHE_HOME") or (names.get("HOME") or "/tmp") + "/.cache"  # noqa: S108 - the target's
    return [
        f"{cache}/torch/comm_lib_trace_rank_{rank}",
        f"{cache}/torch/nccl_trace_rank_{rank}",
        f"/tmp/nccl_trace_rank_{rank}",  # noqa: S108 - read below the target's root
    ]


def _seen(root: int, path: str) -> _Seen | None:
    """What tells one version of a file from another, None where there is no such file."""
    try:
        found = foreign.find(root, path)
    except OSError:
        return None
    try:
        info = os.fstat(found)
    finally:
        os.close(found)
    return (info.st_ino, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None


def is_zero(value: str) -> bool:
    try:
        return int(value) <= 0
    except ValueError:
        return False


def _is_whole(source: int) -> bool:
    """A pickle of protocol 2 or newer begins with PROTO and ends with STOP (CPython, Lib/pickletools.py)."""
    size = os.fstat(source).st_size
    return size > 2 and os.pread(source, 1, 0) == b"\x80" and os.pread(source, 1, size - 1) == b"."
