"""Signals, each sent only after the identity of the target was checked.

Without pidfds a pid can be used again between the check and the signal; the window is microseconds and the kernel
gives out pids in sequence, so it takes a whole round of the pid space to hit it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum

from sidecar.errors import EnvironmentDenied, ProcessGone
from sidecar.model import Identity, Member
from sidecar.system import pidfd
from sidecar.system.proc import Proc


class Sent(StrEnum):
    SENT = "sent"
    GONE = "gone"
    DENIED = "denied"


def to_process(proc: Proc, identity: Identity, sig: int, fd: int = -1, use_pidfd: bool = True) -> Sent:
    """Signal one process. `fd` is a pidfd of it, if the caller holds one."""
    if identity.pid <= 1 or identity.pid == os.getpid():
        return Sent.DENIED
    try:
        if fd >= 0:
            return Sent.SENT if pidfd.send(fd, sig) else Sent.GONE
        if use_pidfd:
            try:
                opened = pidfd.open_process(proc, identity)
            except ProcessGone:
                return Sent.GONE
            except EnvironmentDenied:
                pass  # no pidfds here, or no descriptor left: the checked pid has to do
            else:
                try:
                    return Sent.SENT if pidfd.send(opened, sig) else Sent.GONE
                finally:
                    os.close(opened)
        stat = proc.stat(identity.pid)
        if stat is None or stat.identity != identity:
            return Sent.GONE
        os.kill(identity.pid, sig)
    except ProcessLookupError:
        return Sent.GONE
    except PermissionError:
        return Sent.DENIED
    return Sent.SENT


def to_group(proc: Proc, pgid: int, members: Iterable[Member], sig: int) -> Sent:
    """Signal a process group, if a member that we know by identity is in it right now; a group with none is not ours.

    One call reaches every member at once, a fork in progress included, which no loop over pids can promise.
    """
    if pgid <= 1 or pgid == os.getpgrp():
        return Sent.DENIED
    for member in members:
        stat = proc.stat(member.identity.pid)
        if stat is not None and stat.identity == member.identity and stat.pgid == pgid:
            break
    else:
        return Sent.GONE
    try:
        os.killpg(pgid, sig)
    except ProcessLookupError:
        return Sent.GONE
    except PermissionError:
        return Sent.DENIED
    return Sent.SENT
