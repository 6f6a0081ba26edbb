"""The shapes of what is sent and taken, as JSON schemas.

What a record says is somebody else's word: where a value is normally a text, it may be anything all the same.
"""

from __future__ import annotations

from typing import Any

from sidecar.dumps.names import ID, NAME

Schema = dict[str, Any]

# A day that is there, the 29th of February in leap years alone.
_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_DATE = r"(?:0[1-9]|1[0-2])(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])(?:29|30)|(?:0[13578]|1[02])31"
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_DAY = rf"(?:{_YEAR}(?:{_DATE})|(?:\d\d{_FOURTH}|{_FOURTH}00)0229)"
_HOUR = r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d\.\d{3}"
INCIDENT_ID = f"{_DAY}T{_HOUR}Z(?:-[A-Za-z0-9_.+-]{{1,160}})?"
INCIDENT_PATH = f"(?:{NAME}/{NAME}/)?{INCIDENT_ID}"
FILE_PATH = f"/api/v1/incidents/(?:{NAME}/{NAME}/)?{ID}/(?:bundle|artifacts/[\\s\\S]+)"

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
SAID: Schema = {
    "type": ["string", "number", "boolean", "object", "array", "null"],
    "description": "As the record says it: a text or null, unless somebody else wrote the record.",
}
WHY: Schema = {"type": ["string", "null"], "description": "Why the record cannot be used; null where it can."}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def shape(_open: bool = False, /, **properties: Schema) -> Schema:
    """An object with all of these; `_open`: and others."""
    made: Schema = {"type": "object", "properties": properties, "required": list(properties)}
    return made if _open else made | {"additionalProperties": False}


def rows(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def maybe(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]} if isinstance(schema.get("type"), str) else {
        "anyOf": [schema, {"type": "null"}]
    }  # fmt: skip


_ROW = shape(
    True, id=TEXT, path=TEXT, time=MOMENT, reason=SAID, summary=SAID, rank=SAID, cause=SAID, engine=SAID, pod=SAID,
    artifacts=COUNT, bytes=COUNT, outcome=SAID, seconds=SAID, sealed=FLAG, pinned=FLAG, unreadable=WHY,
    sentence=TEXT, confidence=TEXT, apart=rows(TEXT),
)  # fmt: skip

_STEP = shape(
    path=TEXT, action={"enum": ["remove", "collapse"]}, why={"enum": ["age", "bytes", "number"]}, bytes=COUNT,
    at=maybe(MOMENT) | {"description": "Past: the next look drops it. Null: one more incident does."},
)  # fmt: skip
_LIMITS = shape(
    max_incidents=maybe(COUNT), max_bytes=maybe(COUNT), max_age_seconds={"type": ["number", "null"], "minimum": 0}
)
_POD = shape(
    namespace=TEXT, pod=TEXT, incidents=COUNT, unreadable=COUNT, pinned=COUNT, bytes=COUNT, newest=maybe(MOMENT),
    alive={"type": ["boolean", "null"], "description": "Its sidecar wrote lately; null: nothing is known of one."},
    limits=maybe(ref("Limits")), next=rows(ref("Step")),
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Error": shape(error={"type": "string", "description": "What was wrong, in one line."}),
    "Row": _ROW,
    "Page": shape(
        incidents=rows(ref("Row")), total=COUNT, closed=rows(TEXT),
        next={"type": ["string", "null"], "description": "The `before` of the next page; null at the end."},
        complete={"type": "boolean", "description": "False: the time was up before the page was full."},
    ),
    "Incident": shape(
        True, id=TEXT, path=TEXT, bytes=COUNT, pinned=FLAG, unreadable=WHY,
        files=rows(shape(path=TEXT, bytes=COUNT)), files_left_out=COUNT,
    )
    | {"description": "incident.json as it stands, and what the folder says. `{}` of a record that is unreadable."},
    "Limits": _LIMITS,
    "Step": _STEP,
    "Pod": _POD,
    "Volume": shape(
        at=MOMENT, folder=TEXT, size_bytes=COUNT, used_bytes=COUNT, free_bytes=COUNT, bytes=COUNT, incidents=COUNT,
        unreadable=COUNT, pinned=COUNT, pods=rows(ref("Pod")), pods_left_out=COUNT, closed=rows(TEXT),
        complete={"type": "boolean", "description": "False: not all was seen yet; ask again."},
    ),
    "About": shape(
        kind={"enum": ["sidecar", "viewer"]}, version=TEXT, write=FLAG, dump_dir=TEXT,
        pod=maybe(shape(namespace=TEXT, name=TEXT)),
    ),
    "Status": shape(
        True, version=TEXT, healthy=FLAG, health=TEXT, ready=FLAG, ready_detail=TEXT,
        state={"type": ["string", "null"]}, engine={"type": ["string", "null"]}, ranks_expected=maybe(COUNT),
        ranks_up=maybe(COUNT), incident={"type": ["string", "null"]}, capabilities={"type": "object"},
        incidents_total={"type": "object", "additionalProperties": COUNT},
        rank_deaths_total={"type": "object", "additionalProperties": COUNT}, dump_dir=TEXT, config_errors=rows(TEXT),
        uptime_seconds={"type": "number", "minimum": 0},
    ),
    "Ranks": shape(
        ranks=rows(shape(
            role=TEXT, rank=TEXT, up=FLAG, pid={"type": ["integer", "null"]}, container={"type": ["string", "null"]},
            container_name={"type": ["string", "null"]}, title=TEXT, deaths=COUNT,
        )),
    ),
    "Accepted": shape(status={"const": "accepted"}),
    "Removed": shape(removed=TEXT),
    "Pinned": shape(pinned=FLAG),
    "TicketWanted": shape(path={
        "type": "string", "pattern": f"^{FILE_PATH}$", "description": "The path of an artifact or a bundle.",
    }),
    "Ticket": shape(ticket=TEXT, seconds=COUNT),
}  # fmt: skip
