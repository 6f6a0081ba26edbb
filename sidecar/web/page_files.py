"""The page: one HTML file, and the scripts, styles and pictures that it loads, all from the folder `page` beside this
module. They hold no data. What may be asked for is what lies there, by its exact name, and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

FILES = "/page/"
STATUS = "page_status"  # in a request's `state`: what the page is to be answered with instead of 200, by the gate
_FOLDER = Path(__file__).parent / "page"
_PAGE = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles from here alone, and no text ever becomes markup: the browser refuses innerHTML and its like.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_READ = ["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class File:
    """`tag` is another one for other bytes."""

    content: bytes
    kind: str
    tag: str


def add_page(app: FastAPI) -> None:
    """Add `/` and the files to `app`. They are read when the first one is asked for: on the event loop, since they lie
    where the program itself does, and it reads its modules there too."""
    files: dict[str, File] = {}

    def file(name: str) -> File:
        if not files:
            files.update(_read(_FOLDER))
        found = files.get(name)
        if found is None:
            raise HTTPException(404, "there is no such file of the page" if files else "the page is not installed here")
        return found

    async def page(request: Request) -> Response:
        status = request.scope.get("state", {}).get(STATUS, 200)
        return _answer(request, file(_PAGE), {"content-security-policy": _POLICY}, status)

    async def part(name: str, request: Request) -> Response:
        return _answer(request, file("" if name == _PAGE else name), {})

    app.add_api_route("/", page, methods=_READ, response_model=None)
    app.add_api_route(FILES + "{name:path}", part, methods=_READ, response_model=None)


def _read(folder: Path) -> dict[str, File]:
    """Every file of a kind that the page is made of, by its path below `folder`."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix in _KINDS and path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = File(content, _KINDS[path.suffix], tag)
    return found


def _answer(request: Request, file: File, headers: dict[str, str], status: int = 200) -> Response:
    if status != 200:
        return Response(file.content, status, headers, media_type=file.kind)
    headers |= {"etag": file.tag, "cache-control": "no-cache"}  # another version has other files under the same names
    if _has(request.headers.get("if-none-match", ""), file.tag):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, media_type=file.kind)


def _has(header: str, tag: str) -> bool:
    return header.strip() == "*" or tag in (given.strip().removeprefix("W/") for given in header.split(","))
