"""`rankguard view` as a real process, asked over real HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Viewer:
    """A context manager. `token` is what requests carry, "" for none."""

    def __init__(self, folder: Path, *arguments: str, token: str = "") -> None:
        argv = [
            sys.executable, "-m", "sidecar", "view", "--dump-dir", str(folder), "--api-listen", "127.0.0.1:0",
            "--listen", "127.0.0.1:0", "--log-format", "json", "--scan-period", "1s", *arguments,
        ]  # fmt: skip
        env = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        self.process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.lines: list[dict[str, Any]] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(timeout=60.0, headers={"authorization": f"Bearer {token}"} if token else {})

    def __enter__(self) -> Viewer:
        try:
            self.api_port = self.wait("listening", api=True)["port"]
            self.port = self.wait("listening", api=False)["port"]
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            with self._came:
                try:
                    self.lines.append(json.loads(raw))
                except ValueError:
                    self.lines.append({"event": raw})
                self._came.notify_all()

    def wait(self, event: str, timeout: float = 60.0, **match: Any) -> dict[str, Any]:
        end = time.monotonic() + timeout
        with self._came:
            while True:
                for line in self.lines:
                    if line["event"] == event and all(line.get(key) == value for key, value in match.items()):
                        return line
                if time.monotonic() > end or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"no {event!r} {match}; the log: {self.lines}")
                self._came.wait(1.0)

    def ask(self, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        return self.client.request(method, f"http://127.0.0.1:{self.api_port}{path}", **more)

    def incidents(self, path: str = "", **query: str) -> httpx.Response:
        return self.ask(f"/api/v1/incidents{path}", params=query)

    def rows(self, limit: int = 500, **query: str) -> list[dict[str, Any]]:
        """All pages of a list: on a busy machine a page may end before it is full, and says so."""
        found: list[dict[str, Any]] = []
        following = ""
        while True:
            page = self.incidents(limit=str(limit), **query, **({"before": following} if following else {})).json()
            assert len(page["incidents"]) <= limit
            found += page["incidents"]
            following = page["next"]
            if following is None:
                return found

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Every sample of a scrape: (name, label values in the order of their names) and its value."""
        text = self.client.get(f"http://127.0.0.1:{self.port}/metrics").text
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.client.close()
        self._reader.join(20)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()
        return status
