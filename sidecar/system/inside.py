"""A file of a target's, opened through the root of one of its processes.

What leads to it is the target's, and hostile: an absolute link would lead from its root into ours, so the path is
walked part by part and nothing that is a link is passed. The file itself is first only named (O_PATH), and opened once
it is known for a regular file: opening a FIFO or a device can wait, or do something.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from sidecar.errors import EnvironmentDenied, ProcessGone
from sidecar.model import Identity
from sidecar.system.proc import Proc, translated

_NAMED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HARMLESS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_REMOTE = re.compile(r"nfs|cifs|smb|9p|fuse|ceph|lustre|gpfs|beegfs|afs|virtiofs")
_MOST_MOUNTS = 1 << 20  # bytes of a mountinfo: some thousand mounts, which is looked through in milliseconds
_OCTAL = re.compile(r"\\([0-7]{3})")


class Unusable(EnvironmentDenied):
    """What stands at the path is not to be opened; the text says why, in words that follow the path."""


def open_inside(proc: Proc, identity: Identity, path: str, flags: int) -> int:
    """A descriptor of the file at `path`, an absolute one, as this process sees it. `flags` say what it is for.

    Raises `Unusable`, `ProcessGone`, `OutOfDescriptors`, and what the system says: `FileNotFoundError` where there is
    none, `PermissionError` where its root or the file may not be opened.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise Unusable("leads out of the container")
    held = _root_of(proc, identity)
    try:
        if kind := remote_on_the_way(_mounts(proc, identity.pid), parts):
            raise Unusable(f"is on a file system ({kind}) that may not answer")
        for part in parts:
            inner = os.open(part, _NAMED, dir_fd=held)
            os.close(held)
            held = inner
            if stat.S_ISLNK(os.fstat(held).st_mode):
                raise Unusable(f"has a symbolic link in it ({part}): tell the path without links")
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise Unusable("is no regular file")
        opened = os.open(f"{proc.root}/self/fd/{held}", flags | _HARMLESS)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise translated(error, identity.pid) from error
        if not _is_there(proc, identity):
            raise ProcessGone(f"process {identity.pid} is gone") from error
        raise
    finally:
        os.close(held)
    if not _is_there(proc, identity):  # the number may be another's by now, and so the file
        os.close(opened)
        raise ProcessGone(f"process {identity.pid} is gone")
    return opened


def remote_on_the_way(mountinfo: str, parts: list[str]) -> str:
    """The type of a file system below the root on which looking for these parts could wait for ever, or ""."""
    wanted = ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kind = after.partition(" ")[0]
        if len(fields) < 5 or not _REMOTE.match(kind):
            continue
        if _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]) in wanted:
            return kind
    return ""


def _root_of(proc: Proc, identity: Identity) -> int:
    try:
        return os.open(f"{proc.root}/{identity.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # what is dying has no root any more, long before its pid is free
        raise translated(error, identity.pid) from error


def _mounts(proc: Proc, pid: int) -> str:
    try:
        with open(f"{proc.root}/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            text = mounts.read(_MOST_MOUNTS + 1)
    except OSError:
        return ""
    if len(text) > _MOST_MOUNTS:  # anybody may make a hundred thousand, in a user namespace
        raise Unusable("is among more mounts than can be looked through")
    return text


def _is_there(proc: Proc, identity: Identity) -> bool:
    found = proc.stat(identity.pid)
    return found is not None and found.identity == identity
