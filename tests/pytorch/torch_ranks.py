"""One rank of a small job on gloo, for torchrun: `torch_ranks.py FOLDER SECONDS`, which loops over an all_reduce.

It does as the files in FOLDER say before each step: `block`: rank 1 waits for a lock that nobody gives back. `raise`:
rank 2 raises. SECONDS is how long each rank computes before the collective. Rank 0 serves /health (503 where the last
step is over a second older than a step takes) and /metrics, under names that Rankguard reads. `rank<N>.json` appears in
FOLDER when the first step is done. The end of whoever holds the other end of stdin is its own end, by the kernel.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import torch.distributed as dist

from sidecar.demo.seat import allow_ptrace, die_with


class Progress:
    """Written by the main thread, read by the threads that serve HTTP."""

    def __init__(self) -> None:
        self.steps = 0
        self.at = time.monotonic()

    def page(self) -> str:
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{model_name="gloo"} 2.0\n'
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{model_name="gloo"}} {float(self.steps)}\n'
        )


def serve(progress: Progress, seconds: float) -> int:
    """Start the HTTP server in threads. Returns its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            late = time.monotonic() - progress.at > seconds + 1
            body = progress.page().encode() if self.path == "/metrics" else b""
            self.send_response(503 if late and self.path == "/health" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http.server_port


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(64, 64) @ torch.ones(64, 64)
        time.sleep(0.01)  # two cores are all there is


def train_step(seconds: float) -> None:
    compute(seconds)
    dist.all_reduce(torch.ones(8))


def main(folder: Path, seconds: float) -> None:
    die_with(0)
    # torchrun's agent sends it to the others 4 ms after a death (seen), as often as not before they are frozen.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    allow_ptrace()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    progress = Progress()
    port = serve(progress, seconds) if rank == 0 else 0
    while True:
        if rank == 1 and (folder / "block").exists():
            wait_for_a_lock()
        if rank == 2 and (folder / "raise").exists():
            compute(seconds / 2)  # the others are through with the last collective, and do not notice before the next
            raise RuntimeError("told to raise")
        train_step(seconds)
        progress.steps += 1
        progress.at = time.monotonic()
        if progress.steps == 1:
            partial = folder / f"rank{rank}.partial"
            partial.write_text(json.dumps({"pid": os.getpid(), "port": port}))
            partial.rename(folder / f"rank{rank}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
