"""The only home of /proc. Its root is a parameter, so parsers also run on folders of recorded files.

What may block: `cmdline`, `environ` and `maps` take the target's mmap lock, which a thread stuck in D state can hold
for ever. `stat` takes no such lock. So a death is seen, and processes are found and signalled, by `stat` alone; the
others are read beside that, and not from a process in D state.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from sidecar.errors import OutOfDescriptors, ProcessGone, ProtocolError
from sidecar.model import ExitStatus, Identity

PF_EXITING = 0x4  # include/linux/sched.h
PF_KTHREAD = 0x200000
_SIGKILL_PENDING = 1 << 8
_CAP_SYS_PTRACE = 1 << 19


@dataclass(frozen=True, slots=True)
class Stat:
    """One reading of /proc/PID/stat (proc(5)). `start` in clock ticks since boot; `exit_code` is a wait status.

    `permitted` is False where the kernel hides what needs ptrace rights: then `exit_code` reads 0 and means nothing.
    """

    pid: int
    comm: str
    state: str
    ppid: int
    pgid: int
    sid: int
    flags: int
    threads: int
    start: int
    kill_pending: bool
    permitted: bool
    exit_code: int
    cpu_ticks: int

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start)

    @property
    def zombie(self) -> bool:
        """Dead as far as wait(2) goes, or about to be removed."""
        return self.state in ("Z", "X", "x")

    @property
    def exiting(self) -> bool:
        """It will not run user code again, whether or not wait(2) says so yet.

        A zombie leader whose threads still run is exiting too: its pidfd stays silent until the last thread is gone.
        SIGKILL in the leader's own queue is put there only when the whole group is being ended.
        """
        return bool(self.flags & PF_EXITING) or self.zombie or self.kill_pending

    @property
    def holds_resources(self) -> bool:
        """False for a true zombie, which has given everything back; True while threads of it still run."""
        return not self.zombie or self.threads > 1

    @property
    def kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)


def parse_stat(data: bytes) -> Stat:
    """Parse one stat line. The command name may hold anything, `)` and newlines included, so the last `)` ends it.

    Raises `ProtocolError` on what is no stat line.
    """
    opened = data.find(b"(")
    closed = data.rfind(b")")
    fields = data[closed + 1 :].split()
    if opened < 1 or closed < opened or len(fields) < 30:
        raise ProtocolError("not a stat line")
    try:
        return Stat(
            pid=int(data[:opened]),
            comm=data[opened + 1 : closed].decode("utf-8", "backslashreplace"),
            state=chr(fields[0][0]),
            ppid=int(fields[1]),
            pgid=int(fields[2]),
            sid=int(fields[3]),
            flags=int(fields[6]),
            threads=int(fields[17]),
            start=int(fields[19]),
            kill_pending=bool(int(fields[28]) & _SIGKILL_PENDING),
            # With no right to look, a live process shows a start_code of 1 and a zombie 0 whatever they are.
            permitted=int(fields[23]) != 1,
            exit_code=int(fields[49]) if len(fields) > 49 else 0,
            cpu_ticks=int(fields[11]) + int(fields[12]),
        )
    except ValueError as error:
        raise ProtocolError("not a stat line") from error


def status_from_wait(wait_status: int) -> ExitStatus:
    """An `ExitStatus` from a wait(2) status word."""
    if os.WIFSIGNALED(wait_status):
        return ExitStatus(signal=os.WTERMSIG(wait_status), core_dumped=os.WCOREDUMP(wait_status))
    if os.WIFEXITED(wait_status):
        return ExitStatus(code=os.WEXITSTATUS(wait_status))
    return ExitStatus(why_unknown=f"wait status {wait_status:#x} says neither exit nor signal")


def read_held_stat(fd: int) -> Stat | None:
    """Read a stat file that was opened while the process lived, or None once it is reaped.

    Such a descriptor belongs to the process, not to the number: it never shows another process under a used pid.
    """
    try:
        return parse_stat(os.pread(fd, 1024, 0))
    except (ProcessLookupError, ProtocolError):
        return None


class Proc:
    """One /proc. Holds /proc/loadavg open; close with `close`."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self._loadavg = -1
        try:
            self._loadavg = os.open(f"{root}/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # gVisor, a fixture tree: every look then lists /proc

    def close(self) -> None:
        if self._loadavg >= 0:
            os.close(self._loadavg)
            self._loadavg = -1

    def newest_pid(self) -> int | None:
        """The pid given out last in this PID namespace, or None where that is not to be known.

        A read through the held descriptor costs 3 microseconds: /proc need be listed only when this has moved.
        """
        if self._loadavg < 0:
            return None
        try:
            return int(os.pread(self._loadavg, 128, 0).rsplit(None, 1)[-1])
        except (OSError, ValueError, IndexError):
            return None

    def pids(self) -> list[int]:
        """Every process of the PID namespace, in no order."""
        return [int(name) for name in os.listdir(self.root) if name.isdecimal()]

    def stat(self, pid: int) -> Stat | None:
        """The process's stat, or None if there is none. Raises `OutOfDescriptors`."""
        data = self._read(f"{pid}/stat", 1024)
        if not data:
            return None
        try:
            return parse_stat(data)
        except ProtocolError:
            return None

    def open_stat(self, pid: int) -> int:
        """A descriptor for `read_held_stat`. Raises `ProcessGone` or `OutOfDescriptors`."""
        try:
            return os.open(f"{self.root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, pid) from error

    def cmdline(self, pid: int) -> bytes:
        """The command line as it stands in memory; b"" for a zombie, a kernel thread, or nobody."""
        return self._read(f"{pid}/cmdline", 65536)

    def may_look_at(self, pid: int) -> bool:
        """Whether we probably have ptrace rights to a process, where its `stat` cannot tell (a zombie's): by our
        capability, or by its owner being ours.
        """
        for line in self._read("self/status", 8192).splitlines():
            if line.startswith(b"CapEff:") and int(line.split()[1], 16) & _CAP_SYS_PTRACE:
                return True
        try:
            return os.stat(f"{self.root}/{pid}").st_uid == os.geteuid()
        except OSError:
            return False

    def comm(self, pid: int) -> str:
        """The command name as `Stat.comm` has it, "" for nobody. Cheaper than `stat`, and takes no lock that blocks."""
        return self._read(f"{pid}/comm", 64).removesuffix(b"\n").decode("utf-8", "backslashreplace")

    def environ(self, pid: int) -> bytes | None:
        """The environment at exec, or None where it may not be read."""
        try:
            return self._read_or_raise(f"{pid}/environ", 1 << 20)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise translated(error, pid) from error
            return None

    def cgroup(self, pid: int) -> str:
        return self._read(f"{pid}/cgroup", 65536).decode("utf-8", "backslashreplace")

    def threads(self, pid: int) -> list[int]:
        """Thread ids, the leader's first; [] if the process is gone."""
        try:
            tids = [int(name) for name in os.listdir(f"{self.root}/{pid}/task")]
        except OSError:
            return []
        return sorted(tids, key=lambda tid: (tid != pid, tid))

    def wchan(self, pid: int) -> str:
        """Where in the kernel the process waits, "" if it does not or may not be read."""
        name = self._read(f"{pid}/wchan", 256).decode("utf-8", "backslashreplace")
        return "" if name == "0" else name

    def maps(self, pid: int) -> bytes | None:
        """Memory maps, b"" for a process that has none, None where they may not be read."""
        try:
            return self._read_or_raise(f"{pid}/maps", 1 << 26, paged=True)
        except ProcessLookupError:
            return b""
        except FileNotFoundError:
            return b""
        except OSError:
            return None

    def link(self, path: str) -> str | None:
        """Where a link such as `PID/ns/mnt` points, or None where that may not be read."""
        try:
            return os.readlink(f"{self.root}/{path}")
        except OSError:
            return None

    def boot_id(self) -> str:
        """Start times are comparable within one boot only; this names it."""
        return self._read("sys/kernel/random/boot_id", 64).decode().strip()

    def _read(self, path: str, size: int) -> bytes:
        try:
            return self._read_or_raise(path, size)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise translated(error, 0) from error
            return b""

    def _read_or_raise(self, path: str, size: int, paged: bool = False) -> bytes:
        fd = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, min(size, 65536))
            # A file of many records (`maps`) is handed out by whole records, so a short read is not its end.
            if len(data) < 4096 and not paged:
                return data
            chunks = [data]
            total = len(data)
            while total < size and (data := os.read(fd, min(size - total, 65536))):
                chunks.append(data)
                total += len(data)
            return b"".join(chunks)
        finally:
            os.close(fd)


def translated(error: OSError, pid: int) -> Exception:
    """The error of ours that an OSError about a process means, or the same error where it means nothing special."""
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return ProcessGone(f"process {pid} is gone")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return OutOfDescriptors(f"no descriptor left for process {pid}: {error.strerror}")
    return error
