"""What has changed between two looks at the newest incidents. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.dumps.catalog import Page
from sidecar.dumps.folder import Key
from sidecar.dumps.names import wall_of
from sidecar.dumps.rows import Row

_ALL: Key = (float("-inf"), "")


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the rows by their paths, newest first, and the oldest place in the list that it speaks of."""

    rows: dict[str, Row]
    edge: Key


NOTHING = Seen({}, _ALL)


def seen(page: Page) -> Seen:
    return Seen({row["path"]: row for row in page.rows}, _key(page.following) if page.following else _ALL)


def changed(before: Seen, now: Seen) -> Iterator[tuple[str, Row | None]]:
    """(path, its row, or None where it is gone), oldest first. What only came into view, since something newer went,
    or out of view, since something newer came, has not changed."""
    for path, row in reversed(now.rows.items()):
        old = before.rows.get(path)
        if row != old and (old is not None or _key(path) >= before.edge):
            yield path, row
    for path in reversed(before.rows):
        if path not in now.rows and _key(path) >= now.edge:
            yield path, None


def _key(path: str) -> Key:
    return wall_of(path.rsplit("/", 1)[-1]) or 0.0, path
