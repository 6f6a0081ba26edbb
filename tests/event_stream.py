"""Server-sent events of a real server, read one by one."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx


class EventStream:
    """A context manager. A read that finds nothing for long fails; comments do not count."""

    def __init__(self, port: int, **headers: str) -> None:
        self._client = httpx.Client(trust_env=False, timeout=30, verify=False)  # no certificates to load
        self._url = f"http://127.0.0.1:{port}/api/v1/events"
        self._headers = headers

    def __enter__(self) -> EventStream:
        self._request = self._client.stream("GET", self._url, headers=self._headers)
        self.response = self._request.__enter__()
        self._lines = self.response.iter_lines()
        return self

    def __exit__(self, *_: object) -> None:
        self._request.__exit__(None, None, None)
        self._client.close()

    def next(self) -> tuple[str, Any] | None:
        """(event, its data), or None where the server has ended the stream."""
        event = ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                event = value
            elif field == "data":
                return event, json.loads(value)
        return None

    def until(self, event: str, **match: Any) -> dict[str, Any]:
        """The data of the next event of this name whose data has these values."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.next()
            assert found is not None, f"the stream ended before {event} {match}"
            if found[0] == event and all(found[1].get(key) == value for key, value in match.items()):
                return found[1]
        raise AssertionError(f"no {event} {match}")
