"""/livez while there is no web process: a sidecar that is down must not make the kubelet kill a healthy engine.

The supervisor holds the listening sockets that the web accepts from. While there is no web, or one that starts, it
accepts itself what has waited for a while: so nearly everything is the web's to answer, which takes connections faster.
Once it has taken one, the sockets are left to it until it ends. Both accepting at the same time does no harm.

Nothing here waits: sockets are non-blocking, every connection has a deadline, and a ninth one cuts the oldest. A web
whose heartbeat has stopped counts as none.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Mapping, Sequence

MOST_OPEN = 8  # connections; with one more the oldest is cut, so that slow clients keep nobody out
MOST_BYTES = 2048  # of a request
SECONDS = 2.0  # for a request to arrive
LOOKS = 8  # at a starting web's backlog; with a connection there each time, it is taken from it
LOOKS_ALONE = 3  # while there is no web process, which mostly lasts for a moment
LOOK_EVERY = 0.1  # seconds; the kubelet waits for 1 s, and a web that serves takes a connection in a few milliseconds
_PAUSE = 1.0  # seconds without accepting, where the kernel gives no descriptor


class _Connection:
    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock = sock
        self.until = until
        self.request = b""


class Livez:
    """`listening` are the machine port's sockets, the caller's to close. `failed` is what the guard said last.

    Each round of the caller's poll loop: `register`, poll until `next_at` at the latest, `work`.
    """

    def __init__(self, listening: Sequence[int]) -> None:
        self.failed = False
        self._listening = {sock.fileno(): sock for sock in (socket.socket(fileno=os.dup(fd)) for fd in listening)}
        self._open: dict[int, _Connection] = {}
        self._web_pid = 0
        self._left_to_web = False
        self._looks = 0  # that have found a connection waiting, in a row
        self._again_at: float | None = None  # when the sockets are looked at again; until then poll leaves them out
        for sock in self._listening.values():
            sock.setblocking(False)  # the web wants them so too: the flag is shared

    def register(self, poll: select.poll, web_pid: int) -> None:
        """Say what to wait for. `web_pid` is the web process's, 0 where there is none."""
        if web_pid != self._web_pid:
            self._web_pid, self._left_to_web, self._looks, self._again_at = web_pid, False, 0, None
        if not self._left_to_web and self._again_at is None:
            for fd in self._listening:
                poll.register(fd, select.POLLIN)
        for fd in self._open:
            poll.register(fd, select.POLLIN)

    def next_at(self) -> float | None:
        """When `work` is due though nothing is ready, in monotonic seconds."""
        times = [connection.until for connection in self._open.values()]
        if self._again_at is not None:
            times.append(self._again_at)
        return min(times, default=None)

    def work(self, ready: Mapping[int, int], now: float) -> None:
        """Accept, read and answer what is ready. Never waits and never raises."""
        for fd in [fd for fd in self._open if fd in ready]:
            self._read(fd)
        for fd in [fd for fd, connection in self._open.items() if connection.until <= now]:
            self._close(fd)
        if self._again_at is not None:
            if now >= self._again_at:
                self._again_at = None
                self._look(now)
        elif any(fd in ready for fd in self._listening):
            self._look(now)

    def _look(self, now: float) -> None:
        if self._looks and not self._somebody_waits():
            self._left_to_web = bool(self._web_pid)  # nobody but the web can have taken it
            self._looks = 0
            return
        if self._looks < (LOOKS if self._web_pid else LOOKS_ALONE):
            self._looks += 1
            self._again_at = now + LOOK_EVERY
            return
        self._looks = 0
        for sock in self._listening.values():
            self._accept(sock, now)

    def _somebody_waits(self) -> bool:
        poll = select.poll()
        for fd in self._listening:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _accept(self, listening: socket.socket, now: float) -> None:
        for _ in range(MOST_OPEN):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor left: the connection waits, and poll would not
                self._again_at = now + _PAUSE
                return
            sock.setblocking(False)
            if len(self._open) >= MOST_OPEN:
                self._close(next(iter(self._open)))
            self._open[sock.fileno()] = _Connection(sock, now + SECONDS)

    def _read(self, fd: int) -> None:
        connection = self._open[fd]
        try:
            data = connection.sock.recv(MOST_BYTES - len(connection.request))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.request += data
        whole = b"\r\n\r\n" in connection.request or len(connection.request) >= MOST_BYTES
        if whole:
            try:
                connection.sock.send(_answer(connection.request, self.failed), socket.MSG_NOSIGNAL)
                connection.sock.shutdown(socket.SHUT_WR)
            except OSError:  # it has gone, or does not read
                pass
        if whole or not data:
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._open.pop(fd).sock.close()


def _answer(request: bytes, failed: bool) -> bytes:
    """The whole response. `request` begins with a request line, or with anything else."""
    method, _, rest = request.partition(b"\r\n")[0].partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD") or path != b"/livez":
        status, text = b"503 Service Unavailable", b"the web process is being started\n"
    elif failed:
        status, text = b"503 Service Unavailable", b"the engine was found stuck or dead, and is still there\n"
    else:
        status, text = b"200 OK", b"ok\n"
    head = b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % (status, len(text))
    head += b"cache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    return head if method == b"HEAD" else head + text
