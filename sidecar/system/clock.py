"""The clocks. Deadlines are monotonic; wall time is only for people."""

import os
import time

_TICKS = os.sysconf("SC_CLK_TCK")
monotonic = time.monotonic
wall = time.time


def began(start: int) -> float:
    """When a process began whose `start` is this many clock ticks after the boot; monotonic."""
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - start / _TICKS)


def stamp(wall_seconds: float) -> str:
    """RFC 3339 in UTC with microseconds, as the record wants it."""
    micros = round(wall_seconds * 1_000_000)
    whole, rest = divmod(micros, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:06d}Z"


def id_stamp(wall_seconds: float) -> str:
    """The sortable beginning of an incident's id: `20261120T235959.123Z`."""
    millis = int(wall_seconds * 1000)
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03d}Z"
