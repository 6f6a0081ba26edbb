"""Who may speak with the people's port: the bearer of the token, or with no token a page of this very host.

The port is on loopback and reached with `kubectl port-forward`, so any web page in the same browser can send requests
to it, and a page whose name is rebound to 127.0.0.1 could even read the answers. Hence the checks of Host and Origin.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sidecar.log import Log
from sidecar.web.server import App, Scope
from sidecar.web.worker import Worker

LOOK_AGAIN = 1.0  # seconds; a rotated token is taken over within that time
PATIENCE = 2.0  # seconds for the token's file to answer
MAX_TOKEN = 64 * 1024

_LOCAL = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class TokenFile:
    """The token in a file, read again when the file changes. No readable token means that nobody gets in."""

    def __init__(self, path: str, log: Log) -> None:
        self._path = path
        self._log = log
        self._worker = Worker("token")
        self._looked = -LOOK_AGAIN
        self._looking: asyncio.Future[None] | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._token = b""
        self._trouble = ""

    async def matches(self, given: bytes) -> bool | None:
        """Whether `given` is the token; None where there is no token to compare with. Takes at most `PATIENCE`."""
        if self._looking is None and time.monotonic() - self._looked >= LOOK_AGAIN:
            self._looked = time.monotonic()
            self._looking = asyncio.ensure_future(self._look())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=PATIENCE)
        if not self._token:
            return None
        return hmac.compare_digest(given, self._token)

    async def _look(self) -> None:
        try:
            read = await self._worker.submit(self._read, self._stamp)
            if read is not None:
                self._stamp, self._token = read
            self._trouble = ""
        except (OSError, ValueError) as error:
            # Gone or empty: the old token must not go on working, somebody may have taken it back.
            self._stamp, self._token = None, b""
            if str(error) != self._trouble:
                self._log("the token's file cannot be used; nobody gets in", path=self._path, error=error)
                self._trouble = str(error)
        finally:
            self._looking = None

    def _read(self, stamp: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], bytes] | None:
        status = os.stat(self._path)
        now = (status.st_mtime_ns, status.st_ino, status.st_size)
        if now == stamp:
            return None
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            token = (file.read(MAX_TOKEN) or b"").strip()
        if not token:
            raise ValueError("it is empty")
        return now, token


class Gate:
    """ASGI middleware around the people's app. `token` None: no token is asked for, and only local hosts are let in."""

    def __init__(self, app: App, token: TokenFile | None) -> None:
        self._app = app
        self._token = token

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in _HEADERS if h[0] not in there)]
            await send(message)

        refusal = await self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, text = refusal
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="rankguard"'))
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send_with_headers({"type": "http.response.body", "body": body})

    async def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None where the request may pass."""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin", b"authorization") and name in headers:
                return 400, f"{name.decode()} was given twice"
            headers[name] = value
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        if not host:
            return 400, "a Host header is needed"
        if self._token is None and _LOCAL.fullmatch(host) is None:
            return 403, "this port answers to localhost only; use kubectl port-forward, or set --api-token-file"
        origin = headers.get(b"origin")
        if origin is not None and not _same_host(origin.decode("latin-1").strip().lower(), host):
            return 403, "requests from other sites are refused"
        if self._token is None:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = await self._token.matches(given.strip())
        if known is None:
            return 503, "the token's file cannot be read, so nobody gets in"
        if scheme.lower() != b"bearer" or not known:
            return 401, "a bearer token is needed"
        return None


def _same_host(origin: str, host: str) -> bool:
    scheme, found, rest = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    if not found or port is None:
        return False  # also "null", which a sandboxed frame or a file sends
    return rest.removesuffix(port) == host.removesuffix(port)
