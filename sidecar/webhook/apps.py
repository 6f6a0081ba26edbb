"""The two ports: the admission server's, over TLS, and that of probes and scrapers, without. FastAPI's routes and
errors; a body is read here, since the framework's own reading has no limit.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from sidecar.webhook.admission import Answer
from sidecar.webhook.metrics import CONTENT_TYPE, Metrics
from sidecar.webhook.review import NoReview

# The API server takes objects of at most 3 MiB in a request and stores less than 1.5. A larger review is refused, which
# under failurePolicy Ignore lets the pod through as it is.
MOST_BODY = 3 * 2**20


class View(Protocol):
    """What the handlers ask for."""

    metrics: Metrics
    draining: bool

    def answer(self, body: bytes) -> Awaitable[Answer]: ...
    def readiness(self) -> tuple[bool, str]: ...


def admission_app(view: View) -> FastAPI:
    """POST /mutate, and GET of /healthz and /readyz."""
    app = _bare_app(view)

    async def mutate(request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            _count(view, "refused", "Disconnected")
            return _line(400, "the client left before the end of its body", close=True)  # nobody reads it
        if body is None:
            _count(view, "refused", "TooLarge")
            return _line(413, f"a review may have {MOST_BODY} bytes", close=True)
        began = time.perf_counter()
        try:
            answer = await view.answer(body)
        except NoReview as error:
            _count(view, "refused", "Malformed")
            return _line(400, str(error), close=view.draining)
        _count(view, answer.outcome, answer.reason)
        view.metrics.seconds.observe(time.perf_counter() - began)
        # In a drain the API server is to come back on a new connection, which leads to another replica.
        headers = {"connection": "close"} if view.draining else None
        return Response(answer.body, 200, headers, media_type="application/json")

    app.add_route("/mutate", mutate, methods=["POST"])  # past the framework's reading of parameters: there are none
    return app


def machine_app(view: View) -> FastAPI:
    """GET and HEAD of /metrics, /healthz and /readyz."""
    app = _bare_app(view)

    async def metrics() -> Response:
        return Response(view.metrics.render(), headers={"content-type": CONTENT_TYPE})

    app.add_api_route("/metrics", metrics, methods=["GET", "HEAD"], response_model=None)
    return app


def _bare_app(view: View) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    async def healthz() -> Response:
        return _line(200, "ok")

    async def readyz() -> Response:
        ready, text = view.readiness()
        return _line(200 if ready else 503, text)

    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    return app


async def _body(request: Request) -> bytes | None:
    """The whole body, None where it is too large: said by its header, or found out while it comes."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:12]) > MOST_BODY:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            return None
    return bytes(body)


def _line(status: int, text: str, close: bool = False) -> Response:
    headers = {"cache-control": "no-store"} | ({"connection": "close"} if close else {})
    return Response(text + "\n", status, headers, media_type="text/plain")


def _count(view: View, outcome: str, reason: str) -> None:
    view.metrics.requests.labels(outcome, reason).inc()
