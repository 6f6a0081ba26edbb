"""The server process of a stand-in engine: one loop over reports, orders, deaths and a stop.

Which children there are and how they are started differs by engine and is in `lookalike`; the rest is here.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sidecar.demo.children import Children
from sidecar.demo.engine import LISTEN_VARIABLE
from sidecar.demo.layout import RANK_ROLES, layout
from sidecar.demo.options import Options
from sidecar.demo.seat import (
    EXIT,
    FORWARD,
    IDLE,
    LEADER_EXIT,
    QUIT,
    TITLE,
    Descriptor,
    Seat,
    allow_ptrace,
    die_with,
    stat_fields,
)
from sidecar.demo.traffic import Traffic
from sidecar.system.subreaper import become_subreaper

if TYPE_CHECKING:
    from sidecar.demo.http_side import HttpSide

LOOKALIKE = Path(__file__).resolve().parent / "lookalike"


class Server:
    """`seats` are in the order of `layout`. Start the children with `children`, then call `run`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.children = Children(options.reap)
        self.hold: Descriptor | None = None
        allow_ptrace()
        if options.die_with_stdin:
            self.hold = Descriptor(os.dup(0))
            die_with(self.hold.fd)
        self._reports_in, reports_out = os.pipe()
        self._reports = Descriptor(reports_out)
        self._rest = b""
        self._watched: dict[int, int] = {}
        self._known: dict[int, dict[str, Any]] = {}
        self._titled: dict[int, bool] = {}
        self._spawned = self._ready = self._stopping = False
        self._react_at: float | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._http: HttpSide | None = None
        self._escaped: subprocess.Popen[bytes] | None = None
        self._segment: Any = None
        self._semaphore: Any = None
        shm = self._open_shm() if options.shm else ""
        common: tuple[Descriptor, Descriptor] | None = self._pipe() if options.light else None
        self.seats = [
            Seat(place, options, common or self._pipe(), self._reports, self.hold, shm) for place in layout(options)
        ]
        self.traffic = Traffic(options, self.seats, self._settled)
        self._expected = len(self.seats) + (options.escape != "no")
        self._select = selectors.DefaultSelector()
        self._catch_stop()
        if options.light:
            become_subreaper()
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        if options.helpers:
            self._start_helpers()
        if options.escape != "no":
            self._start_escaped()
        if LISTEN_VARIABLE in os.environ:
            self._prepare_http(int(os.environ.pop(LISTEN_VARIABLE)))

    # Starting.

    def _pipe(self) -> tuple[Descriptor, Descriptor]:
        read, write = os.pipe()
        return Descriptor(read), Descriptor(write)

    def _open_shm(self) -> str:
        import multiprocessing
        from multiprocessing.shared_memory import SharedMemory

        self._segment = SharedMemory(create=True, size=2**16)  # /dev/shm/psm_<random>
        self._semaphore = multiprocessing.get_context("spawn").Lock()  # /dev/shm/sem.mp-<random>
        return str(self._segment.name)

    def _start_helpers(self) -> None:
        # Shells with the names of what engines call while they start: each reads its stdin until we close it.
        for argv in (["lscpu"], ["file", "-b"], ["sh"]):
            self._helpers.append(subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE))

    def _start_escaped(self) -> None:
        argv = [sys.executable, str(LOOKALIKE / "compile_worker.py"), self.options.escape, str(self._reports.fd)]
        fds = [self._reports.fd]
        if self.hold:
            argv.append(str(self.hold.fd))
            fds.append(self.hold.fd)
        process = subprocess.Popen(argv, start_new_session=True, pass_fds=fds)
        if self.options.escape == "daemon":
            process.wait()  # the first of the two forks
        else:
            self._escaped = process
            self.children.adopt(process.pid)

    def _prepare_http(self, fd: int) -> None:
        from sidecar.demo.http_side import HttpSide

        os.set_inheritable(fd, False)  # or the port would stay open in the children when we are gone
        self._http = HttpSide(socket.socket(fileno=fd), self.options, self.traffic)

    def _catch_stop(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.options.exit_clean_on_term:
            return
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
        self._select.register(read, selectors.EVENT_READ, self._stop)

    # The loop.

    def run(self) -> NoReturn:
        """Serve until killed or stopped. Never returns."""
        if self.options.control:
            # Both ways, so that a writer that leaves is not the end of it.
            control = os.open(self.options.control, os.O_RDWR | os.O_CLOEXEC)
            self._select.register(control, selectors.EVENT_READ, self._command)
        self._select.register(self._reports_in, selectors.EVENT_READ, self._report)
        for pid in self.children.pidfds:
            self._watch(pid)
        while True:
            due = [at for at in (self._react_at, self.traffic.next) if at is not None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            for key, _ in self._select.select(timeout):
                key.data(key.fd)
            if self.traffic.next is not None and time.monotonic() >= self.traffic.next:
                self.traffic.step()
            if self._react_at is not None and time.monotonic() >= self._react_at:
                self._react()

    def _watch(self, pid: int) -> None:
        """Have `_died` called at the death of a process of the engine, a child or not."""
        try:
            if pid not in self.children.pidfds and int(stat_fields(pid)[1]) == os.getpid():
                self.children.adopt(pid)  # whoever forked it has left it to us
            pidfd = self.children.pidfds[pid] if pid in self.children.pidfds else os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        self._watched[pid] = pidfd
        self._select.register(pidfd, selectors.EVENT_READ, lambda _: self._died(pid))

    def _report(self, fd: int) -> None:
        *lines, self._rest = (self._rest + os.read(fd, 2**16)).split(b"\n")
        for line in lines:
            report = json.loads(line)
            what, last = report.pop("what"), report.pop("last", False)
            if what == "up":
                self._known[report["pid"]] = report
                if report["pid"] not in self._watched:
                    self._watch(report["pid"])
            elif what != "titled":
                self.traffic.reported(report["label"], what)
            else:
                self._titled[report["pid"]] = last
        self._progress()

    def _progress(self) -> None:
        if not self._spawned and len(self._known) >= self._expected:
            self._spawned = True
            self._announce("spawned")
        if not self._spawned or self._ready:
            return
        if self.options.title_when == "never":
            done = True
        elif len(self._titled) < len(self.seats):
            return
        else:
            done = all(self._titled.values())
            if not done and self.options.title_when == "fifo":
                self._announce("titled")
        if done:
            self._ready = True
            for helper in self._helpers:
                assert helper.stdin is not None
                helper.stdin.close()
                helper.wait()
            self._wait_for_sleep(5.0, self._known)
            if self._http:
                self._http.start()
            self._announce("ready")

    def _settled(self, work: str, resting: Sequence[Seat]) -> None:
        labels = {seat.place.label for seat in resting}
        self._wait_for_sleep(5.0, [pid for pid, process in self._known.items() if process["label"] in labels])
        self._announce("working", work=work)

    def _wait_for_sleep(self, limit: float, pids: Iterable[int]) -> None:
        """A process has reported just before it goes to wait: whoever hears of it is to find it where it waits."""
        deadline = time.monotonic() + limit
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):
                while stat_fields(pid)[0] in (b"R", b"D") and time.monotonic() < deadline:
                    time.sleep(0.0005)

    def _announce(self, event: str, **more: str) -> None:
        me = os.getpid()
        tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
        own = [(me, "server"), *((helper.pid, "helper") for helper in self._helpers if helper.returncode is None)]
        own += [(tracker, "resource_tracker")] if tracker else []
        processes: list[dict[str, Any]] = [{"pid": pid, "role": role, "label": role} for pid, role in own]
        for process in processes + list(self._known.values()):
            try:
                values = stat_fields(process["pid"])
            except (FileNotFoundError, ProcessLookupError):
                continue  # dead and collected: what it reported stays as it was
            process |= {"start": int(values[19]), "ppid": int(values[1])}
        order = [seat.place.label for seat in self.seats]  # the escaped one is in no seat: last
        known = sorted(self._known.values(), key=lambda p: (*order, p["label"]).index(p["label"]))
        processes = [process for process in processes if "start" in process] + known
        shm = [self._segment.name, "sem." + self._semaphore._semlock.name.lstrip("/")] if self._segment else []
        line = {
            "event": event, **more, "server": me, "port": self._http.port if self._http else None, "shm": shm,
            "processes": processes,
            "ranks": [process for process in processes if process["role"] in RANK_ROLES],
        }  # fmt: skip
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    # Orders.

    def _command(self, fd: int) -> None:
        for line in os.read(fd, 4096).decode().splitlines():
            name, *words = line.split()
            if name == "title":
                self._order(TITLE, words[:1])
            elif name == "work":
                self._work(words[0], words[1:])
            elif name == "declare-dead":
                self.traffic.dead = True
            elif name == "close-port" and self._http:
                self._http.close()
            elif name == "exit":
                self._order(EXIT + bytes([int(words[1])]), words[:1])
            elif name == "leader-exit":
                self._order(LEADER_EXIT, words[:1])

    def _work(self, work: str, words: list[str]) -> None:
        numbers = {name: int(value) for name, _, value in (word.partition("=") for word in words) if value}
        labels = [word for word in words if "=" not in word]
        if work in ("idle", "forward") and not (work == "idle" and not labels and not self.options.light):
            for seat in self.seats:
                if not labels or seat.place.label in labels:
                    self.traffic.order(seat, {"idle": IDLE, "forward": FORWARD}[work])
            self.traffic.began(work)
        else:
            endless = bool(numbers.get("endless"))
            self.traffic.start(work, "".join(labels), numbers.get("running"), numbers.get("waiting"), endless)

    def _order(self, order: bytes, labels: list[str]) -> None:
        if order == TITLE:
            self._titled = {pid: last for pid, last in self._titled.items() if last}
        for seat in self.seats:
            if not labels or seat.place.label in labels:
                os.write(seat.orders[1].fd, order)

    # Deaths.

    def _died(self, pid: int) -> None:
        pidfd = self._watched.pop(pid)
        self._select.unregister(pidfd)
        if pid not in self.children.pidfds:
            os.close(pidfd)  # somebody else's child
            return
        code = self.children.collect(pid)
        if code != 0 and not self._stopping and self.options.server_behaviour != "stay":
            self._react_at = self._react_at or time.monotonic() + self.options.reaction

    def _react(self) -> NoReturn:
        self.traffic.dead = True
        if self.options.server_behaviour == "sglang":
            for pidfd in self._watched.values():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        self.children.end(self.options.grace)
        self._leave()

    def _stop(self, fd: int) -> None:
        os.read(fd, 64)
        if self._stopping:
            return
        self._stopping = True
        for seat in self.seats:
            os.write(seat.orders[1].fd, QUIT)
        deadline = time.monotonic() + self.options.grace
        while self._watched and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._select.select(left):
                key.data(key.fd)
        self.children.end(self.options.grace)
        self._leave()

    def _leave(self) -> NoReturn:
        """Exit 0: not through the interpreter's end, which would wait for children of the engine's."""
        if self._segment:
            self._segment.close()
            self._segment.unlink()
        os._exit(0)
