"""Process state: what the kernel says about a process, its threads and its descriptors.

The child writes section by section, what takes no lock first, since `cmdline` and `environ` wait for the target's
mmap lock, which a thread stuck in the kernel can hold for ever: ended at its limit, it leaves what it had by then.
An unreadable file is itself a finding and stands in the record as the name of its errno.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from sidecar.errors import ProtocolError
from sidecar.masking import mask_arguments, mask_text
from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import GONE, Attempt, Ended, Piece, Scene, Target, over_limit
from sidecar.recorder.capture.cgroup_numbers import cgroup_numbers
from sidecar.recorder.capture.environment import shown
from sidecar.system.proc import Stat, parse_stat

KIND = "process"
SECOND_KIND = "process2"
_LIMIT = 2.0
_MOST_THREADS = 4096
_MOST_DESCRIPTORS = 65536
_EXIT_GONE = 3
_EXIT_ENDED = 4


def collect(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The state of one process as JSON: `process/<label>.json`. A zombie and a process that is gone are skipped."""
    return _collect(KIND, target, scene, left)


def collect_again(target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The same some seconds later, to see what has moved meanwhile: `process2/<label>.json`."""
    return _collect(SECOND_KIND, target, scene, left)


def _collect(kind: str, target: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    stat = scene.proc.stat(target.identity.pid)
    if stat is None or stat.identity != target.identity or stat.zombie:
        return (Piece(kind, ArtifactStatus.SKIPPED, detail=GONE),)
    root = scene.proc.root
    return Attempt(
        work=lambda fd: _write(fd, root, target),
        judge=lambda ended: _judge(kind, target, ended),
        limit=min(_LIMIT, left),
    )


def _judge(kind: str, target: Target, ended: Ended) -> tuple[Piece, ...]:
    file = f"{kind}/{target.label}.json"
    if ended.failure:
        return (Piece(kind, ArtifactStatus.FAILED, detail=ended.failure),)
    if ended.exit_code == 0:
        return (Piece(kind, ArtifactStatus.CAPTURED, file, ended.out),)
    if ended.exit_code == _EXIT_GONE:
        return (Piece(kind, ArtifactStatus.SKIPPED, detail=GONE),)
    if ended.exit_code == _EXIT_ENDED:
        return (Piece(kind, ArtifactStatus.PARTIAL, file, ended.out, "the process ended while it was read"),)
    whole = ended.out[: ended.out.rfind(b",\n") + 2]
    why = (
        over_limit(ended) if ended.wait_status is None else f"the reader ended with wait status {ended.wait_status:#x}"
    )
    if not whole:
        status = ArtifactStatus.TIMED_OUT if ended.wait_status is None else ArtifactStatus.FAILED
        return (Piece(kind, status, detail=why),)
    read = whole.count(b",\n") - 1  # the first is the header
    reading = f" while reading {_SECTIONS[read][0]}" if read < len(_SECTIONS) else ""
    return (Piece(kind, ArtifactStatus.PARTIAL, file, whole + b'"complete": false}\n', why + reading),)


def _write(fd: int, root: str, target: Target) -> None:
    """Runs in the child. One section a line, so that whatever was written can be made into JSON."""
    code = _EXIT_GONE
    try:
        # A descriptor of /proc/PID belongs to the process, not to the number: all reads through it are of this one.
        folder = os.open(f"{root}/{target.identity.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stat = _stat(folder)
        if stat.identity == target.identity:
            header = {"pid": stat.pid, "start": stat.start, "role": target.role, "rank": target.rank}
            header["title"] = mask_text(target.title)
            _put(fd, json.dumps(header)[:-1] + ",\n")
            for name, read in _SECTIONS:
                _put(fd, f"{json.dumps(name)}: {json.dumps(_or_errno(read, folder))},\n")
            _put(fd, '"complete": true}\n')
            code = _EXIT_ENDED
            if not _stat(folder).zombie:
                code = 0
    except (OSError, ProtocolError):
        pass
    os._exit(code)


def _put(fd: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(fd, data) :]


def _or_errno(read: Callable[[int], Any], folder: int) -> Any:
    try:
        return read(folder)
    except OSError as error:
        return {"unreadable": errno.errorcode.get(error.errno or 0, str(error.errno))}


def _stat(folder: int) -> Stat:
    """Raises `OSError`, or `ProtocolError` where what is read is no stat line."""
    return parse_stat(_bytes(folder, "stat"))


def _stat_section(folder: int) -> dict[str, Any]:
    stat = _stat(folder)
    names = ("comm", "state", "ppid", "pgid", "sid", "flags", "threads", "cpu_ticks", "exiting", "permitted")
    return {name: getattr(stat, name) for name in names}


def _threads(folder: int) -> list[dict[str, Any]]:
    listed = []
    tids = sorted(int(name) for name in _names(folder, "task"))
    for tid in tids[:_MOST_THREADS]:
        try:
            stat = parse_stat(_bytes(folder, f"task/{tid}/stat"))
        except (OSError, ProtocolError):  # that thread has ended meanwhile
            continue
        wchan = _or_errno(lambda at, tid=tid: _text(at, f"task/{tid}/wchan"), folder)  # type: ignore[misc]
        listed.append({"tid": tid, "comm": stat.comm, "state": stat.state, "wchan": "" if wchan == "0" else wchan})
    return listed


def _descriptors(folder: int) -> dict[str, Any]:
    """How many of which kind. No paths, since a file's name can say what a user asked; a device's cannot."""
    names = _names(folder, "fd")
    kinds: dict[str, int] = {}
    for name in names[:_MOST_DESCRIPTORS]:
        try:
            kind = _kind(os.readlink(f"fd/{name}", dir_fd=folder))
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "unreadable")
        kinds[kind] = kinds.get(kind, 0) + 1
    return {"count": len(names), "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]))}


def _kind(link: str) -> str:
    if link.startswith(("/dev/shm/", "/memfd:")):  # noqa: S108 - read, never written
        return "shared memory"
    if link.startswith("/dev/"):
        return link
    if link.startswith("/"):
        return "file"
    kind, _, rest = link.partition(":")
    return rest.strip("[]") if kind == "anon_inode" else kind


def _limits(folder: int) -> dict[str, list[str]]:
    rows = (re.split(r"\s{2,}", line.strip()) for line in _text(folder, "limits").splitlines()[1:])
    return {row[0]: row[1:] for row in rows}


def _arguments(folder: int) -> list[str]:
    data = _bytes(folder, "cmdline", 65536).rstrip(b"\0")
    return mask_arguments([part.decode("utf-8", "backslashreplace") for part in data.split(b"\0")]) if data else []


def _pairs(name: str) -> Callable[[int], dict[str, str]]:
    def read(folder: int) -> dict[str, str]:
        rows = (line.partition(":") for line in _text(folder, name).splitlines())
        return {key: value.strip() for key, _, value in rows}

    return read


def _line(name: str) -> Callable[[int], str]:
    return lambda folder: _text(folder, name).strip()


def _names(folder: int, name: str) -> list[str]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _text(folder: int, name: str) -> str:
    return _bytes(folder, name).decode("utf-8", "backslashreplace")


def _bytes(folder: int, name: str, most: int = 1 << 20) -> bytes:
    return b"".join(_chunks(folder, name, most))


def _chunks(folder: int, name: str, most: int) -> Iterator[bytes]:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        while most > 0 and (chunk := os.read(fd, min(most, 65536))):
            most -= len(chunk)
            yield chunk
    finally:
        os.close(fd)


# In the order in which they are read: what may wait for the target's locks comes last.
_SECTIONS: tuple[tuple[str, Callable[[int], Any]], ...] = (
    ("stat", _stat_section),
    ("wchan", _line("wchan")),
    ("status", _pairs("status")),
    ("threads", _threads),
    ("fds", _descriptors),
    ("limits", _limits),
    ("cgroup", lambda folder: _text(folder, "cgroup").splitlines()),
    ("cgroup_numbers", lambda folder: cgroup_numbers(folder, _text(folder, "cgroup"))),
    ("oom_score", _line("oom_score")),
    ("oom_score_adj", _line("oom_score_adj")),
    ("exe", lambda folder: os.readlink("exe", dir_fd=folder)),
    ("io", _pairs("io")),
    ("cmdline", _arguments),
    ("environ", lambda folder: shown(_bytes(folder, "environ"))),
)
