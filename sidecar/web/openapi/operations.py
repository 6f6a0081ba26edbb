"""What may be asked on the port for people, by path and method: parameters, and every answer there is."""

from __future__ import annotations

from typing import Any

from sidecar.dumps.query import MOST_ROWS
from sidecar.web.openapi.schemas import INCIDENT_ID, INCIDENT_PATH, Schema, ref

Operation = dict[str, Any]

_BYTES = "application/octet-stream"
_ONE = "/api/v1/incidents/{incident}"
_NONE = {"type": "string", "maxLength": 0}  # `reason=` is no filter


def _answer(text: str, schema: Schema | None = None, media: str = "application/json", **headers: Schema) -> Operation:
    made: Operation = {"description": text}
    if schema is not None:
        made["content"] = {media: {"schema": schema} if schema else {}}
    if headers:
        made["headers"] = {
            name.replace("_", "-"): {"schema": schema, "required": True} for name, schema in headers.items()
        }
    return made


def _refused(text: str) -> Operation:
    return _answer(text, ref("Error"))


def _query(name: str, text: str, schema: Schema, example: Any) -> Operation:
    return {"name": name, "in": "query", "description": text, "schema": schema, "example": example}


def _flag(name: str, text: str) -> Operation:
    return _query(name, text, {"type": "string", "enum": ["true", "false", ""]}, "true")


def _moment(name: str, text: str) -> Operation:
    forms = [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"},
             {"type": "string", "pattern": f"^{INCIDENT_ID}$"}, _NONE]  # fmt: skip
    return _query(name, text + " (RFC 3339, or an incident's id)", {"anyOf": forms}, "2026-11-20T23:59:59Z")


def _word(name: str, text: str, example: str) -> Operation:
    return _query(name, text, {"type": "string"}, example)


_INCIDENT = {
    "name": "incident",
    "in": "path",
    "required": True,
    "description": "The `path` of its row: its id, or on a volume of many pods `namespace/pod/id`; a slash may be"
    " written as it is, or as %2F.",
    "schema": {"type": "string", "pattern": f"^{INCIDENT_PATH}$"},
    "example": "20261120T235959.123Z-rankdied-tp3",
}
_FILTERS = [
    _query("limit", "Rows at most.", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": 50}, 50),
    _query(
        "before", "The `next` of the last page: only older ones.",
        {"anyOf": [{"type": "string", "pattern": f"^{INCIDENT_PATH}$"}, _NONE]}, "20261120T235959.123Z-rankdied-tp3",
    ),
    _moment("since", "Not older than this"), _moment("until", "Not newer than this"),
    _word("namespace", "Of pods of this namespace.", "prod"), _word("pod", "Of this pod.", "llm-0"),
    _word("reason", "In any case of letters.", "RankDied"), _word("cause", "In any case of letters.", "oom_killed"),
    _word("rank", "Of the rank that failed first.", "TP3"), _word("engine", "In any case of letters.", "sglang"),
    _flag("sealed", "Written to its end, or not."), _flag("pinned", "Pinned, or not."),
    _flag("unreadable", "With a record that cannot be used, or not."),
    _word("q", "Words that must all be in its text.", "sigkill tp3"),
]  # fmt: skip
_FILE = {
    "name": "path", "in": "path", "required": True, "description": "Of one of the incident's `files`.",
    "schema": {"type": "string", "minLength": 1}, "example": "pyspy/TP0.json",
}  # fmt: skip
_RANGE = [
    {"name": "Range", "in": "header", "schema": {"type": "string"}, "example": "bytes=0-1023",
     "description": "One range of bytes. What it need not understand it answers with the whole file."},
    {"name": "If-Range", "in": "header", "schema": {"type": "string"}, "example": '"1f-2c00-18a"',
     "description": "An ETag: if the file is another one by now, the whole file."},
]  # fmt: skip
_NO_INCIDENT = _refused("There is no such incident.")
_NO_VOLUME = _refused("The volume does not give it, or too many ask.")


def _get(text: str, name: str, answers: Operation, *parameters: Operation) -> Operation:
    return {"summary": text, "operationId": name, "parameters": list(parameters), "responses": answers}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("/", "GET"): _get("The page, for a browser. It asks for the token itself.", "page", {
        "200": {"description": "The page.", "content": {"text/html; charset=utf-8": {}}},
        "304": _answer("It is what you have."),
        "404": _refused("It is not installed here."),
    }),
    ("/page/{name}", "GET"): _get("A file of the page: no data, and no token is asked for.", "pageFile", {
        "200": {"description": "The file.", "content": {
            kind: {} for kind in ("text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml")
        }},
        "304": _answer("It is what you have."), "404": _refused("There is no such file."),
    }, {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": "icon.svg"}),
    ("/api/v1", "GET"): _get("Which addresses there are, in words.", "help", {
        "200": _answer("The words.", {"type": "string"}, "text/plain; charset=utf-8"),
    }),
    ("/api/v1/openapi.json", "GET"): _get("This document.", "openapi", {
        "200": _answer("An OpenAPI document.", {"type": "object"}),
    }),
    ("/api/v1/about", "GET"): _get("What runs here, of which version.", "about", {
        "200": _answer("What runs here.", ref("About")),
    }),
    ("/api/v1/status", "GET"): _get("What is watched, and how it is.", "status", {
        "200": _answer("As the guard last said it.", ref("Status")),
    }),
    ("/api/v1/ranks", "GET"): _get("The ranks.", "ranks", {"200": _answer("The ranks.", ref("Ranks"))}),
    ("/api/v1/captures", "POST"): _get("Save the evidence of the engine as it is now.", "capture", {
        "202": _answer("The guard was asked.", ref("Accepted")), "503": _refused("The guard is not running."),
    }),
    ("/api/v1/incidents", "GET"): _get("A page of incidents, newest first.", "incidents", {
        "200": _answer("A page.", ref("Page")),
        "400": _refused("A parameter that is unknown, was given twice, or is wrong."), "503": _NO_VOLUME,
    }, *_FILTERS),
    (_ONE, "GET"): _get("One incident: its record as it stands, and its files.", "incident", {
        "200": _answer("The incident.", ref("Incident")), "404": _NO_INCIDENT, "503": _NO_VOLUME,
    }, _INCIDENT),
    (_ONE + "/artifacts/{path}", "GET"): _get("One of its files.", "artifact", {
        "200": _answer("The file.", {}, _BYTES, ETag={"type": "string"}, Accept_Ranges={"const": "bytes"}),
        "206": _answer("The part of it that was asked for.", {}, _BYTES, Content_Range={"type": "string"}),
        "404": _refused("There is no such file in this incident."),
        "416": _refused("The file has no such bytes.") | {
            "headers": {"Content-Range": {"schema": {"type": "string"}, "required": True}}
        },
        "503": _NO_VOLUME,
    }, _INCIDENT, _FILE, *_RANGE),
    (_ONE + "/bundle", "GET"): _get("All of its files, as .tar.gz, with an index.", "bundle", {
        "200": _answer("The archive.", {}, "application/gzip"), "404": _NO_INCIDENT, "503": _NO_VOLUME,
    }, _INCIDENT),
    (_ONE, "DELETE"): _get("Remove it.", "remove", {
        "200": _answer("It is gone.", ref("Removed")), "404": _NO_INCIDENT,
        "409": _refused("It is pinned, or may still be written to."), "503": _NO_VOLUME,
    }, _INCIDENT),
    (_ONE + "/pin", "PUT"): _get("Keep it, whatever the limits say.", "pin", {
        "200": _answer("It is pinned.", ref("Pinned")), "404": _NO_INCIDENT, "503": _NO_VOLUME,
    }, _INCIDENT),
    (_ONE + "/pin", "DELETE"): _get("Take the pin back.", "unpin", {
        "200": _answer("It is not pinned.", ref("Pinned")), "404": _NO_INCIDENT, "503": _NO_VOLUME,
    }, _INCIDENT),
    ("/api/v1/volume", "GET"): _get("What is used and free, by pod, and what retention drops next.", "volume", {
        "200": _answer("The volume's state.", ref("Volume")), "503": _NO_VOLUME,
    }),
    ("/api/v1/events", "GET"): _get("What changes, as it does: events hello, incident, removed, status.", "events", {
        "200": _answer("Server-sent events, without an end.", {}, "text/event-stream"),
        "503": _refused("Too many listen already."),
    }),
    ("/api/v1/tickets", "POST"): _get("A ticket to download one file without the token.", "ticket", {
        "200": _answer("It is good for `seconds`.", ref("Ticket")), "400": _refused("The path is no file's."),
        "413": _refused("The body is too large."),
    }) | {"requestBody": {"required": True, "content": {"application/json": {
        "schema": ref("TicketWanted"),
        "example": {"path": "/api/v1/incidents/20261120T235959.123Z-rankdied-tp3/bundle"},
    }}}},
}  # fmt: skip
WRITES = {(_ONE, "DELETE"), (_ONE + "/pin", "PUT"), (_ONE + "/pin", "DELETE")}
BY_TICKET = {(_ONE + "/artifacts/{path}", "GET"), (_ONE + "/bundle", "GET")}
FREE = {("/page/{name}", "GET")}  # no token is asked for
SHELL = ("/", "GET")  # without the token it is the page all the same, with 401
