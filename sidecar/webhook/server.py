"""The server of admission requests: TLS with a certificate that may change, and a door that nobody can block.

The API server keeps its connections for 90 s and takes one that we close in that moment for a failed call, so that a
pod would silently go without its sidecar: we keep ours for longer than that. A handshake has a few seconds; where too
many are under way the oldest is given up.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

from sidecar.log import Log
from sidecar.web.server import App, PatientProtocol, QuietServer

HANDSHAKE_SECONDS = 5.0
MOST_HANDSHAKES = 256
CLOSING_SECONDS = 1.0  # for the other side to say goodbye


class AdmissionProtocol(PatientProtocol):
    most = 512
    keep_alive = 180

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))


class _Joined(asyncio.Transport):
    """A transport whose writes go out together when the loop comes round to it: an answer's head and body are written
    apart, and each would be a TLS record and a system call of its own, a quarter of an answer's time (seen).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not data:
            return
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(bytes(data))

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            if not self._transport.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._parts.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class SecureServer(QuietServer):
    """`context` may choose its certificate anew for each handshake. `patience`: seconds for what is under way at the
    end.
    """

    def __init__(self, app: App, context: ssl.SSLContext, log: Log, patience: float = 10.0) -> None:
        super().__init__(app, AdmissionProtocol)
        self._context = context
        self._log = log
        self._patience = patience
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order in which they came

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(sock)) for sock in sockets or []]
        self.started = True

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        told = False
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError as error:  # out of descriptors; or the client has gone already
                if not told:
                    self._log("a connection could not be accepted", because=error.strerror)
                told = True
                await asyncio.sleep(0.05)
                continue
            handshake = loop.create_task(self._let_in(connection))
            self._handshakes[handshake] = None
            handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))
            if len(self._handshakes) > MOST_HANDSHAKES:
                next(iter(self._handshakes)).cancel()

    async def _let_in(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=CLOSING_SECONDS,
            )  # fmt: skip
        except OSError:  # ssl.SSLError too: no TLS, no common version, a client that does not trust us, or that left
            connection.close()

    def _protocol(self) -> AdmissionProtocol:
        return AdmissionProtocol(self.config, self.server_state, {})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; those without a request end now, the others after their answer or `patience`."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in sockets or []:
            sock.close()
        for handshake in list(self._handshakes):
            handshake.cancel()
        for connection in list(self.server_state.connections):
            if not connection.transport.is_closing():
                connection.shutdown()
        end = time.monotonic() + self._patience
        while self.server_state.connections and time.monotonic() < end:
            if not self.server_state.tasks:  # all is answered: only goodbyes are still to come
                end = min(end, time.monotonic() + CLOSING_SECONDS)
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            connection.cut() if isinstance(connection, PatientProtocol) else None
        for task in list(self.server_state.tasks):
            task.cancel()
