"""The engine's metrics of the last minutes, and its ranks' CPU times, in a memfd that outlives whoever writes it.

A frozen or dead engine answers no scrape, and the web that scraped it may be hung or dead as well. So the supervisor
makes the memfd, the web writes what it scraped, and the recorder reads it when an incident begins.

Two slots are written in turn, a slot's header last. The header has the length and a checksum of its slot, so a reader
takes the newest slot that is whole: one that is being written, or that a dying writer left half-written, is passed over
for the other.
"""

from __future__ import annotations

import binascii
import json
import os
import struct
from collections import deque
from collections.abc import Iterator

SECONDS = 300.0  # how far back it goes
CPU_SECONDS = "rankguard_rank_cpu_seconds"  # the name for a rank's CPU time among the engine's metrics
SIZE = 2**20  # bytes of the memfd
_HEADER = struct.Struct("<8sQII")  # magic, number of the writing, length, checksum of these two and the slot's bytes
_MAGIC = b"rghist1\n"
_SLOT = SIZE // 2
_ROOM = _SLOT - _HEADER.size
_TRIES = 3  # of a reader that a writer overtakes


def create() -> int:
    """An empty history: a memfd of `SIZE` bytes, not inheritable."""
    fd = os.memfd_create("rankguard-history", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


def read(fd: int) -> bytes:
    """What is kept, oldest first, one JSON object a line, or b"" where there is nothing.

    `{"wall": seconds since the epoch, "at": monotonic seconds, "lines": ["vllm:num_requests_running{...} 3.0", ...]}`.
    Whatever is in `fd`, a closed descriptor too, this never raises.
    """
    return _newest(fd)[1]


class HistoryWriter:
    """Adds to the history in `fd`; one at a time. It goes on with what an earlier writer left there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._number, kept = _newest(fd)
        self._kept: deque[tuple[float, bytes]] = deque(_records(kept))
        self._size = sum(len(record) for _, record in self._kept)

    def add(self, wall: float, monotonic_at: float, lines: bytes) -> bool:
        """Keep the lines of one scrape; what is older than `SECONDS` or does not fit any more goes, oldest first.

        False where it could not be kept: too much at once, or no memory. It is evidence only, so that is all.
        """
        text = [line for line in lines.decode("utf-8", "replace").split("\n") if line]
        record = json.dumps({"wall": round(wall, 3), "at": round(monotonic_at, 3), "lines": text}).encode() + b"\n"
        if len(record) > _ROOM:
            return False
        self._kept.append((monotonic_at, record))
        self._size += len(record)
        while self._size > _ROOM or self._kept[0][0] < monotonic_at - SECONDS:
            self._size -= len(self._kept.popleft()[1])
        return self._write(b"".join(record for _, record in self._kept))

    def _write(self, data: bytes) -> bool:
        number = self._number + 1
        start = number % 2 * _SLOT
        try:
            if os.pwrite(self._fd, data, start + _HEADER.size) < len(data):
                return False
            os.pwrite(self._fd, _HEADER.pack(_MAGIC, number, len(data), _checksum(number, data)), start)
        except OSError:
            return False
        self._number = number  # only now: what failed is tried in the same slot again, and the other one stays whole
        return True


def _newest(fd: int) -> tuple[int, bytes]:
    """The number and the bytes of the newest slot that is whole, 0 and b"" where none is."""
    for _ in range(_TRIES):
        try:
            headers = [_HEADER.unpack(os.pread(fd, _HEADER.size, start)) for start in (0, _SLOT)]
            for start, (magic, number, length, checksum) in sorted(
                zip((0, _SLOT), headers, strict=True), key=lambda slot: slot[1][1], reverse=True
            ):
                if magic == _MAGIC and length <= _ROOM:
                    data = os.pread(fd, length, start + _HEADER.size)
                    if len(data) == length and checksum == _checksum(number, data):
                        return number, data
            if all(magic != _MAGIC for magic, *_ in headers):
                break
        except (OSError, ValueError, struct.error):  # closed, or no file of ours
            break
    return 0, b""


def _checksum(number: int, data: bytes) -> int:
    return binascii.crc32(data, binascii.crc32(struct.pack("<QI", number, len(data))))


def _records(data: bytes) -> Iterator[tuple[float, bytes]]:
    for line in data.splitlines(keepends=True):
        try:
            yield float(json.loads(line)["at"]), line
        except (ValueError, KeyError, TypeError):
            continue
