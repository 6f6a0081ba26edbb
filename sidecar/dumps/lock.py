"""The lock of an incident that is being written."""

from __future__ import annotations

import fcntl

from sidecar.dumps.opening import FILE, opened

LOCK = ".lock"  # held by the recorder that writes the incident; a sealed one has none


def is_held(folder: int) -> bool | None:
    """Whether a live process holds the lock of an open incident folder; None where this file system has no locks."""
    with opened(LOCK, FILE, folder) as fd:
        if fd is None:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        return False
