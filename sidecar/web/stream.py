"""`GET /api/v1/events`: the news as server-sent events, until one of the two ends has enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from sidecar.web.news import News

PATH = "/api/v1/events"
_HEADERS = {"x-accel-buffering": "no"}  # a proxy of nginx's kind hands each piece on as it comes


def add_events(app: FastAPI, news: News) -> None:
    async def events() -> Response:
        return _Stream(news)

    app.add_api_route(PATH, events, methods=["GET"], response_model=None)


class _Stream(Response):
    """Our own, not `StreamingResponse`: however it ends, the listener leaves at once and not with the next garbage."""

    media_type = "text/event-stream"

    def __init__(self, news: News) -> None:
        super().__init__(None, headers=_HEADERS)
        del self.headers["content-length"]
        self._news = news

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = self._news.join()
        if listener is None:
            raise HTTPException(503, "too many listen already; close a window that does, or ask for the list")
        watching = asyncio.create_task(_until_gone(receive, listener.end))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._news.first_look()
            while (text := await listener.next()) is not None:
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._news.leave(listener)
            watching.cancel()


async def _until_gone(receive: Receive, then: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    then()
