"""pidfds: a process held by descriptor, which no other process can take over."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct

from sidecar.errors import OutOfDescriptors, ProcessGone, Unsupported
from sidecar.model import ExitStatus, Identity
from sidecar.system.proc import Proc, status_from_wait

_PIDFD_THREAD = os.O_EXCL  # include/uapi/linux/pidfd.h
_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), 64 bytes
_INFO = struct.Struct("QQ11Ii")
_INFO_EXIT = 1 << 3


def open_process(proc: Proc, wanted: Identity) -> int:
    """A pidfd of exactly this process: stat, open, stat again, the same start time and not a zombie.

    Raises `ProcessGone`, `OutOfDescriptors`, or `Unsupported` where the kernel or a filter refuses the call.
    """
    fd = _open(wanted.pid, 0)
    try:
        stat = proc.stat(wanted.pid)
    except OutOfDescriptors:
        os.close(fd)
        raise
    if stat is None or stat.identity != wanted or stat.zombie:
        os.close(fd)
        raise ProcessGone(f"process {wanted.pid} is gone")
    return fd


def open_thread(tid: int) -> int:
    """A pidfd that becomes readable when this one thread ends. Errors as in `open_process`."""
    return _open(tid, _PIDFD_THREAD)


def _open(pid: int, flags: int) -> int:
    try:
        return os.pidfd_open(pid, flags)
    except ProcessLookupError as error:
        raise ProcessGone(f"process {pid} is gone") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise OutOfDescriptors(f"no descriptor left for a pidfd of {pid}") from error
        raise Unsupported(f"pidfd_open({pid}, {flags:#x}): {error.strerror}") from error


def reaped_status(fd: int) -> ExitStatus:
    """The exit status of a reaped process, children of others included, by the PIDFD_GET_INFO ioctl.

    Needs no ptrace rights, but Linux 6.15. Unknown (never 0) while the process is unreaped or the ioctl is refused.
    """
    buffer = bytearray(_INFO.pack(0xF, *([0] * 12), 0))
    try:
        fcntl.ioctl(fd, _GET_INFO, buffer)
    except OSError as error:
        return ExitStatus(why_unknown=f"PIDFD_GET_INFO: {error.strerror}")
    mask, *_, exit_code = _INFO.unpack(buffer)
    if not mask & _INFO_EXIT:
        return ExitStatus(why_unknown="PIDFD_GET_INFO gives no exit status")
    return status_from_wait(exit_code)


def send(fd: int, sig: int) -> bool:
    """Signal the process behind `fd`. False if it is gone. Raises `PermissionError`."""
    try:
        signal.pidfd_send_signal(fd, sig)
    except ProcessLookupError:
        return False
    return True
