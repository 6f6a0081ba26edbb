"""Tickets: who has the token gets one for a single file or bundle, and a browser may then download it by its address.

A browser sends no bearer token with a plain download. A ticket is good for one path, for reading it, and for
`SECONDS`, and ends with the token that it was got with. Nothing is kept of it: it is its own end and a MAC by a key of
this process.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sidecar.dumps.names import ID, NAME
from sidecar.web.incidents import INCIDENTS, Json

SECONDS = 600
PATH = "/api/v1/tickets"
_MOST_BODY = 64 << 10  # bytes; the path of a file 16 folders deep, every byte of it quoted, is below it
_FILE = re.compile(rf"{INCIDENTS}/(?:{NAME}/{NAME}/)?{ID}/(?:bundle|artifacts/[\s\S]+)", re.ASCII)
_WANTED = 'the body is {"path": "..."}, and the path that of an artifact or a bundle: /api/v1/incidents/...'


class Tickets:
    """`clock` is in seconds, and only goes forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._key = os.urandom(32)

    def renew(self) -> None:
        """All tickets there are become worthless."""
        self._key = os.urandom(32)

    def make(self, path: str) -> str:
        """One for `path`, as it is once its quoting was undone. Raises `ValueError` where that is no file's."""
        if _FILE.fullmatch(path) is None:
            raise ValueError("neither an artifact nor a bundle")
        end = str(int(self._clock() - self._began) + SECONDS)
        return f"{end}.{self._mac(end, path)}"

    def good(self, ticket: str, path: str) -> bool:
        end, _, mac = ticket.partition(".")
        same = hmac.compare_digest(mac.encode("utf-8", "replace"), self._mac(end, path).encode())
        return same and self._clock() - self._began < int(end)  # a number, since the MAC says that it is ours

    def _mac(self, end: str, path: str) -> str:
        return hmac.digest(self._key, f"{end} {path}".encode("utf-8", "surrogatepass"), "sha256").hex()


def ticket_of(scope: Any) -> str:
    """The ticket in a request's query; "" where there is none, or more than one."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    found = [value for key, value in query if key == "ticket"]
    return found[0] if len(found) == 1 else ""


def add_tickets(app: FastAPI, tickets: Tickets, json_answer: Json) -> None:
    """Add the address to `app`; `json_answer` makes its answers. It works where no token is asked for, too."""

    async def ticket(request: Request) -> Response:
        try:
            made = tickets.make(unquote(_path(await _body(request))))
        except ValueError as error:
            raise HTTPException(400, _WANTED) from error
        return json_answer({"ticket": made, "seconds": SECONDS})

    app.add_api_route(PATH, ticket, methods=["POST"], response_model=None)


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BODY:
            raise HTTPException(413, f"the body has more than {_MOST_BODY} bytes")
    return body


def _path(body: bytes) -> str:
    try:
        given = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested without an end") from error
    if not isinstance(given, dict) or set(given) != {"path"} or not isinstance(given["path"], str):
        raise ValueError("something else than a path")
    return given["path"]
