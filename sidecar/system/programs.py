"""Programs of others that we run: where they are."""

from __future__ import annotations

import os


def find_pyspy(python: str, path: str) -> str:
    """py-spy beside our Python (as pip puts it), else on the PATH; "" if there is none.

    Its pages are asked for, so that the first stack does not wait for the disk.
    """
    beside = os.path.dirname(python)
    for folder in (beside, *path.split(os.pathsep)):
        program = os.path.join(folder, "py-spy")
        if folder and os.path.isfile(program) and os.access(program, os.X_OK):
            fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)
            return program
    return ""
