"""Who a process is, by what /proc/PID/status says of it (proc(5), capabilities(7)), which everybody may read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# include/uapi/linux/capability.h, by number, as Kubernetes writes them: without CAP_.
_LISTED = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT"
    " SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP"
    " MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_NAMES = _LISTED.split()
FULL = ("SYS_PTRACE", "KILL", "DAC_OVERRIDE")
# What root has where nothing is dropped: with every runtime (CRI-O has these alone), and with containerd and others.
USUAL = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE")
USUAL_MORE = ("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP")


@dataclass(frozen=True, slots=True)
class Credentials:
    """`uids` and `gids`: real, effective, saved, file system. The masks are those of the capability sets."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    permitted: int = 0
    effective: int = 0
    bounding: int = 0
    filtered: bool = False

    @property
    def uid(self) -> int:
        return self.uids[1]

    @property
    def gid(self) -> int:
        return self.gids[1]

    def has(self, *names: str) -> bool:
        return not mask_of(names) & ~self.effective

    def like(self, other: Credentials) -> bool:
        """Whether a process of ours passes for `other`'s owner with ptrace(2): all of its ids are ours."""
        return set(other.uids[:3]) == {self.uid} and set(other.gids[:3]) == {self.gid}


def parse(status: bytes) -> Credentials:
    """Raises `ValueError` where it is no status text."""
    rows = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    try:
        return Credentials(
            uids=tuple(int(word) for word in rows[b"Uid"].split()),
            gids=tuple(int(word) for word in rows[b"Gid"].split()),
            permitted=int(rows[b"CapPrm"], 16),
            effective=int(rows[b"CapEff"], 16),
            bounding=int(rows[b"CapBnd"], 16),
            filtered=rows.get(b"Seccomp", b"0").strip() == b"2",
        )
    except KeyError as error:
        raise ValueError("no status of a process") from error


def mask_of(names: Iterable[str]) -> int:
    return sum(1 << _NAMES.index(name) for name in names)


def names_of(mask: int) -> list[str]:
    """The capabilities of a mask. One that is newer than this list is its number."""
    return [_NAMES[bit] if bit < len(_NAMES) else str(bit) for bit in range(mask.bit_length()) if mask >> bit & 1]


def shown(mask: int) -> str:
    """The capabilities of a mask in a line: a privileged process has forty."""
    names = names_of(mask)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def read(folder: str) -> Credentials:
    """Those of the process whose folder in /proc this is. Raises `OSError` or `ValueError`."""
    with open(f"{folder}/status", "rb") as file:
        return parse(file.read(65536))


def yama(proc_root: str) -> int:
    """kernel.yama.ptrace_scope, 0 where the kernel has no Yama."""
    try:
        with open(f"{proc_root}/sys/kernel/yama/ptrace_scope", "rb") as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return 0
