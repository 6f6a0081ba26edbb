"""Log lines that can never hold up a kill: one line per transition, to stderr, as text or JSON.

A container runtime that stops reading, a closed terminal or a dead `| tee` must not block or end us. So the line goes
to an own non-blocking opening of stderr where the kernel lets us make one, else it is written only when poll says
there is room; a line that cannot be written is dropped and counted.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

_LONGEST_VALUE = 800  # characters of one detail


class Log:
    """Writes lines for one process. `who` names it (`guard`, `recorder`, ...)."""

    def __init__(self, who: str, style: str, fd: int = 2) -> None:
        self._who = who
        self._json = style == "json"
        self.dropped = 0
        try:
            # A second opening of a pipe or terminal has flags of its own, so the engine's stderr stays blocking.
            self._fd = os.open(
                f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
            )
            self._own = True
        except OSError:
            self._own = False
            try:
                os.fstat(fd)
                self._fd = fd
            except OSError:  # started without a stderr: a file opened later may get this number
                self._fd = -1

    def __call__(self, event: str, /, incident: str = "", **details: Any) -> None:
        """Write one line. `event` is what happened, in words; `details` become key=value (or JSON keys)."""
        details = {key: _clipped(value) for key, value in details.items() if value is not None}
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if self._json:
            line = json.dumps(
                {"time": stamp, "process": self._who, "event": event}
                | ({"incident": incident} if incident else {})
                | details,
                default=str,
            )
        else:
            words = [stamp, f"{self._who}:", event]
            words += [f"{key}={_quoted(value)}" for key, value in details.items()]
            if incident:
                words.append(f"incident={incident}")
            line = " ".join(words)
        self._write((line + "\n").encode(errors="backslashreplace"))

    def _write(self, data: bytes) -> None:
        try:
            if self._fd < 0 or len(data) > select.PIPE_BUF:  # more could be written in part, and join the next line
                raise BlockingIOError
            if not self._own:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                if not any(event & select.POLLOUT for _, event in poll.poll(0)):
                    raise BlockingIOError
            os.write(self._fd, data)
        except OSError:  # full, closed, hung up: never our end
            self.dropped += 1


def _clipped(value: Any) -> Any:
    """A line longer than a pipe takes at once would be dropped."""
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _quoted(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    # A hostile process title must not be able to write lines or escapes of its own.
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if text and " " not in text and '"' not in text else json.dumps(text)
