"""What this kernel (or the sandbox around us) can do, found out by doing it. Each feature can be masked, so that CI
runs every older kernel's way too.

`pidfd`         pidfd_open(2), Linux 5.3. Refused by old kernels, some seccomp filters and gVisor: then /proc is polled.
`thread_pidfd`  PIDFD_THREAD, 6.9: a thread's end is seen while the process's memory is still being torn down.
`pidfd_hup`     EPOLLHUP when the process was reaped, 6.9.
`pidfd_info`    PIDFD_GET_INFO with the exit status of a reaped process that is not ours, 6.15.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from dataclasses import dataclass

from sidecar.errors import OutOfDescriptors, RankguardError
from sidecar.system import pidfd


@dataclass(frozen=True, slots=True)
class Features:
    pidfd: bool
    thread_pidfd: bool
    pidfd_hup: bool
    pidfd_info: bool


def probe(masked: tuple[str, ...] = ()) -> Features:
    """Try each feature on a child of our own. Forks once: call it before anything else runs in the process.

    Raises `OutOfDescriptors`, which says nothing about the kernel.
    """
    if "pidfd" in masked or not _has_pidfd():
        return Features(False, False, False, False)
    hup, info = _after_reaping()
    return Features(
        pidfd=True,
        thread_pidfd="thread_pidfd" not in masked and _has_thread_pidfd(),
        pidfd_hup="pidfd_hup" not in masked and hup,
        pidfd_info="pidfd_info" not in masked and info,
    )


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise OutOfDescriptors("no descriptor left to try pidfd_open with") from error
        return False
    return True


def _has_thread_pidfd() -> bool:
    try:
        os.close(pidfd.open_thread(threading.get_native_id()))  # the main thread is one as well; no other need be made
    except RankguardError:
        return False
    return True


def _after_reaping() -> tuple[bool, bool]:
    """(pidfd_hup, pidfd_info), each tried on a child. Where none can be made, by what came in the same version of
    Linux, or later: a status that is asked for in vain is unknown, and never wrong.
    """
    try:
        child = os.fork()
    except OSError:  # the container has as many processes as it may
        same_version = _has_thread_pidfd()
        return same_version, same_version
    if child == 0:
        os._exit(7)
    fd = -1
    try:
        fd = os.pidfd_open(child)
        os.waitpid(child, 0)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        hup = any(event & select.POLLHUP for _, event in poll.poll(0))
        return hup, pidfd.reaped_status(fd).code == 7
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise OutOfDescriptors("no descriptor left to try a pidfd with") from error
        raise
    finally:
        if fd >= 0:
            os.close(fd)
