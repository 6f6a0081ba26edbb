"""What a list of incidents is asked for, and whether a row is wanted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.dumps.names import above_and_id, wall_of
from sidecar.dumps.rows import Row
from sidecar.dumps.values import part, seconds_of, text
from sidecar.errors import SettingError

MOST_ROWS = 500
_FLAGS = {"true": True, "false": False}
_WORDS = ("reason", "cause", "rank", "engine")  # compared with the row's, in any case
_SEARCHED = (
    "path", "reason", "summary", "sentence", "confidence", "rank", "cause", "engine", "outcome", "unreadable",
)  # fmt: skip
KNOWN = (*_WORDS, "namespace", "pod", "q", "since", "until", "sealed", "pinned", "unreadable", "limit", "before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """`before` is the path of an incident: only older ones are wanted. `since` and `until` are seconds since the epoch.
    `words` are the row's own values that must be equal; `search` must occur in its text."""

    limit: int = 50
    before: str = ""
    since: float | None = None
    until: float | None = None
    namespace: str = ""
    pod: str = ""
    words: tuple[tuple[str, str], ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()
    search: str = ""

    @property
    def by_name(self) -> bool:
        """Whether the incident's path says enough, and no record need be read to tell."""
        return not (self.namespace or self.pod or self.words or self.flags or self.search)

    def wants(self, row: Row) -> bool:
        for key, word in self.words:
            if text(row, key).lower() != word:
                return False
        for key, flag in self.flags:
            if bool(row.get(key)) is not flag:
                return False
        place = place_of(row)
        if self.namespace not in ("", place[0]) or self.pod not in ("", place[1]):
            return False
        return not self.search or all(word in _haystack(row) for word in self.search.split())


def place_of(row: Row) -> tuple[str, str]:
    """(namespace, pod): by the folder that it lies in, which nobody in the pod can choose; else by the record."""
    above = str(row["path"]).split("/")[:-1]
    if above:
        return above[0], above[1]
    pod = part(row, "pod")
    return text(pod, "namespace"), text(pod, "name")


def query_from(given: Mapping[str, str]) -> Query:
    """Read a query's parameters. Raises `SettingError` on one that is unknown or wrong."""
    for key, value in given.items():
        if key not in KNOWN:
            raise SettingError(key, value[:80], f"there is no such parameter; known are {', '.join(KNOWN)}")
    before = given.get("before", "")
    if before:
        try:
            above_and_id(before)
        except ValueError as error:
            raise SettingError("before", before[:200], "it takes the path of an incident") from error
    return Query(
        limit=_limit(given.get("limit", "50")),
        before=before,
        since=_moment("since", given.get("since", "")),
        until=_moment("until", given.get("until", "")),
        namespace=given.get("namespace", ""),
        pod=given.get("pod", ""),
        words=tuple((key, given[key].lower()) for key in _WORDS if given.get(key)),
        flags=tuple(
            (key, _flag(key, given[key])) for key in ("sealed", "pinned", "unreadable") if given.get(key)
        ),
        search=given.get("q", "").lower(),
    )  # fmt: skip


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 5 and 1 <= int(value) <= MOST_ROWS):
        raise SettingError("limit", value[:80], f"it takes a whole number from 1 to {MOST_ROWS}")
    return int(value)


def _moment(key: str, value: str) -> float | None:
    if not value:
        return None
    wall = seconds_of({key: value}, key)
    wall = wall_of(value) if wall is None else wall
    if wall is None:
        raise SettingError(key, value[:80], "it takes a time such as 2026-11-20T23:59:59Z")
    return wall


def _flag(key: str, value: str) -> bool:
    if value not in _FLAGS:
        raise SettingError(key, value[:80], "it takes true or false")
    return _FLAGS[value]


def _haystack(row: Row) -> str:
    words = [text(row, key) for key in _SEARCHED]
    words += row.get("apart") or []
    words += [text(part(row, "pod"), key) for key in ("namespace", "name", "node")]
    return " ".join(words).lower()
