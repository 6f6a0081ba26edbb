"""Giving up what retention has chosen: collapsing a repeat to its record, removing an incident. Either can be cut short
at any moment: what is left of it then is no incident, or is finished by the next survey."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from sidecar.policy.retention import Step
from sidecar.recorder import files
from sidecar.recorder.record import collapsed, encode
from sidecar.recorder.survey import RECORD, REMOVING, is_held, record_of

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".incident.json.new"


def carry_out(root: int, steps: Iterable[Step], hurried: Callable[[], bool] = lambda: False) -> list[str]:
    """Do `steps` in the folder opened as `root`, until `hurried` says so. Gives the ids that were removed.

    One that refuses does not stop the others: the first error is raised at the end.
    """
    removed = []
    trouble: OSError | None = None
    for step in steps:
        if hurried():
            break
        try:
            if step.repeat_of:
                _collapse(root, step.id, step.repeat_of)
            elif _remove(root, step.id):
                removed.append(step.id)
        except (FileNotFoundError, FileExistsError, ValueError):
            pass  # another recorder is at it too, or it has no record that could be rewritten
        except OSError as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble
    return removed


def replace_record(folder: int, data: bytes, durable: bool) -> None:
    """Replace `incident.json` in an open incident folder, atomically."""
    files.unlink(folder, _TEMPORARY)
    files.create(folder, _TEMPORARY, data, durable)
    os.rename(_TEMPORARY, RECORD, src_dir_fd=folder, dst_dir_fd=folder)
    if durable:
        os.fsync(folder)


def _remove(root: int, name: str) -> bool:
    folder = os.open(name, files.FOLDER, dir_fd=root)
    try:
        if is_held(folder):  # taken up since the survey
            return False
    finally:
        os.close(folder)
    # Half an incident must never look like a whole one: away by one rename, then piece by piece.
    os.rename(name, REMOVING + name, src_dir_fd=root, dst_dir_fd=root)
    files.remove_tree(root, REMOVING + name)
    return True


def _collapse(root: int, name: str, first: str) -> None:
    """The record first: files that no record names are removed by the next survey. But on a full volume the files go
    first, or there is no room for the record."""
    folder = os.open(name, files.FOLDER, dir_fd=root)
    try:
        record = encode(collapsed(record_of(folder), first))
        try:
            replace_record(folder, record, durable=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            files.remove_folders(folder)
            replace_record(folder, record, durable=True)
        files.remove_folders(folder)
    finally:
        os.close(folder)
