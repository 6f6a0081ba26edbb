"""Pinning an incident: a marker in its folder, which retention and pruning respect."""

from __future__ import annotations

import os

from sidecar.dumps.names import above_and_id
from sidecar.dumps.opening import down
from sidecar.policy.retention import PINNED


def pin(root: int, path: str, wanted: bool) -> None:
    """Pin the incident at `path` of the open dump folder, or take the pin back. Raises `OSError` or `ValueError`."""
    above, name = above_and_id(path)
    with down(root, [*above, name]) as fd:
        try:
            if wanted:
                os.close(os.open(PINNED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=fd))
            else:
                os.unlink(PINNED, dir_fd=fd)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if wanted:
                raise
        os.fsync(fd)
