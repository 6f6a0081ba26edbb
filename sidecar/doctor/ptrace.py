"""Whether we may look into a process: one byte of it is read by process_vm_readv(2).

The kernel asks the same question for that as for attaching (PTRACE_MODE_ATTACH_REALCREDS), and the target is not
stopped. The permission comes before the address (mm/process_vm_access.c), so a wrong address proves as much.
"""

from __future__ import annotations

import ctypes
import errno
import os

from sidecar.checkup import Remedy, Status
from sidecar.doctor import credentials
from sidecar.doctor.remedies import SIDECAR
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import on_targets

_PEEKDATA = 2
_NOWHERE = 0x1000
_NO_CALL = "a seccomp filter refuses the call itself"
_UNFILTERED = Remedy(SIDECAR, "securityContext:\n  seccompProfile: {type: RuntimeDefault}")


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    if filtered := _filtered():
        return (Found("ptrace", Status.MISSING, filtered, (_UNFILTERED,)),)
    yama = credentials.yama(scene.proc.root)

    def attempt(target: Target) -> str | None:
        number = _read_one(target.pid, _address(scene, target))
        if number == errno.ESRCH:
            return None
        return "" if number in (0, errno.EFAULT) else f"{_name(number)}: {_why(scene, target, yama)}"

    return (on_targets(scene, step, "ptrace", "read a byte of", attempt, ("SYS_PTRACE",)),)


def _filtered() -> str:
    """Why the calls are no use at all, "" where they are: tried on ourselves, which is always permitted."""
    byte = ctypes.create_string_buffer(b"x")
    own = _read_one(os.getpid(), ctypes.addressof(byte))
    if own:
        return f"process_vm_readv of ourselves gives {_name(own)}: {_NO_CALL}"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace(_PEEKDATA, os.getpid(), None, None)  # nobody traces itself: ESRCH where the call gets that far
    number = ctypes.get_errno()
    return "" if number == errno.ESRCH else f"ptrace of ourselves gives {_name(number)}: {_NO_CALL}"


def _read_one(pid: int, address: int) -> int:
    """The errno of reading one byte, 0 where it was read."""
    into = ctypes.create_string_buffer(1)
    here, there = _Vector(ctypes.addressof(into), 1), _Vector(address, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.process_vm_readv
    call.restype = ctypes.c_ssize_t
    call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip
    if call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) >= 0:
        return 0
    return ctypes.get_errno()


def _address(scene: Scene, target: Target) -> int:
    """Where its program begins, field 26 of its stat, which is 1 for those who may not know."""
    try:
        with open(f"{scene.proc.root}/{target.pid}/stat", "rb") as file:
            code = int(file.read(4096).rpartition(b")")[2].split()[23])
    except (OSError, ValueError, IndexError):
        return _NOWHERE
    return code if code > 1 else _NOWHERE


def _why(scene: Scene, target: Target, yama: int) -> str:
    """What it looks like, in the order in which the kernel asks (kernel/ptrace.c, __ptrace_may_access)."""
    own, whose = scene.own, target.credentials
    if own.has("SYS_PTRACE"):
        where = "kernel.yama.ptrace_scope 3, or " if yama == 3 else ""
        return f"although SYS_PTRACE is there: {where}a user namespace of its own, AppArmor or SELinux"
    if not own.like(whose):
        return f"it is of uid {whose.uid} and gid {whose.gid}, we of {own.uid} and {own.gid}, without SYS_PTRACE"
    lacking = whose.permitted & ~own.permitted
    if lacking:
        return f"it has {credentials.shown(lacking)}, which we lack, and we have no SYS_PTRACE"
    try:
        # Not of the folder itself, whose owner is always the process's user (fs/proc/base.c, task_dump_owner).
        if os.stat(f"{scene.proc.root}/{target.pid}/environ").st_uid != whose.uid:
            return "it is not dumpable (it changed its user after its start), and we have no SYS_PTRACE"
    except OSError:
        pass
    if yama:
        return f"kernel.yama.ptrace_scope is {yama}, which takes SYS_PTRACE"
    return "not for its user or capabilities: AppArmor, SELinux or a user namespace"


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
