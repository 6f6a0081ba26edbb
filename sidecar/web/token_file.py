"""The people's token, in a file that can change at any time, or be on a mount that hangs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from sidecar.log import Log
from sidecar.web.worker import Worker

LOOK_AGAIN = 1.0  # seconds; a rotated token is taken over within that time
PATIENCE = 2.0  # seconds for the token's file to answer
MAX_TOKEN = 64 * 1024


class TokenFile:
    """The token in a file, read again when the file changes. No readable token means that nobody gets in.

    `on_change` is called when the token is another one than before, or is gone.
    """

    def __init__(self, path: str, log: Log, on_change: Callable[[], None]) -> None:
        self._path = path
        self._log = log
        self._on_change = on_change
        self._worker = Worker("token")
        self._looked = -LOOK_AGAIN
        self._looking: asyncio.Future[None] | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._token = b""
        self._trouble = ""

    async def current(self) -> bytes:
        """The token; b"" where there is none to compare with. Takes at most `PATIENCE`."""
        if self._looking is None and time.monotonic() - self._looked >= LOOK_AGAIN:
            self._looked = time.monotonic()
            self._looking = asyncio.ensure_future(self._look())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=PATIENCE)
        return self._token

    async def _look(self) -> None:
        try:
            read = await self._worker.submit(self._read, self._stamp)
            if read is not None:
                self._take(*read)
            self._trouble = ""
        except (OSError, ValueError) as error:
            # Gone or empty: the old token must not go on working, somebody may have taken it back.
            self._take(None, b"")
            if str(error) != self._trouble:
                self._log("the token's file cannot be used; nobody gets in", path=self._path, error=error)
                self._trouble = str(error)
        finally:
            self._looking = None

    def _take(self, stamp: tuple[int, int, int] | None, token: bytes) -> None:
        changed = token != self._token
        self._stamp, self._token = stamp, token
        if changed:
            self._on_change()

    def _read(self, stamp: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], bytes] | None:
        status = os.stat(self._path)
        now = (status.st_mtime_ns, status.st_ino, status.st_size)
        if now == stamp:
            return None
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            token = (file.read(MAX_TOKEN) or b"").strip()
        if not token:
            raise ValueError("it is empty")
        return now, token
