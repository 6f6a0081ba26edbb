"""A container's termination log, opened through the root of one of its processes.

The kubelet mounts a file of its own there for each run of a container, and shows the end of it as why the container
ended. It is never made.
"""

from __future__ import annotations

import os

from sidecar.model import Identity
from sidecar.system.inside import open_inside
from sidecar.system.proc import Proc


def open_to_append(proc: Proc, identity: Identity, path: str) -> int:
    """A descriptor of the file at `path`, an absolute one, as this process sees it. Raises what `open_inside` does."""
    return open_inside(proc, identity, path, os.O_WRONLY | os.O_APPEND)


def same_file(fd: int, path: str) -> bool:
    """Whether a path of ours leads to the file of a descriptor."""
    try:
        ours = os.stat(path)
    except OSError:
        return False
    theirs = os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
