"""`rankguard view`: the page and its API over a dump folder, with no watching. One process, which owns nothing but its
event loop.

The volume may hang or be gone at any time: whoever asks is told so, and it is looked at again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import Response

from sidecar.log import Log
from sidecar.version import VERSION
from sidecar.view.metrics import VolumeMetrics
from sidecar.view.sums import VolumeSums
from sidecar.view.survey import Survey, survey
from sidecar.view.writes import add_writes
from sidecar.web.apps import About, People, bare_app, json_answer, people_base
from sidecar.web.gate import Gate
from sidecar.web.library import Library
from sidecar.web.news import News
from sidecar.web.openapi import add_openapi
from sidecar.web.pool import Pool
from sidecar.web.server import App, QuietServer
from sidecar.web.tickets import Tickets
from sidecar.web.token_file import TokenFile
from sidecar.web.worker import Worker

SILENT = 120.0  # seconds that one look may take before the volume counts as silent
_HELLO = """Rankguard, over a dump folder. GET / is the page, for a browser. This port has an API, in JSON:

GET    /api/v1/about                                what runs here, of which version
GET    /api/v1/incidents                            a page of incidents, newest first
GET    /api/v1/incidents/{id}                       one incident's record
GET    /api/v1/incidents/{id}/artifacts/{path}      one of its files
GET    /api/v1/incidents/{id}/bundle                all of them, as .tar.gz
GET    /api/v1/events                               what changes, as it does, as server-sent events
POST   /api/v1/tickets                              {"path": ...}: a ticket to download that file without the token
GET    /api/v1/volume                               what is used and free, by pod, and what retention drops next
GET    /api/v1/openapi.json                         all of this as an OpenAPI document
PUT    /api/v1/incidents/{id}/pin                   keep it, whatever the limits say (DELETE: no longer)
DELETE /api/v1/incidents/{id}                       remove it

On a volume of many pods {id} is {namespace}/{pod}/{id}. The list takes limit, before (the "next" of the last page),
since, until, namespace, pod, reason, cause, rank, engine, sealed, pinned, unreadable, and q for words in its text. PUT
and DELETE need --write.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """`write`: incidents may be removed and pinned. `scan_period` is in seconds."""

    dump_dir: str
    api_token_file: str | None
    write: bool
    scan_period: float
    log_format: str


class _ToLog(logging.Handler):
    """What uvicorn and asyncio report, as a line of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log(record.getMessage().strip(), error=None if error is None else f"{type(error).__name__}: {error}")


def run(options: ViewOptions, api: list[socket.socket], machines: list[socket.socket]) -> None:
    """Serve on these sockets until SIGTERM or SIGINT."""
    asyncio.run(_life(options, api, machines))


async def _life(options: ViewOptions, api: list[socket.socket], machines: list[socket.socket]) -> None:
    log = Log("view", options.log_format)
    logging.getLogger().addHandler(_ToLog(log))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    library = Library(options.dump_dir, Pool("volume"))
    metrics = VolumeMetrics()
    news, tickets = News(library), Tickets()
    about = About(kind="viewer", version=VERSION, write=options.write, dump_dir=options.dump_dir, pod=None)
    app = people_base(People(library=library, news=news, tickets=tickets, about=about, hello=_HELLO))
    add_writes(app, library, json_answer, log, options.write)
    add_openapi(app, "Rankguard, over a dump folder", asks=options.api_token_file is not None)
    token = TokenFile(options.api_token_file, log, tickets.renew) if options.api_token_file else None
    serving: list[tuple[App, list[socket.socket]]] = [(Gate(app, token, tickets), api)]
    if machines:
        serving.append((_machine_app(metrics), machines))
    servers = [(QuietServer(app), sockets) for app, sockets in serving]
    tasks = [asyncio.create_task(server.serve(sockets=sockets)) for server, sockets in servers]
    looking = asyncio.create_task(_look(library, options.scan_period, metrics, log))
    for sockets in (api, machines):
        for sock in sockets:
            log("listening", address=sock.getsockname()[0], port=sock.getsockname()[1], api=sockets is api)
    await ended.wait()
    looking.cancel()
    news.close()
    for server, _ in servers:
        server.stop()
    await asyncio.wait(tasks, timeout=3.0)


async def _look(library: Library, period: float, metrics: VolumeMetrics, log: Log) -> None:
    """Look at the volume again and again, one look at a time, however long it takes."""
    worker = Worker("survey")  # not one of the pool's: a long look must not keep a reader waiting
    sums = VolumeSums()
    trouble = ""
    while True:
        future = worker.submit(survey, library.catalog, library.folder, sums)
        done, _ = await asyncio.wait({future}, timeout=SILENT)
        why = ""
        found: Survey | None = None
        try:
            if not done:
                metrics.show(None)
                log("the volume does not answer", folder=library.folder, seconds=SILENT)
            found = await future
        except (OSError, ValueError) as error:
            why = str(error)
        metrics.show(found)
        if why and why != trouble:
            log("the volume cannot be read; looking again", folder=library.folder, error=why)
        elif trouble and not why:
            log("the volume can be read again", folder=library.folder)
        trouble = why
        await asyncio.sleep(period)


def _machine_app(metrics: VolumeMetrics) -> FastAPI:
    app = bare_app()

    async def scrape(request: Request) -> Response:
        content_type, body = metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "vary": "Accept"})

    async def healthz() -> Response:
        return Response("ok\n", headers={"cache-control": "no-store"}, media_type="text/plain")

    app.add_api_route("/metrics", scrape, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/healthz", healthz, methods=["GET", "HEAD"], response_model=None)
    return app
