"""The incidents on a volume, for handlers on the event loop: every look at the volume is made on a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager

from sidecar.dumps.catalog import Catalog, Page
from sidecar.dumps.files import Files, Reading, files_of, open_file
from sidecar.dumps.folder import Entry, entry_at
from sidecar.dumps.opening import TOP
from sidecar.dumps.query import Query
from sidecar.dumps.record import RECORD_LIMIT
from sidecar.web.pool import Pool, Unavailable

PIECE = 256 << 10  # bytes read at a time


class Library:
    """`folder` is the dump folder. Raises `Unavailable` where the folder itself gives nothing, `ValueError` and
    `OSError` where there is no such thing in it, or where it cannot be read."""

    def __init__(self, folder: str, pool: Pool, record_limit: int = RECORD_LIMIT) -> None:
        self.folder = folder
        self.pool = pool
        self.catalog = Catalog(folder, record_limit)
        self._record_limit = record_limit

    async def page(self, query: Query) -> Page:
        try:
            return await self.pool.run(self.catalog.page, query)
        except OSError as error:
            raise _unavailable(error) from error

    async def incident(self, path: str) -> tuple[Entry, Files]:
        return await self.pool.run(self._incident, path)

    async def open(self, path: str, file: str) -> Reading:
        """Open one file of an incident; the caller closes it."""
        return await self.pool.run(self._open, path, file)

    async def pieces(self, reading: Reading, wanted: range) -> AsyncGenerator[bytes, None]:
        """The bytes of `wanted`, and closes `reading`. Ends early where the file has shrunk."""
        try:
            at = wanted.start
            while at < wanted.stop:
                piece = await self.pool.run(reading.read, at, min(PIECE, wanted.stop - at))
                if not piece:
                    raise OSError("the file has shrunk")
                at += len(piece)
                yield piece
        finally:
            reading.close()

    async def bundle(self, path: str) -> AsyncGenerator[bytes, None]:
        """The incident as an archive, in pieces. Raises at the first one where there is no such incident."""
        making = _Making(self.folder, path)
        try:
            while (piece := await self.pool.run(making.piece)) is not None:
                yield piece
        finally:
            making.close()

    def _incident(self, path: str) -> tuple[Entry, Files]:
        with _top(self.folder) as root:
            entry = entry_at(root, path, self._record_limit)
            try:
                return entry, files_of(root, path)
            except OSError:
                return entry, Files((), 1)  # a link, or no folder: the entry says so

    def _open(self, path: str, file: str) -> Reading:
        with _top(self.folder) as root:
            return open_file(root, path, file)


@contextmanager
def _top(folder: str) -> Iterator[int]:
    try:
        root = os.open(folder, TOP)
    except OSError as error:
        raise _unavailable(error) from error
    try:
        yield root
    finally:
        os.close(root)


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(f"the dump folder cannot be read: {error.strerror or error}")


class _Making:
    """A bundle that is being made, one step at a time, on whatever thread."""

    def __init__(self, folder: str, path: str) -> None:
        self._steps = self._made(folder, path)
        self._busy = threading.Lock()
        self._unwanted = False

    @staticmethod
    def _made(folder: str, path: str) -> Generator[bytes, None, None]:
        from sidecar.dumps.bundle import bundle  # tarfile, which is seldom needed, is not small

        with _top(folder) as root:
            yield from bundle(root, path)

    def piece(self) -> bytes | None:
        """The next piece that holds something, None at the end."""
        with self._busy:
            found = next(filter(None, self._steps), None)
            if self._unwanted:
                self._steps.close()
            return found

    def close(self) -> None:
        """Close its files: now, or when the step that is under way comes back from the volume."""
        self._unwanted = True
        if self._busy.acquire(blocking=False):
            try:
                self._steps.close()
            finally:
                self._busy.release()
