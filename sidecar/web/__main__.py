"""Entry of the web process, started by the supervisor with four inherited descriptors."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import struct
import sys
import time
import traceback

from sidecar.log import Log
from sidecar.messages import Channel
from sidecar.settings import launch_from_fd
from sidecar.system.limits import limit_data
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
from sidecar.web.process import Web

_DATA_LIMIT = 512 << 20  # our own, and at most two thirds of what the container may have; at rest we need 40 MiB
_LEAST_LIMIT = 128 << 20
_BEAT_EVERY = 2.5  # seconds; the supervisor asks for one within 15


class _ToLog(logging.Handler):
    """What uvicorn and asyncio report, as one line of ours each, with the place instead of a traceback."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log(record.getMessage().strip(), error=_named(error), at=_place(error))


def main(control_fd: int, launch_fd: int, history_fd: int = -1, heartbeat_fd: int = -1) -> None:
    """Serve until SIGTERM or the end of `control_fd`. Exits with 1, and a log line, on a mistake of our own.

    `history_fd` is the shared memory for the engine's last metrics (`sidecar.history`), -1 where nobody wants them.
    `heartbeat_fd` is memory whose first 8 bytes tell the supervisor when the loop has last run, -1 where nobody looks.
    """
    launch = launch_from_fd(launch_fd)
    os.close(launch_fd)
    for fd in (history_fd, heartbeat_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    log = Log("web", launch.settings.log_format)
    memory = OwnMemory(Proc())
    room = memory.room()
    # Whatever we are made to read ends in a MemoryError here, and not the container.
    limit_data(0, _DATA_LIMIT if room is None else max(_LEAST_LIMIT, min(_DATA_LIMIT, room.limit * 2 // 3)))
    logging.getLogger().addHandler(_ToLog(log))

    async def life() -> None:
        if heartbeat_fd >= 0:
            _beat(mmap.mmap(heartbeat_fd, mmap.PAGESIZE), asyncio.get_running_loop())
        await Web(launch, Channel.from_fd(control_fd), log, history_fd, memory).run()

    try:
        asyncio.run(life())
    except Exception as error:  # noqa: BLE001 - the process's outermost loop; the supervisor starts another
        log("the web process failed", error=_named(error), at=_place(error))
        sys.exit(1)


def _beat(heartbeat: mmap.mmap, loop: asyncio.AbstractEventLoop) -> None:
    heartbeat[:8] = struct.pack("d", time.monotonic())
    loop.call_later(_BEAT_EVERY, _beat, heartbeat, loop)


def _named(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _place(error: BaseException | None) -> str | None:
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    return " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames[-4:])) or None
