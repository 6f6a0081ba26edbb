"""What each process of a stand-in engine holds: its place, its orders from the server, and its way to report.

An order is one byte in a pipe of the process's own. A process waits for it with a bare `os.read` in the function that a
real engine would wait in, so that function is the innermost frame of its stack. It holds the writing end too, and so
waits on when the server is dead, as real ranks do. Where a real rank is busy, the function polls the pipe meanwhile,
in one C expression, so that the stack is the same at any time.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from multiprocessing.context import get_spawning_popen
from typing import Any, NoReturn

from sidecar.demo.layout import Place
from sidecar.demo.options import Options

TITLE, QUIT, EXIT, LEADER_EXIT, PING = b"t", b"q", b"x", b"l", b"h"
IDLE, FORWARD, STEP, REDUCE, SPIN, BLOCK, COMPILE = b"i", b"f", b"s", b"r", b"p", b"b", b"c"
STEP_DONE = b""  # what a forward pass returns that nobody interrupted
_WORK = {
    IDLE: "idle", FORWARD: "forward", STEP: "step", REDUCE: "all_reduce", SPIN: "synchronize", BLOCK: "blocked",
    COMPILE: "compile",
}  # fmt: skip
_POLLS, _PAUSE = 1000, 15  # what a step takes: that many polls, some ms of CPU time, and that many ms of waiting
_NICE = 5  # those who burn CPU are a nuisance to others here

SEAT_VARIABLE = "STANDIN_SEAT"


class Descriptor:
    """A file descriptor that a spawned child gets under the same number."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[type[Descriptor], tuple[int]]:
        return Descriptor, (get_spawning_popen().duplicate_for_child(self.fd),)  # type: ignore[union-attr]


@dataclass
class Seat:
    """`orders` are the two ends of the pipe, `hold` the pipe whose hang-up is everybody's end (None: not asked for)."""

    place: Place
    options: Options
    orders: tuple[Descriptor, Descriptor]
    reports: Descriptor
    hold: Descriptor | None
    shm: str = ""
    work: str = "idle"
    _step: int = 0
    _nice: bool = False
    _held: list[Any] = field(default_factory=list)

    def to_data(self) -> tuple[dict[str, Any], list[int]]:
        """For a child that is executed, not spawned: what goes into its environment, and the descriptors to pass on."""
        fds = [self.orders[0].fd, self.orders[1].fd, self.reports.fd, *([self.hold.fd] if self.hold else [])]
        return {"place": asdict(self.place), "fds": fds, "shm": self.shm}, fds

    @classmethod
    def from_environment(cls) -> Seat:
        """Read what `to_data` gave. Raises `KeyError` where this process is no stand-in's."""
        data = json.loads(os.environ[SEAT_VARIABLE])
        read, write, reports, *rest = (Descriptor(fd) for fd in data["fds"])
        hold = rest[0] if rest else None
        place = Place(**{**data["place"], "titles": tuple(data["place"]["titles"])})
        return cls(place, Options.from_environment(), (read, write), reports, hold, data["shm"])

    def settle(self) -> None:
        """Do what an engine's process does before it computes: session, signals, memory, threads; then report."""
        options = self.options
        allow_ptrace()
        if self.hold:
            die_with(self.hold.fd)
        if options.own_sessions and os.getsid(0) != os.getpid():
            os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C needs no traceback of each rank
        signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_sigterm else signal.SIG_DFL)
        self.work = options.work
        if self.shm:
            from multiprocessing.shared_memory import SharedMemory

            self._held.append(SharedMemory(self.shm))
        if options.memory_mib and self.place.role in ("scheduler", "worker"):
            self._held.append(touched(options.memory_mib * 2**20))
        for name in ("watchdog_thread", "forward_thread", *(f"io_thread_{n}" for n in range(options.threads)))[
            : options.threads
        ]:
            threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()
        self.report("up")
        if options.title_when == "now":
            for _ in range(max(1, len(self.place.titles))):
                self.take_title()

    @property
    def waits(self) -> bool:
        """Whether this rank stands in a collective during its forward pass."""
        return self.work == "all_reduce" or (self.work == "forward" and self.place.label in self.options.waiting)

    def polls(self) -> Iterator[object]:
        """For `any(...)`: true when there is an order; burns CPU until then, or for the length of a step."""
        poll = select.poll()
        poll.register(self.orders[0].fd, select.POLLIN)
        if not self._nice:
            self._nice = True
            os.nice(_NICE)
        return map(poll.poll, chain(repeat(0, _POLLS), (_PAUSE,)) if self.work == "step" else repeat(0))

    def when_ordered(self, call: Callable[[bytes], object]) -> None:
        """Give the next order to `call` in a thread: the caller waits in a place that a pipe cannot wake."""
        fd = self.orders[0].fd
        threading.Thread(target=lambda: call(os.read(fd, 1)), name="input_thread", daemon=True).start()

    def report(self, what: str, **more: Any) -> None:
        """Tell the server; one write below PIPE_BUF is whole among others'."""
        place = self.place
        report = {
            "what": what, "pid": os.getpid(), "start": start_time("self"), "ppid": os.getppid(),
            "role": place.role, "label": place.label, **more,
        }  # fmt: skip
        os.write(self.reports.fd, (json.dumps(report) + "\n").encode())

    def take_title(self) -> None:
        """Take the next title, if there is one left."""
        titles = self.place.titles
        if self._step < len(titles):
            from setproctitle import setproctitle

            setproctitle(titles[self._step])
            self._step += 1
        self.report("titled", last=self._step >= len(titles))

    def obey(self, order: bytes) -> None:
        """Carry out the order that was read. Does not return from QUIT, EXIT and LEADER_EXIT."""
        if order == TITLE:
            self.take_title()
        elif order == STEP_DONE:
            self.work = "all_reduce"  # until the others have come as far
            self.report("stepped")
        elif order == PING:
            self.report("pong")
        elif order in _WORK:
            self.work = _WORK[order]
            if order not in (STEP, COMPILE):  # those report when they have come to something
                self.report("at")
        elif order == QUIT:
            os._exit(0)
        elif order == EXIT:
            os._exit(os.read(self.orders[0].fd, 1)[0])
        elif order == LEADER_EXIT:
            end_main_thread()


def touched(size: int) -> mmap.mmap:
    """Private memory of `size` bytes with every page written, in small pages: freeing it takes the kernel its time."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    chunk = b"\x01" * min(size, 2**20)
    for at in range(0, size, len(chunk)):
        memory[at : at + len(chunk)] = chunk
    return memory


def stat_fields(pid: int | str) -> list[bytes]:
    """/proc/PID/stat from field 3 (the state) on. No such process: `FileNotFoundError` or `ProcessLookupError`."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def start_time(pid: int | str) -> int:
    """Field 22 of /proc/PID/stat: clock ticks since boot. Raises as `stat_fields` does."""
    return int(stat_fields(pid)[19])


def allow_ptrace() -> None:
    """Let any process of the same user read our stacks where Yama else allows it to ancestors alone (ptrace_scope 1).

    That is the default of some distributions for users other than root (the kernel's Yama documentation).
    """
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as scope:
            if scope.read().strip() != "1":
                return
    except OSError:
        return  # no Yama
    import ctypes

    set_ptracer, any_process = 0x59616D61, ctypes.c_ulong(-1)  # prctl(2)
    ctypes.CDLL(None).prctl(set_ptracer, any_process, 0, 0, 0)


def die_with(pipe: int) -> None:
    """Have the kernel SIGKILL this process when the last writer of `pipe` closes it, even while it is stopped.

    With F_SETSIG the kernel sends a signal of our choice, not SIGIO (fcntl(2)). The owner belongs to the opening, so
    each process needs an opening of its own. No thread is spent, and no parent's death is taken for the end.
    """
    fd = opening(pipe)
    own(fd, os.getpid())


def opening(pipe: int) -> int:
    """An opening of its own of this end of `pipe`, for `own`. A child that inherits it keeps it alive."""
    return os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def own(fd: int, pid: int) -> None:
    """Have the kernel SIGKILL `pid`, ourselves or a child not yet waited for, when the last writer of `fd` is gone."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # closed before we were armed
        os.kill(pid, signal.SIGKILL)


def end_main_thread() -> NoReturn:
    """End this thread alone by the bare system call: the process becomes a zombie leader whose threads still run."""
    import ctypes
    import platform

    number = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    ctypes.CDLL(None).syscall(number, 0)
    raise RuntimeError("exit(2) returned")
