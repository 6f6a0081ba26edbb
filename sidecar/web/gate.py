"""Who may speak with the people's port: the bearer of the token, or with no token a page of this very host.

Everything comes through here. The page's own files hold no data and need no token; the page itself comes without one
too, but with status 401, and asks the person for it. A download, with which no browser sends a token, may bring a
ticket (`tickets`).
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from sidecar.web.origins import READING, Refusal, is_shell, stranger
from sidecar.web.page_files import FILES, STATUS
from sidecar.web.server import App, Scope
from sidecar.web.tickets import Tickets, ticket_of
from sidecar.web.token_file import TokenFile

_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_ASK = (b"www-authenticate", b'Bearer realm="rankguard"')


class Gate:
    """ASGI middleware around the people's app. `token` None: no token is asked for, and only local hosts are let in."""

    def __init__(self, app: App, token: TokenFile | None, tickets: Tickets) -> None:
        self._app = app
        self._token = token
        self._tickets = tickets

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = (*_HEADERS, _ASK) if message["status"] == 401 else _HEADERS
                message["headers"] = [*message["headers"], *(h for h in more if h[0] not in there)]
            await send(message)

        refusal = stranger(scope, self._token is None)
        if refusal is None and not (scope["path"].startswith(FILES) and scope["method"] in READING):
            refusal = await self._unknown(scope)
            if refusal is not None and is_shell(scope):
                scope.setdefault("state", {})[STATUS] = refusal[0]
                refusal = None
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, text = refusal
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send_with_headers({"type": "http.response.body", "body": body})

    async def _unknown(self, scope: Scope) -> Refusal | None:
        """Status and reason where the request shows neither the token nor a ticket for what it asks for."""
        if self._token is None:
            return None
        token = await self._token.current()
        if not token:
            return 503, "the token's file cannot be read, so nobody gets in"
        scheme, _, given = next((v for name, v in scope["headers"] if name == b"authorization"), b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token):
            return None
        ticket = ticket_of(scope) if scope["method"] in READING else ""
        if ticket and self._tickets.good(ticket, scope["path"]):
            return None
        return 401, "the ticket is not for this, or too old; get another one" if ticket else "a bearer token is needed"
