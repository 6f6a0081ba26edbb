"""An engine of CUDA doubles that hangs by its own metrics: work waits, nothing moves, its ranks sleep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sidecar_process import Sidecar, descendants, eventually, identity_of, kill_identity, load, running

from sidecar.model import Identity

ROOT = str(Path(__file__).resolve().parents[2])

# Starts what it is told on its stdin and collects it; it is the root of the engine's tree.
_LAUNCHER = """
import json, subprocess, sys
ranks = [subprocess.Popen(**rank) for rank in json.loads(sys.stdin.readline())]
for rank in ranks:
    rank.wait()
sys.stdin.read()
"""


class Pages:
    """/health says 200, /metrics the numbers as they are set. `url` is its address; a path may have a query."""

    def __init__(self) -> None:
        self.running = 0
        self.tokens = 0
        self.scrapes = 0
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.metrics() if self.path.startswith("/metrics") else b"ok\n"
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def metrics(self) -> bytes:
        self.scrapes += 1
        return (
            f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
            f'vllm:num_requests_waiting{{engine="0"}} 0\n'
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}\n'
        ).encode()

    def seen(self, tokens: int) -> None:
        """Give so many tokens, and wait until that was scraped: when the one after it comes, a scrape is done with."""
        self.tokens = tokens
        before = self.scrapes
        eventually(lambda: self.scrapes > before + 1, "two scrapes")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)


class Doubles:
    """`count` ranks `TP0`, `TP1`, ... that are CUDA doubles, under one root, and their pages. A context manager.

    `behaviours` are the doubles' arguments by rank, `dumps` is where they put their dumps, `more` further words of
    their titles, `environ` more of their environment, which is their root's too: a title wipes out a rank's own.
    """

    def __init__(
        self, folder: Path, dumps: Path, behaviours: Sequence[Sequence[str]] = ((), ()), more: str = "",
        environ: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.token = f"double-{uuid.uuid4().hex[:12]}"
        self.count = len(behaviours)
        self._said = folder / "doubles.out"
        env = {
            "PATH": os.environ["PATH"], "PYTHONPATH": ROOT, "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1",
            "CUDA_COREDUMP_PIPE": str(folder / "pipe.%p"), "CUDA_COREDUMP_FILE": str(dumps / "dump.%p"),
            "CUDA_COREDUMP_GENERATION_FLAGS": "skip_abort", **(environ or {}),
        }  # fmt: skip
        ranks = [
            {
                "args": [sys.executable, "-m", "sidecar.demo.cuda_double", *told,
                         "--title", f"{self.token} TP{n}{' ' + more if more else ''}"],
                "cwd": str(folder),
            }
            for n, told in enumerate(behaviours)
        ]  # fmt: skip
        self.pages = Pages()
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER], stdin=subprocess.PIPE, stdout=said, stderr=subprocess.DEVNULL,
                env=env, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ranks).encode() + b"\n")
        self.process.stdin.flush()
        self.ranks: list[Identity] = []
        self.everyone = [identity_of(self.process.pid)]

    def __enter__(self) -> Doubles:
        try:
            eventually(lambda: self.said().count("ready\n") == self.count, "the doubles ready")
            self.ranks = descendants(self.process.pid)
            assert len(self.ranks) == self.count, self.ranks
        except BaseException:
            self.__exit__()
            raise
        self.everyone += self.ranks
        return self

    def __exit__(self, *_: object) -> None:
        for identity in {*self.everyone, *descendants(self.process.pid)}:
            kill_identity(identity)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.pages.close()

    @property
    def flags(self) -> tuple[str, ...]:
        """So that a Rankguard watches this engine and nothing else, and soon says that it hangs."""
        return (
            "--root-pid", str(self.process.pid), "--engine", "generic", "--expected-ranks", str(self.count),
            "--rank-pattern", rf"^{self.token} TP(?P<TP>\d+)\b", "--health-url", f"{self.pages.url}/health",
            "--metrics-url", f"{self.pages.url}/metrics", "--probe-period", "0.3", "--stall-timeout", "1",
            "--api-listen", "127.0.0.1:0",
        )  # fmt: skip

    def said(self) -> str:
        return self._said.read_text()

    def hang(self) -> None:
        """From now on a request runs, and no token comes."""
        self.pages.running = 1

    def wait_gone(self, sidecar: Sidecar, timeout: float = 40.0) -> None:
        def over() -> bool:
            self.process.poll()
            return not [identity for identity in self.everyone if running(identity)]

        eventually(over, f"the engine gone\n{sidecar.log()}", timeout)


@contextmanager
def hung(dump_dir: Path, engine: Doubles, *flags: str, **more: Any) -> Iterator[Sidecar]:
    """A Rankguard beside the engine, which was served and hangs now."""
    with Sidecar(dump_dir, *engine.flags, *flags, **more) as sidecar:
        sidecar.wait_serving()
        sidecar.wait("the engine answers")
        engine.hang()
        yield sidecar


def artifacts(record: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The artifacts of one kind by their rank."""
    return {a["rank"]: a for a in record["artifacts"] if a["kind"] == kind}


def sealed(sidecar: Sidecar, count: int) -> list[dict[str, Any]]:
    """The records, once there are so many and all are sealed; oldest first."""

    def all_sealed() -> list[dict[str, Any]] | None:
        records = [load(folder) for folder in sidecar.incidents()]
        return records if len(records) == count and all(record["sealed"] for record in records) else None

    records: list[dict[str, Any]] = eventually(all_sealed, f"{count} sealed incidents\n{sidecar.log()}", 40.0)
    return records
