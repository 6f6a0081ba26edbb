"""A dump folder as pages of a list, however many incidents there are.

The names alone give the order. A record is read when its row is wanted, and kept. Both hold until a `stat` says
otherwise: a pod's folder changes its time with every incident that comes or goes, and a sealed incident's folder with
every record that replaces another. Calls may come from several threads at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from sidecar.dumps.folder import Home, Key, entry_in, homes
from sidecar.dumps.names import wall_of
from sidecar.dumps.opening import down, lstat, top
from sidecar.dumps.query import Query
from sidecar.dumps.record import RECORD_LIMIT
from sidecar.dumps.rows import Row, clipped, row_of

BUDGET = 0.5  # seconds that one page may take to find its rows; then it says how far it came
_MOST_KEPT = 50_000  # rows, 1 KiB each
_MOST_OPEN = 64  # pods' folders held open while a page is made
_SETTLED = 3.0  # seconds; what changed less long ago may change again within its clock's tick

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Page:
    """`total` is how many incidents there are, wanted or not. `following`: the `before` of the next page, "" at the
    end. `whole`: False where the time was up before the page was full. `closed`: folders that may not be looked into.
    """

    rows: tuple[Row, ...]
    total: int
    following: str
    whole: bool
    closed: tuple[str, ...]


class Catalog:
    """`folder` is the dump folder; `record_limit` the bytes that a record may have."""

    def __init__(self, folder: str, record_limit: int = RECORD_LIMIT) -> None:
        self._folder = folder
        self._record_limit = record_limit
        self._rows: dict[str, tuple[Stamp, Row]] = {}
        self._homes: dict[tuple[str, ...], tuple[Stamp, list[Key]]] = {}

    def page(self, query: Query, budget: float = BUDGET, clock: Callable[[], float] = time.monotonic) -> Page:
        """One page. Raises `OSError` where the dump folder itself cannot be read."""
        end = clock() + budget
        rows: list[Row] = []
        with top(self._folder) as root, ExitStack() as stack:
            names, closed = self._names(root)
            parents = _Parents(root, stack)
            last, whole, looked = "", True, 0
            for _, path in _between(names, query):
                if len(rows) == query.limit:
                    break
                if looked and clock() > end:
                    whole = False
                    break
                last, looked = path, looked + 1
                row = self._row(parents, path)
                if row is not None and (query.by_name or query.wants(row)):
                    rows.append(row)
            else:
                last = ""
        return Page(tuple(rows), len(names), last, whole, tuple(sorted(closed)))

    def rows(self) -> Iterator[Row]:
        """Every incident's row, newest first; forgets those that are gone. Raises `OSError` as `page` does."""
        with top(self._folder) as root, ExitStack() as stack:
            names, _ = self._names(root)
            there = {path for _, path in names}
            for path in [path for path in list(self._rows) if path not in there]:
                self._rows.pop(path, None)
            parents = _Parents(root, stack)
            for _, path in names:
                row = self._row(parents, path)
                if row is not None:
                    yield row

    def _names(self, root: int) -> tuple[list[Key], list[str]]:
        """Every incident, newest first, and the folders that may not be looked into."""
        closed: list[str] = []
        found: list[Key] = []
        there = set()
        for home in homes(root, closed):
            there.add(home.above)
            found += self.incidents(home)
        for above in [above for above in list(self._homes) if above not in there]:
            self._homes.pop(above, None)
        found.sort(reverse=True)
        return found, closed

    def incidents(self, home: Home) -> list[Key]:
        """Those in one folder, in no order."""
        stamp, settled = stamped(os.fstat(home.fd))
        kept = self._homes.get(home.above)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        found = home.incidents()
        if settled:
            self._homes[home.above] = stamp, found
        return found

    def _row(self, parents: _Parents, path: str) -> Row | None:
        parent = parents.get(path.rpartition("/")[0])
        return None if parent is None else self.row(parent, path)

    def row(self, parent: int, path: str, info: os.stat_result | None = None) -> Row | None:
        """The row of the incident at `path`, whose folder is in the open one; None where it is gone. `info` is what
        `lstat` says of it, where that is known."""
        name = path.rpartition("/")[2]
        info = info or lstat(parent, name)
        if info is None:
            return None
        stamp, settled = stamped(info)
        kept = self._rows.get(path)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        row = clipped(row_of(entry_in(parent, name, path, wall_of(name) or 0.0, self._record_limit)))
        if settled and (row["sealed"] or row["unreadable"]) and len(self._rows) < _MOST_KEPT:
            self._rows[path] = stamp, row
        return row


class _Parents:
    """The folders that incidents lie in, each opened once; `stack` closes them."""

    def __init__(self, root: int, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._open: dict[str, int | None] = {}

    def get(self, above: str) -> int | None:
        if above not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._stack.pop_all().close()
                self._open.clear()
            try:
                parts = above.split("/") if above else []
                self._open[above] = self._stack.enter_context(down(self._root, parts))
            except OSError:
                self._open[above] = None
        return self._open[above]


def stamped(info: os.stat_result) -> tuple[Stamp, bool]:
    """What tells a folder from its next state, and whether it would tell."""
    return (info.st_ino, info.st_mtime_ns, info.st_ctime_ns), abs(time.time() - info.st_mtime) > _SETTLED


def _between(names: list[Key], query: Query) -> Iterator[Key]:
    """Those that the times and the page's beginning leave, newest first."""
    border = (wall_of(query.before.rsplit("/", 1)[-1]) or 0.0, query.before) if query.before else None
    for key in names:
        if border is not None and key >= border:
            continue
        if query.until is not None and key[0] > query.until:
            continue
        if query.since is not None and key[0] < query.since:
            return
        yield key
