"""Checks of settings against this machine, made by doing what will be done: making the folder, reading the token.

Each returns what is wrong, in words that end a line, or "" where all is well.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
import time

from sidecar.system.proc import Proc

_TOKEN_LIMIT = 4096  # bytes; longer ones do not fit into a request's headers


def root_pid(pid: int, proc: Proc) -> str:
    """Is `pid` a process that lives here? Threads have folders in /proc too, but stand in no listing of it."""
    found = proc.stat(pid) if pid in proc.pids() else None
    if found is None:
        return "there is no such process in this PID namespace"
    return "that process has ended" if found.zombie else ""


def token_file(path: str) -> str:
    """Is there a token in the file? Nothing of its text comes back."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "it is no regular file"
            token = file.read(_TOKEN_LIMIT + 1).strip()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not token:
        return "it is empty; it must hold the token"
    if len(token) > _TOKEN_LIMIT:
        return f"it holds more than {_TOKEN_LIMIT} bytes; it must hold the token alone"
    if not re.fullmatch(rb"[\x21-\x7e]+", token):
        return "it must hold one token of printable ASCII without spaces, which is what fits into a header"
    return ""


def dump_dir(path: str, seconds: float = 5.0) -> str:
    """Can the folder be made and written? Asked of a child, since a volume that hangs would hang who asks.

    Such a child cannot be killed while the volume hangs: it is sent SIGKILL, left behind, and ends when the call does.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "the check failed"
        try:
            os.close(reading)
            answer = _written(path)
        finally:
            os.write(writing, answer.encode("utf-8", "backslashreplace"))
            os._exit(0)
    os.close(writing)
    try:
        said = _read_until(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
    if said is None:
        os.kill(child, signal.SIGKILL)  # our own child, not yet waited for: the pid is its
        os.waitpid(child, os.WNOHANG)
        return f"the volume does not answer within {seconds:g} s"
    os.waitpid(child, 0)
    return said


def _written(path: str) -> str:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)  # evidence can hold user data: for its owner only
        probe = os.path.join(path, f".rankguard-{os.urandom(8).hex()}")
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"rankguard\n")
        finally:
            os.close(fd)
            os.unlink(probe)
    except (FileExistsError, NotADirectoryError):
        return "there is something in its place that is no folder"
    except OSError as error:
        return f"it cannot be made or written: {error.strerror}"
    return ""


def _read_until(fd: int, deadline: float) -> str | None:
    """All that is written to the pipe until it is closed, or None where the deadline comes first."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    chunks: list[bytes] = []
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(fd, 4096)
        if not chunk:
            return b"".join(chunks).decode()
        chunks.append(chunk)
    return None


def command(program: str) -> tuple[int, str]:
    """The exit status and the words with which a shell would refuse to start `program`; (0, "") where it can start."""
    if shutil.which(program):
        return 0, ""
    folders = [""] if os.path.dirname(program) else os.environ.get("PATH", os.defpath).split(os.pathsep)
    if program and any(os.path.exists(os.path.join(folder, program)) for folder in folders):
        return 126, "it is not executable"
    return 127, "no such program"
