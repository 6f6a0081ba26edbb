"""A process with a termination log of its own: a file bound onto a path in its own mount namespace, as the kubelet
mounts it into a container. Needs root.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from sidecar_process import identity_of

from sidecar.model import Identity

_BIND = 'mount --bind "$0" "$1" && shift && exec "$@"'


class OwnLog:
    """`file` is what the kubelet would read, `path` is where a command after `prefix` has it.

    Elsewhere `path` is another file, which nobody has a reason to write to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "of-the-container"
        self.path = folder / "termination-log"
        self.file.touch()
        self.path.touch()
        self.prefix = ["unshare", "--mount", "sh", "-c", _BIND, str(self.file), str(self.path)]

    def text(self) -> str:
        """What the kubelet would show."""
        assert self.path.read_text() == "", "written to the wrong file"
        return self.file.read_text()


class Alone:
    """One process with such a log. Use as a context manager."""

    def __init__(self, prefix: list[str]) -> None:
        self.process = subprocess.Popen([*prefix, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"\n"  # it is the cat by now, with its mounts
        self.identity: Identity = identity_of(self.process.pid)

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def same(fd: int, path: Path) -> bool:
    """Whether a descriptor is of this file."""
    found, wanted = os.fstat(fd), path.stat()
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
