"""Removing from a dump folder: by descriptors, so that no link put there meanwhile is followed, and away by one rename
first, so that half of an incident never looks like a whole one."""

from __future__ import annotations

import os
import stat

from sidecar.dumps.names import REMOVING, above_and_id
from sidecar.dumps.opening import FOLDER, down, lstat, opened, top

_DEEPEST = 32  # folders held open at a time; what lies deeper is brought up first


def remove(folder: str, path: str) -> None:
    """Remove one incident, `path` being an `Entry`'s. A symbolic link goes itself; what it points at stays.

    Raises `OSError` where something could not be removed, and `ValueError` where `path` names no incident.
    """
    above, name = above_and_id(path)
    with top(folder) as root, down(root, above) as parent:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            away = REMOVING + name
            if lstat(parent, away) is not None:  # a removal that was cut short
                remove_tree(parent, away)
            os.rename(name, away, src_dir_fd=parent, dst_dir_fd=parent)
            remove_tree(parent, away)
        else:
            os.unlink(name, dir_fd=parent)


def remove_tree(parent: int, name: str) -> None:
    """Remove a folder with all that is in it, however deep. Raises `OSError` where something does not go."""
    fd = os.open(name, FOLDER, dir_fd=parent)
    try:
        while names := os.listdir(fd):
            _clear(fd, names, fd, 1)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _clear(fd: int, names: list[str], uppermost: int, depth: int) -> None:
    for name in names:
        info = lstat(fd, name)
        if info is None:
            continue
        if not stat.S_ISDIR(info.st_mode):
            _unlink(fd, name)
        elif depth >= _DEEPEST:
            os.rename(name, REMOVING + os.urandom(8).hex(), src_dir_fd=fd, dst_dir_fd=uppermost)
        else:
            with opened(name, FOLDER, fd) as below:
                if below is not None:
                    _clear(below, os.listdir(below), uppermost, depth + 1)
            os.rmdir(name, dir_fd=fd)


def _unlink(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
