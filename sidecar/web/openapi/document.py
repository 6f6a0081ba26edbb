"""The OpenAPI document of a port for people: of the routes that it really has. Made when asked for, and not kept."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from sidecar.version import VERSION
from sidecar.web.openapi.operations import BY_TICKET, FREE, OPERATIONS, SHELL, WRITES, Operation
from sidecar.web.openapi.schemas import SCHEMAS, ref

_TICKETS = "/api/v1/tickets"
_GATE = {
    "400": "A parameter is wrong, or a header was given twice.",
    "403": "The request comes from another site, or by another name than localhost.",
}


def document(app: FastAPI, title: str, asks: bool) -> dict[str, Any]:
    """`asks`: the bearer of the token alone is let in. Raises `KeyError` where a route is not described."""
    paths: dict[str, dict[str, Operation]] = {}
    known = {path for path, _ in _routes(app)}
    for path, method in _routes(app):
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, asks, _TICKETS in known)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": VERSION,
            "description": "Incidents of inference ranks. Errors are JSON with one line. Every text comes from a record"
            " or a folder that somebody else may have written.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if asks:
        schemes: dict[str, Any] = {"token": {"type": "http", "scheme": "bearer"}}
        if _TICKETS in known:
            schemes["ticket"] = {"type": "apiKey", "in": "query", "name": "ticket"}
        made["components"] = {"schemas": SCHEMAS, "securitySchemes": schemes}
    return made


def _routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        if isinstance(route, Route):
            for method in sorted(route.methods or ()):
                yield route.path_format, method


def _operation(path: str, method: str, asks: bool, tickets: bool) -> Operation:
    key = (path, "GET" if method == "HEAD" else method)
    made = deepcopy(OPERATIONS[key])
    answers = made["responses"]
    for status, why in _GATE.items():
        answers.setdefault(status, _error(why))
    if key in WRITES:
        answers["403"] = _error("The request comes from another site, or this viewer was started without --write.")
    if asks and key not in FREE:
        answers["401"] = _error("The token is needed.")
        if key == SHELL:
            # The page, which asks for the token itself.
            answers["401"]["content"] |= answers["200"]["content"]
        answers.setdefault("503", _error("The token's file cannot be read."))
        made["security"] = [{"token": []}, *([{"ticket": []}] if tickets and key in BY_TICKET else [])]
    if method == "HEAD":
        made["operationId"] += "Head"
        for answer in answers.values():
            answer.pop("content", None)
    return made


def _error(text: str) -> Operation:
    return {"description": text, "content": {"application/json": {"schema": ref("Error")}}}
