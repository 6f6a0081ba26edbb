"""Orphans of our descendants come to us rather than to PID 1 (prctl(2), PR_SET_CHILD_SUBREAPER)."""

from __future__ import annotations

import os

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """From now on, collect what our descendants leave. Raises `OSError`."""
    import ctypes  # here, since it costs memory that only some pay for

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
