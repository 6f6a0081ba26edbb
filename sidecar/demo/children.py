"""Start children as engines do, notice their deaths as engines do, and end the rest as engines do."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence

from sidecar.demo.options import Options
from sidecar.demo.seat import Seat


class Children:
    """The direct children of one process of the engine, each with a pidfd.

    Whether the dead are collected is the engine's option: uncollected, they stay zombies.
    """

    def __init__(self, reap: bool) -> None:
        self._reap = reap
        self.pidfds: dict[int, int] = {}

    def spawn(self, target: Callable[..., None], *arguments: object) -> None:
        """Start a child as `multiprocessing` spawns it."""
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
        process.start()
        assert process.pid is not None
        self.adopt(process.pid)

    def fork_here(self, seats: Sequence[Seat], target: Callable[[Seat], None]) -> None:
        """Start children of this process cheaply."""
        for pid in fork_all(seats, target):
            self.adopt(pid)

    def fork(self, seats: Sequence[Seat], target: Callable[[Seat], None]) -> None:
        """Start children cheaply, by way of a spawned one that forks them and leaves them to us."""
        process = multiprocessing.get_context("spawn").Process(target=fork_and_leave, args=(seats, target))
        process.start()
        assert process.pid is not None
        os.waitpid(process.pid, 0)

    def adopt(self, pid: int) -> None:
        self.pidfds[pid] = os.pidfd_open(pid)

    def collect(self, pid: int) -> int:
        """After a death: returns the exit code (negative: a signal), and leaves a zombie unless told to reap."""
        os.close(self.pidfds.pop(pid))
        options = os.WEXITED | (0 if self._reap else os.WNOWAIT)
        info = os.waitid(os.P_PID, pid, options)
        assert info is not None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def end(self, grace: float) -> None:
        """SIGTERM to all that are left, `grace` seconds, SIGKILL."""
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.pidfds and (left := deadline - time.monotonic()) > 0:
            for pid in self.wait(left):
                self.collect(pid)
        self._signal_all(signal.SIGKILL)
        while self.pidfds:
            for pid in self.wait(None):
                self.collect(pid)

    def wait(self, seconds: float | None) -> Sequence[int]:
        """The children that are dead, after at most `seconds` (None: no limit)."""
        poll = select.poll()
        for pidfd in self.pidfds.values():
            poll.register(pidfd, select.POLLIN)
        dead = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
        return [pid for pid, pidfd in self.pidfds.items() if pidfd in dead]

    def _signal_all(self, signum: int) -> None:
        for pidfd in self.pidfds.values():
            signal.pidfd_send_signal(pidfd, signum)  # a zombie takes it without effect


def watch(children: Children, options: Options, name: str) -> None:
    """Do in a thread what the server's loop does for its children: the main thread has a stack to show.

    As vLLM's engine core does: a dead worker is the end of the others and of the process itself (status 1).
    """

    def run() -> None:
        while children.pidfds:
            codes = [children.collect(pid) for pid in children.wait(None)]
            if any(codes) and options.server_behaviour != "stay":
                time.sleep(options.reaction)
                children.end(options.grace)
                os._exit(1)

    threading.Thread(target=run, name=name, daemon=True).start()


def fork_all(seats: Sequence[Seat], target: Callable[[Seat], None]) -> list[int]:
    """Fork a child for each seat. Until it has its title it looks like a spawned child, since its parent is one."""
    import setproctitle  # noqa: F401  once here, not in each child

    pids = []
    for seat in seats:
        pid = os.fork()
        if pid == 0:
            try:
                target(seat)
            finally:
                os._exit(1)
        pids.append(pid)
    return pids


def fork_and_leave(seats: Sequence[Seat], target: Callable[[Seat], None]) -> None:
    """What a spawned child does that leaves its forked children to the server, a subreaper."""
    fork_all(seats, target)
    os._exit(0)
