"""uvicorn without its clock, its signal handlers and its patience.

As shipped, uvicorn wakes ten times a second to look at a flag (0.24 % of a core, seen), takes over SIGTERM and SIGINT,
and lets a client that sends half a request hold its connection for ever. `QuietServer` waits for an event instead,
and `PatientProtocol` gives every connection a deadline for its next whole request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

Scope = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

REQUEST_SECONDS = 10.0  # for a whole request to arrive, from the connection or from the last answer
KEEP_ALIVE = 5  # s that an idle connection is kept; a scraper that comes every 15 s makes a new one
CONNECTIONS = 64  # of one port; with one more, the connection that has waited longest for a request is cut
HEADER_BYTES = 16 * 1024
BACKLOG = 128
WAITED = "waited"  # in a request's `state`: the seconds that it lay with the kernel before we read it
_LAST_DATA = 52  # where the kernel's `struct tcp_info` has the milliseconds since the last data came


class QuietServer(uvicorn.Server):
    """Serves `app` on sockets that are bound already, until `stop()`. Sleeps in the kernel while nobody asks.

    `protocol` holds the limits of one connection and of all of them.
    """

    def __init__(self, app: App, protocol: type[PatientProtocol] | None = None) -> None:
        protocol = protocol or PatientProtocol
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                workers=1,  # said outright, or uvicorn reads WEB_CONCURRENCY
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                limit_concurrency=2 * protocol.most,
                timeout_keep_alive=protocol.keep_alive,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=HEADER_BYTES,
            )
        )
        self._stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the default headers, which never change here
        await self._stop.wait()

    def stop(self) -> None:
        self.should_exit = True
        self._stop.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process has one owner of its signals, and it is not this


class PatientProtocol(H11Protocol):
    """One connection, cut if its next whole request, or room for our answer, does not come in `REQUEST_SECONDS`.

    Only the waits for the client are limited: a handler may take as long as it needs (a hook waits for evidence).
    """

    deadline: asyncio.TimerHandle | None = None
    most = CONNECTIONS
    keep_alive = KEEP_ALIVE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(REQUEST_SECONDS)
        if len(self.connections) > self.most:
            waiting = [c for c in self.connections if isinstance(c, PatientProtocol) and c.deadline is not None]
            oldest = min(waiting, key=_deadline_of, default=None)
            if oldest is not None:
                oldest.cut()

    def data_received(self, data: bytes) -> None:
        self.app_state = {WAITED: _waited(self.transport)}
        super().data_received(data)
        if self._our_turn():
            self._wait(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait(
            None if self._our_turn() else self.keep_alive + REQUEST_SECONDS
        )  # uvicorn's own, polite timer comes first

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(REQUEST_SECONDS)  # the client does not read; a timer that only closes would wait for it too

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait(None if self._our_turn() else self.keep_alive + REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def _our_turn(self) -> bool:
        """A whole request has arrived and waits for its answer, and the client takes what we write."""
        whole = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return whole and not self.flow.write_paused

    def cut(self) -> None:
        """End the connection now, whatever is still to be sent."""
        self._wait(None)
        self.connections.discard(self)  # not only when the loop comes round to it: others are being let in meanwhile
        self.transport.abort()

    def _wait(self, seconds: float | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if seconds is not None:
            self.deadline = self.loop.call_later(seconds, self.cut)


def _deadline_of(connection: PatientProtocol) -> float:
    return connection.deadline.when() if connection.deadline is not None else float("inf")


def _waited(transport: asyncio.BaseTransport) -> float:
    """0.0 where the kernel does not tell."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA + 4)
        return float(struct.unpack_from("=I", info, _LAST_DATA)[0]) / 1000
    except (AttributeError, OSError, struct.error):
        return 0.0
