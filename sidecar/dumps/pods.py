"""Folders of pods that are gone, `<namespace>/<pod>` on a volume: finding them, and removing them.

No API server is asked. A living sidecar writes its counters file when it starts and once an hour, so a folder in which
nothing was written for much longer has no living sidecar. Only a folder in which all is Rankguard's own goes: a volume
may hold other things. What is pinned or locked stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.dumps.counters import counted_in, fold, is_counters
from sidecar.dumps.lock import is_held
from sidecar.dumps.names import RECORD, REMOVING, is_name, wall_of
from sidecar.dumps.opening import FOLDER, down, lstat, opened
from sidecar.dumps.removal import remove_tree
from sidecar.policy.retention import PINNED

LEAST_GONE = 3 * 3600.0  # seconds; less could be a living pod's
# `engine` is the folder that the engine's container has of it, for coredumps.
_OURS = (".reserve", "engine")
# How often --after-kill did anything, and the counters: each with what is beside it for a moment, or was set aside. And
# what a check of the volume leaves that is killed, since the volume hangs.
_OURS_BEGIN = (".counters-", ".after-kill.", ".rankguard-", REMOVING)


@dataclass(frozen=True, slots=True)
class Gone:
    """A folder in which nobody writes any more. `path` is `<namespace>/<pod>`, `written` its newest time of change,
    seconds since the epoch. `kept` says why it must stay, "" where it may go."""

    path: str
    written: float
    incidents: int
    kept: str = ""


def gone_pods(root: int, before: float) -> Iterator[Gone]:
    """The pods' folders on the volume opened as `root` in which nothing was written since `before`. One that looks like
    no pod's is not among them."""
    for namespace in sorted(filter(is_name, os.listdir(root))):
        with opened(namespace, FOLDER, root) as fd:
            for name in [] if fd is None else sorted(os.listdir(fd)):
                if fd is not None and (is_name(name) or name.startswith(REMOVING)):
                    found = _looked_at(fd, name, f"{namespace}/{name}", before)
                    if found is not None:
                        yield found


def remove_pod(root: int, gone: Gone, before: float) -> bool:
    """Remove one of them, and its namespace's folder if that is then empty. Its counts go into the totals first.

    False where somebody has written to it meanwhile. Raises `OSError`, or `ValueError` where the totals are broken.
    """
    namespace, name = gone.path.split("/")
    with down(root, [namespace]) as parent:
        away = name if name.startswith(REMOVING) else REMOVING + name
        if away != name:
            if lstat(parent, away) is not None:  # an earlier removal was cut short: that one first, when its time comes
                return False
            os.rename(name, away, src_dir_fd=parent, dst_dir_fd=parent)
        again = _looked_at(parent, away, gone.path, before)
        if again is None or again.kept:
            os.rename(away, name, src_dir_fd=parent, dst_dir_fd=parent)
            return False
        try:
            with down(parent, [away]) as fd:
                fold(root, list(counted_in(fd, (namespace, away.removeprefix(REMOVING)), [])))
        except (OSError, ValueError):
            os.rename(away, name, src_dir_fd=parent, dst_dir_fd=parent)
            raise
        remove_tree(parent, away)
    try:
        os.rmdir(namespace, dir_fd=root)
    except OSError:
        pass  # other pods' folders are in it
    return True


def _looked_at(parent: int, name: str, path: str, before: float) -> Gone | None:
    with opened(name, FOLDER, parent) as fd:
        if fd is None:
            return None
        try:
            written, incidents, kept, known = _look(fd, before)
        except OSError:
            return None  # part of it cannot be read: then nobody can say that it is dead
        known = known or name.startswith(REMOVING)
        return Gone(path, written, incidents, kept) if known and written < before else None


def _look(fd: int, before: float) -> tuple[float, int, str, bool]:
    """(newest time of change, incidents, why it must stay, is it a pod's at all); stops early where something is
    new. The rename of a removal is no change of the folder itself.
    """
    written = os.fstat(fd).st_mtime
    incidents = pinned = held = 0
    foreign = ""
    known = False
    for inner in os.listdir(fd):
        info = os.stat(inner, dir_fd=fd, follow_symlinks=False)
        written = max(written, info.st_mtime)
        if written >= before:
            break
        is_incident = wall_of(inner) is not None
        known = known or is_incident or is_counters(inner) or inner == ".reserve"
        if not (is_incident or inner in _OURS or inner.startswith(_OURS_BEGIN)):
            foreign = foreign or inner
        if not stat.S_ISDIR(info.st_mode):
            continue
        with down(fd, [inner]) as below:
            written = max([written, *_times(below)])
            if is_incident:
                incidents += 1
                pinned += lstat(below, PINNED) is not None
                held += is_held(below) is True
    why = ""
    if pinned:
        why = f"{pinned} of its incidents {'is' if pinned == 1 else 'are'} pinned"
    elif held:
        why = "an incident in it is being written"
    elif foreign:
        why = f"it holds {foreign}, which is not Rankguard's"
    return written, incidents, why, known


def _times(fd: int) -> Iterator[float]:
    for name in os.listdir(fd):
        info = lstat(fd, name)
        if info is not None and (stat.S_ISDIR(info.st_mode) or name == RECORD or not name.startswith(".")):
            yield info.st_mtime
