"""What a process has used, from /proc: CPU to the nanosecond, wake-ups, and memory, shared pages counted fairly."""

from __future__ import annotations

import array
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGESIZE")
_PRESENT = 1 << 63
_PFN = (1 << 55) - 1


@dataclass(frozen=True, slots=True)
class Used:
    """Of all threads of a process together, in seconds and counts. `waited`: ready to run, but for want of a core."""

    cpu: float
    waited: float
    wakeups: int

    def __sub__(self, before: Used) -> Used:
        return Used(self.cpu - before.cpu, self.waited - before.waited, self.wakeups - before.wakeups)

    def __add__(self, other: Used) -> Used:
        return Used(self.cpu + other.cpu, self.waited + other.waited, self.wakeups + other.wakeups)


def used(pid: int) -> Used:
    """Sums over the threads. `wakeups` are the voluntary context switches. Raises `FileNotFoundError` once it is gone.

    From schedstat (Documentation/scheduler/sched-stats), since stat's ticks of 10 ms are too coarse for a process
    that uses 50 ms in half a minute; from stat only where the kernel was built without it (then `waited` is 0).
    """
    cpu = waited = 0.0
    wakeups = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            ran, queued, _ = (task / "schedstat").read_text().split()
            cpu += int(ran) / 1e9
            waited += int(queued) / 1e9
        except FileNotFoundError:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for line in (task / "status").read_text().split("\n"):
            if line.startswith("voluntary_ctxt_switches:"):
                wakeups += int(line.split()[1])
    return Used(cpu, waited, wakeups)


def pss_mib(pid: int) -> float:
    """Proportional set size: private pages, and of each shared page its share among all who map it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def pss_alone_mib(pids: Iterable[int]) -> dict[int, float] | None:
    """The PSS that these processes would have if nobody else on the machine ran the same interpreter and libraries.

    A benchmark's own Python processes share those files and make the kernel's figure look better than a pod's would
    be. This counts each page's sharers among `pids` only, by frame numbers from pagemap, which only root is shown:
    None otherwise.
    """
    frames = {pid: _frames(pid) for pid in pids}
    if not any(frames.values()):
        return None
    sharers = Counter(frame for own in frames.values() for frame in own)
    return {pid: sum(_PAGE / sharers[frame] for frame in own) / 2**20 for pid, own in frames.items()}


def _frames(pid: int) -> set[int]:
    """The physical pages that a process maps; huge pages are frame numbers in a row."""
    found: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().split("\n"):
            if not line or line.endswith(("[vsyscall]", "[vvar]", "[vdso]", "[vvar_vclock]")):
                continue
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            left, at = (end - start) // _PAGE, start // _PAGE * 8
            while left:
                data = os.pread(pagemap.fileno(), min(left, 4096) * 8, at)
                if not data:
                    break
                entries = array.array("Q", data)
                found.update(entry & _PFN for entry in entries if entry & _PRESENT and entry & _PFN)
                left -= len(entries)
                at += len(data)
    return found
