"""How much memory collectors may take, how many may run at once, and which one is ended before the container's end.

RLIMIT_DATA alone is not enough: it counts neither shared memory nor what a child's own children hold, and several
children together can have more than the container. So each child gets a share of what is left, and begins only where
its share is still free; and while children run, what they hold and what is left is looked at every few milliseconds.

    room        what the container has left of its limit, page cache not counted (`sidecar.system.memory`)
    reserve     what our own processes may still need of it while a capture runs
    share       what one child may take: its RLIMIT_DATA, and the most that the watch lets it hold
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.recorder.capture import ORDINARY, Entry
from sidecar.recorder.capture.base import MIB
from sidecar.system.memory import OwnMemory

LEAST = 24 * MIB  # of a child: plain stacks of a big process take less than 16 (seen), an interpreter 12
_UNLIMITED = 4096 * MIB  # of all children, where the container has no limit; half of what the machine has, if less
_RESERVE, _RESERVE_SHARE = 16 * MIB, 8  # at least so much, and an eighth of the limit
_DANGER, _DANGER_SHARE = 8 * MIB, 16  # with so little left, somebody has to go
_LOOK_EVERY = 0.02
_SOONEST = 0.002
_FASTEST = 4096 * MIB  # bytes a second: nobody eats faster, so this soon the room could be gone
_PAUSE = 0.01  # after an end, until the next one: memory comes back when a process is gone
_OUTPUT_SHARE = 32  # of what is free, for the output of one child: to make a text of it takes many times as much
_LEAST_OUTPUT = 256 * 1024
_KEPT_SHARE = 4  # of what is free, for all that waits for the volume


@dataclass(slots=True)
class Share:
    """What one running child has. `inherited`: what a fork has of ours. `held`: beside that, by the last look."""

    pid: int
    share: int
    inherited: int = 0
    held: int = 0


class Allowance:
    """For one incident. `slots`: how many children compute at once where memory is no matter."""

    def __init__(self, memory: OwnMemory, slots: int) -> None:
        self._memory = memory
        self._slots = slots
        available = memory.available()
        self._unlimited = _UNLIMITED if available is None else min(_UNLIMITED, available // 2)
        self._again_at = 0.0
        while memory.kernel_killed():
            pass  # what was before is no child's end

    def share_for(self, entry: Entry, running: Iterable[tuple[Share, bool]]) -> int:
        """The bytes that a child of this entry may take now; 0: not now. `running`: what each has, and whether it only
        waits for something: then it is taken to need no more than it holds.
        """
        total, free = self._free(running)
        if entry.memory > ORDINARY:  # a big one takes all there is, or most of it; the others divide it
            want = min(entry.memory, total)
            want = min(want, free) if 2 * free >= want else 0
        else:
            want = min(entry.memory, max(LEAST, total // self._slots))
        return want if LEAST <= want <= free else 0

    def output(self, cap: int) -> int:
        """How much of a child's output is kept, where `cap` would be the most."""
        return min(cap, max(_LEAST_OUTPUT, self._free(())[1] // _OUTPUT_SHARE))

    def kept(self, cap: int) -> int:
        """How much may wait for the volume, where `cap` would be the most."""
        return min(cap, max(_LEAST_OUTPUT, self._free(())[1] // _KEPT_SHARE))

    def look(self, running: Iterable[Share], now: float) -> tuple[Share, str] | None:
        """Who has to go, and why, in words; None where nobody has to."""
        shares = list(running)
        if not shares or now < self._again_at:
            return None
        room = self._memory.room()
        self._again_at = now + (_LOOK_EVERY if room is None else min(_LOOK_EVERY, max(_SOONEST, room.left / _FASTEST)))
        for share in shares:
            share.held = max(0, self._held(share.pid) - share.inherited)
        fattest = max(shares, key=lambda share: share.held)
        if room is not None and room.left < max(_DANGER, room.limit // _DANGER_SHARE):
            why = (
                f"ended for memory: {_mib(room.left)} MiB were left of the container's {_mib(room.limit)}, "
                f"and it held {_mib(fattest.held)}, the most of all"
            )
        else:
            fattest = max(shares, key=lambda share: share.held - share.share)
            if fattest.held <= fattest.share:
                return None
            why = f"ended for memory: it held {_mib(fattest.held)} MiB and may hold {_mib(fattest.share)}"
        self._again_at = now + _PAUSE
        return fattest, why

    def next_at(self) -> float:
        """When the next look is due, in monotonic seconds, if somebody runs."""
        return self._again_at

    def ran_out(self, share: Share) -> str:
        """The words for a child that ended since it got no more memory."""
        return f"it ran out of memory: it may hold {_mib(share.share)} MiB"

    def kernel_killed(self) -> str:
        """The words for a child that somebody has killed, if it was the kernel, for memory; else ""."""
        if not self._memory.kernel_killed():
            return ""
        room = self._memory.room()
        return "killed by the kernel for memory" + (f": the container may have {_mib(room.limit)} MiB" if room else "")

    def refusal(self) -> str:
        """Why nothing can be begun, in words."""
        room = self._memory.room()
        left = (
            f"{_mib(room.left)} MiB are left of the container's {_mib(room.limit)}" if room else "the machine has none"
        )
        return f"not started for want of memory: {left}"

    def _free(self, running: Iterable[tuple[Share, bool]]) -> tuple[int, int]:
        """(what all children may have together, what of that is given to none)."""
        shares = list(running)
        given = sum(min(share.held, share.share) if waits else share.share for share, waits in shares)
        room = self._memory.room()
        if room is None:
            return self._unlimited, self._unlimited - given
        ours = max(_RESERVE, room.limit // _RESERVE_SHARE)
        total = max(0, room.left - ours) + sum(share.held for share, _ in shares)
        return total, total - given

    def _held(self, pid: int) -> int:
        """What a child and its own children hold."""
        held, family = 0, [pid]
        for member in family:
            held += self._memory.held_by(member)
            if len(family) < 32:
                family += self._memory.children_of(member)
        return held


def _mib(size: int) -> int:
    return max(0, size) >> 20
