"""The incidents in the people's API: list, incident, file, bundle; and the volume's state. All that is sent is somebody
else's text: JSON in ASCII, files and bundles as attachments that no browser shows."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from sidecar.dumps.catalog import Page
from sidecar.dumps.files import Files
from sidecar.dumps.folder import Entry
from sidecar.dumps.names import ID, NAME, bundle_name
from sidecar.dumps.query import query_from
from sidecar.errors import SettingError
from sidecar.web.library import Library
from sidecar.web.pool import Unavailable
from sidecar.web.ranges import wanted

INCIDENTS = "/api/v1/incidents"
VOLUME = "/api/v1/volume"
ONE = INCIDENTS + "/{incident:incident}"
_READ = ["GET", "HEAD"]
# Beyond the gate's own: whatever a browser makes of a file after all, it has no rights and no origin.
_SANDBOX = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"

Json = Callable[..., Response]
T = TypeVar("T")
_BYTES = "application/octet-stream"


class _IncidentPath(Convertor[str]):
    """`<id>`, or `<namespace>/<pod>/<id>` on a whole volume. No namespace looks like an id."""

    regex = f"(?:{NAME}/{NAME}/)?{ID}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _FilePath(_IncidentPath):
    """Whatever names a file, line ends too."""

    regex = r"[\s\S]*"


def add_incidents(app: FastAPI, library: Library, json: Json) -> None:
    """Add the five addresses to `app`; `json` makes its answers."""
    register_url_convertor("incident", _IncidentPath())
    register_url_convertor("file", _FilePath())

    async def incidents(request: Request) -> Response:
        given = request.query_params
        twice = [key for key in given if len(given.getlist(key)) > 1]
        try:
            if twice:
                raise SettingError(twice[0], given[twice[0]][:80], "it was given twice")
            query = query_from(given)
        except SettingError as error:
            raise HTTPException(400, str(error)) from error
        return json(_page(await told(library.page(query))))

    async def incident(incident: str) -> Response:
        entry, files = await told(library.incident(incident), f"there is no incident {incident}")
        return json(_incident(entry, files))

    async def artifact(incident: str, path: str, request: Request) -> Response:
        reading = await told(library.open(incident, path), "there is no such file in this incident")
        tag = f'"{reading.tag}"'
        headers = _attachment(path.rsplit("/", 1)[-1]) | {"accept-ranges": "bytes", "etag": tag}
        asked = request.headers.get("range")
        if request.headers.get("if-range") not in (None, tag):
            asked = None  # it was another file then
        part = wanted(asked, reading.size)
        if part is None or request.method == "HEAD":
            reading.close()
        if part is None:
            raise HTTPException(416, "the file has no such bytes", {"content-range": f"bytes */{reading.size}"})
        headers["content-length"] = str(len(part))
        status = 200 if part == range(reading.size) else 206
        if status == 206:
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{reading.size}"
        if request.method == "HEAD":
            return Response(None, status, headers, media_type=_BYTES)
        return StreamingResponse(library.pieces(reading, part), status, headers, media_type=_BYTES)

    async def whole(incident: str, request: Request) -> Response:
        headers = _attachment(bundle_name(incident))
        pieces = library.bundle(incident)
        first = await told(anext(pieces), f"there is no incident {incident}")
        if request.method == "HEAD":
            await pieces.aclose()
            return Response(None, 200, headers, media_type="application/gzip")
        return StreamingResponse(_after(first, pieces), 200, headers, media_type="application/gzip")

    async def volume() -> Response:
        return Response(await told(library.volume()), media_type="application/json")

    for path, endpoint in ((INCIDENTS, incidents), (ONE, incident), (ONE + "/artifacts/{path:file}", artifact),
                           (ONE + "/bundle", whole), (VOLUME, volume)):  # fmt: skip
        app.add_api_route(path, endpoint, methods=_READ, response_model=None)


async def told(call: Awaitable[T], missing: str = "") -> T:
    """The result of a look at the volume, or why there is none, as an answer; `missing` says that it is not there."""
    try:
        return await call
    except Unavailable as error:
        raise HTTPException(503, str(error)) from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise HTTPException(404, missing) from error
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link, which is not followed
            raise HTTPException(404, missing) from error
        raise HTTPException(503, f"the volume does not give it: {error.strerror or error}") from error


async def _after(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """`first` and the rest, which is closed when the client leaves."""
    async with aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


def _attachment(name: str) -> dict[str, str]:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[:200] or "file"
    full = quote(name.encode("utf-8", "replace"), safe="")[:600]
    return {
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{full}",
        "content-security-policy": _SANDBOX,
    }


def _page(page: Page) -> dict[str, Any]:
    return {
        "incidents": list(page.rows),
        "total": page.total,
        "next": page.following or None,
        "complete": page.whole,
        "closed": list(page.closed),
    }


def _incident(entry: Entry, files: Files) -> dict[str, Any]:
    """The record as it stands, and what the folder says. Keys of the folder win over equal ones in the record."""
    return entry.record | {
        "id": entry.id,
        "path": entry.path,
        "bytes": entry.bytes,
        "pinned": entry.pinned,
        "unreadable": entry.unreadable or None,
        "files": [{"path": file.path, "bytes": file.bytes} for file in files.named],
        "files_left_out": files.left_out,
    }
