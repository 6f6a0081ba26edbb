"""What this port's API is, for programs: `GET /api/v1/openapi.json`.

FastAPI could generate one, but from handlers with typed parameters: ours read what they are given by hand, so that an
unknown parameter gets one line and nothing of it is in memory before somebody asks.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

PATH = "/api/v1/openapi.json"


def add_openapi(app: FastAPI, title: str, asks: bool) -> None:
    """Add the address to `app`. `asks`: the bearer of the token alone is let in."""

    async def openapi() -> Response:
        from sidecar.web.openapi.document import document  # few ask

        return JSONResponse(document(app, title, asks))

    app.add_api_route(PATH, openapi, methods=["GET", "HEAD"], response_model=None)
