"""The two ports: `machine_app` for scrapers and probes, `people_app` for people. Handlers read memory only;
those of incidents read the volume, on threads (`library`)."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client.exposition import gzip_accepted
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from sidecar.web.incidents import add_incidents
from sidecar.web.library import Library
from sidecar.web.news import News
from sidecar.web.page_files import add_page
from sidecar.web.server import WAITED
from sidecar.web.stream import add_events
from sidecar.web.tickets import Tickets, add_tickets

_HELLO = """Rankguard, beside an engine. GET / is the page, for a browser. This port has an API, in JSON:

GET  /api/v1/about                                 what runs here, of which version
GET  /api/v1/status                                what is watched, and how it is
GET  /api/v1/ranks                                 the ranks
GET  /api/v1/incidents                             a page of incidents, newest first
GET  /api/v1/incidents/{id}                        one incident's record
GET  /api/v1/incidents/{id}/artifacts/{path}       one of its files
GET  /api/v1/incidents/{id}/bundle                 all of them, as .tar.gz
GET  /api/v1/events                                what changes, as it does, as server-sent events
POST /api/v1/tickets                               {"path": ...}: a ticket to download that file without the token
GET  /api/v1/volume                                what is used and free, and what retention drops next
GET  /api/v1/openapi.json                          all of this as an OpenAPI document
POST /api/v1/captures                              save the evidence of the engine as it is now
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What runs here. `kind` is `sidecar` or `viewer`, `write` whether incidents may be removed and pinned, `pod` the
    sidecar's own (`namespace`, `name`), None where there is none."""

    kind: str
    version: str
    write: bool
    dump_dir: str
    pod: dict[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """What the sidecar's port for people and the viewer's have in common. `hello` is what GET /api/v1 says."""

    library: Library
    news: News
    tickets: Tickets
    about: About
    hello: str = _HELLO


class View(Protocol):
    """What the handlers ask for. None of it blocks; `prestop` takes its time, and gives a status and a line."""

    def health(self) -> tuple[bool, str]: ...
    def readiness(self) -> tuple[bool, str]: ...
    def livez(self) -> tuple[bool, str]: ...
    def prestop(self, token: bytes, waited: float) -> Awaitable[tuple[int, str]]: ...
    def metrics(self, accept: str, compress: bool) -> tuple[str, bytes]: ...
    def status(self) -> dict[str, Any]: ...
    def ranks(self) -> list[dict[str, Any]]: ...
    def request_capture(self) -> bool: ...


def machine_app(view: View) -> FastAPI:
    """GET and HEAD of /metrics, /healthz, /readyz and /livez, GET of /hooks/prestop, in plain text; 405 for every other
    method.
    """
    app = bare_app()

    async def metrics(request: Request) -> Response:
        compress = gzip_accepted(request.headers.get("accept-encoding", ""))
        content_type, body = view.metrics(request.headers.get("accept", ""), compress)
        headers = {"content-type": content_type, "vary": "Accept, Accept-Encoding"}
        if compress:
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers)

    async def healthz() -> Response:
        return _line(*view.health())

    async def readyz() -> Response:
        return _line(*view.readiness())

    async def livez() -> Response:
        return _line(*view.livez())

    async def prestop(request: Request) -> Response:
        given = request.headers.getlist("x-rankguard-token")
        # Nothing here ends with the connection: a kubelet that gave up has not taken back what it will do.
        token = given[0].encode("latin-1") if len(given) == 1 else b""
        status, text = await view.prestop(token, request.scope.get("state", {}).get(WAITED, 0.0))
        return Response(text + "\n", status, {"cache-control": "no-store"}, media_type="text/plain")

    async def refused(_: Request, error: Exception) -> Response:
        status, text, headers = _told(error)
        return Response(text + "\n", status, headers, media_type="text/plain")

    for path, endpoint in (("/metrics", metrics), ("/healthz", healthz), ("/readyz", readyz), ("/livez", livez)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/hooks/prestop", prestop, methods=["GET"], response_model=None)  # a HEAD must not set it off
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, refused)
    return app


def people_app(view: View, people: People) -> FastAPI:
    """The page, and the API under /api/v1, in JSON, errors too: `{"error": "what was wrong"}`."""
    app = people_base(people)

    async def status() -> Response:
        return json_answer(view.status())

    async def ranks() -> Response:
        return json_answer({"ranks": view.ranks()})

    async def captures() -> Response:
        if not view.request_capture():
            return json_answer({"error": "the guard is not running"}, 503)
        return json_answer({"status": "accepted"}, 202)

    app.add_api_route("/api/v1/status", status, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/api/v1/ranks", ranks, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/api/v1/captures", captures, methods=["POST"], response_model=None)
    return app


def people_base(people: People) -> FastAPI:
    """The page, the incidents, the news, and errors in JSON."""
    app = bare_app()

    async def root() -> Response:
        return Response(people.hello, media_type="text/plain")

    async def about() -> Response:
        return json_answer(asdict(people.about))

    async def refused(request: Request, error: Exception) -> Response:
        code, text, headers = _told(error)
        if code == 405:
            headers["allow"] = ", ".join(sorted(_allowed(app, request)))
        return json_answer({"error": text}, code, headers)

    add_page(app)
    app.add_api_route("/api/v1", root, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/api/v1/about", about, methods=["GET", "HEAD"], response_model=None)
    add_incidents(app, people.library, json_answer)
    add_events(app, people.news)
    add_tickets(app, people.tickets, json_answer)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, refused)
    return app


def _allowed(app: FastAPI, request: Request) -> set[str]:
    """Every method of a path; one route that has the path knows only its own."""
    routes = (route for route in app.routes if isinstance(route, Route))
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in found for method in route.methods or ()}


def bare_app() -> FastAPI:
    return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)


def _line(good: bool, text: str) -> Response:
    return Response(text + "\n", 200 if good else 503, {"cache-control": "no-store"}, media_type="text/plain")


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII only: a title with lone surrogates would not encode.
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _told(error: Exception) -> tuple[int, str, dict[str, str]]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), dict(error.headers or {})
    return 500, "internal error", {}
