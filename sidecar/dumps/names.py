"""The names that are looked at in a dump folder: an incident's id, a namespace, a pod. Everything else is not ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime

RECORD = "incident.json"
REMOVING = ".removing-"  # how the name begins of what is being removed: half of it must not look like a whole

ID = r"\d{8}T\d{6}\.\d{3}Z(?:-[A-Za-z0-9_.+-]{1,160})?"
# A Kubernetes namespace or pod name (RFC 1123). It begins as no id can go on: an id has a T in it.
NAME = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"

_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d{3})Z(?:-[A-Za-z0-9_.+-]{1,160})?", re.ASCII)
_NAME = re.compile(NAME)


def wall_of(name: str) -> float | None:
    """The time in an incident's id, or None where the name is no incident's id."""
    match = _ID.fullmatch(name)
    if match is None:
        return None
    year, month, day, hour, minute, second, milli = (int(group) for group in match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, milli * 1000, UTC).timestamp()
    except ValueError:
        return None


def is_name(name: str) -> bool:
    """Whether it can be a namespace's or a pod's."""
    return _NAME.fullmatch(name) is not None


def above_and_id(path: str) -> tuple[list[str], str]:
    """(what it lies in, its id) of an incident's path: `<id>` or `<namespace>/<pod>/<id>`. Raises `ValueError`."""
    *above, name = path.split("/")
    if wall_of(name) is None or len(above) not in (0, 2) or not all(map(is_name, above)):
        raise ValueError(f"{path!r} is no incident's path")
    return above, name


def bundle_name(path: str) -> str:
    """The file name of an archive of the incident at `path`."""
    return path.replace("/", "_") + ".tar.gz"
