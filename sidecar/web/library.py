"""The incidents on a volume, for handlers on the event loop: every look at the volume is made on a thread."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sidecar.dumps.catalog import Catalog, Page
from sidecar.dumps.files import Files, Reading, files_of, open_file
from sidecar.dumps.folder import Entry, entry_at
from sidecar.dumps.opening import TOP
from sidecar.dumps.query import Query
from sidecar.dumps.record import RECORD_LIMIT
from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping
from sidecar.web.pool import Pool, Unavailable

if TYPE_CHECKING:
    from sidecar.dumps.volume import Volume

PIECE = 256 << 10  # bytes read at a time
_MOST_LOOKS = 100  # at a volume that one look does not see all of
_LONGEST_LOOK = 10.0  # seconds from the beginning of a look at its state; then who waits is told so


class Library:
    """`folder` is the dump folder; `own` is whose it is and what that pod keeps, where it is one pod's. Raises
    `Unavailable` where the folder itself gives nothing, `ValueError` and `OSError` where there is no such thing in it,
    or where it cannot be read."""

    def __init__(
        self, folder: str, pool: Pool, record_limit: int = RECORD_LIMIT, own: tuple[PodInfo, Keeping] | None = None
    ) -> None:
        self.folder = folder
        self.pool = pool
        self.catalog = Catalog(folder, record_limit)
        self._record_limit = record_limit
        self._own = own
        self._volume: Volume | None = None
        self._looking: asyncio.Task[tuple[bytes, bool]] | None = None
        self._look_began = 0.0

    async def volume(self) -> bytes:
        """The volume's state, as JSON. Who asks while a look is made gets that one's."""
        looking = self._looking or self._look_again(_MOST_LOOKS)
        # Without an end everybody who ever asked would wait, and take up what the server has room for, for all paths.
        await asyncio.wait({looking}, timeout=max(0.0, self._look_began + _LONGEST_LOOK - time.monotonic()))
        if not looking.done():
            raise Unavailable("the volume does not answer; try again")
        try:
            return looking.result()[0]
        except OSError as error:
            raise _unavailable(error) from error

    def _look_again(self, times: int) -> asyncio.Task[tuple[bytes, bool]]:
        """Look, and go on in the background until all was seen: who asks again then need not wait for it."""

        def looked(look: asyncio.Task[tuple[bytes, bool]]) -> None:
            self._looking = None
            # An error is taken even if everybody who asked has left.
            if not look.cancelled() and look.exception() is None and not look.result()[1] and times > 1:
                self._look_again(times - 1)

        self._look_began = time.monotonic()
        self._looking = asyncio.create_task(self.pool.run(self._look))
        self._looking.add_done_callback(looked)
        return self._looking

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

    def _look(self) -> tuple[bytes, bool]:
        if self._volume is None:
            from sidecar.dumps.volume import Volume  # few ask

            self._volume = Volume(self.folder, self.catalog, self._own, self._record_limit)
        found = self._volume.look()
        return json.dumps(found).encode(), bool(found["complete"])

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
