"""An engine's HTTP side with a page of metrics of a real size: `engine_http LINES`.

Prints `port N`, then each path that was asked for. The page has SGLang's names, of which Rankguard wants some twenty
lines; the rest is buckets of histograms, as in a real one. Its counters rise with each reading, and two requests run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

_LABELS = 'engine_type="unified",model_name="meta-llama/Llama-3.1-8B-Instruct",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
_BUCKETS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)


def page(lines: int, read: int) -> bytes:
    made = list(_few(read))
    number = 0
    while len(made) < lines:
        made += _histogram(f"sglang:stage_{number}_latency_seconds", read)
        number += 1
    return ("\n".join(made) + "\n").encode()


def _few(read: int) -> Iterator[str]:
    for name, value in (
        ("num_running_reqs", 2), ("num_queue_reqs", 0), ("num_used_tokens", 4096 + read), ("token_usage", 0.12),
        ("gen_throughput", 88.5), ("cache_hit_rate", 0.4), ("num_retracted_reqs", 0), ("num_grammar_queue_reqs", 0),
    ):  # fmt: skip
        yield from (f"# HELP sglang:{name} About it.", f"# TYPE sglang:{name} gauge",
                    f"sglang:{name}{{{_LABELS}}} {float(value)}")  # fmt: skip
    for name in ("prompt_tokens_total", "generation_tokens_total", "num_requests_total"):
        yield from (f"# HELP sglang:{name} About it.", f"# TYPE sglang:{name} counter",
                    f"sglang:{name}{{{_LABELS}}} {float(1000 + 900 * read)}")  # fmt: skip
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        yield from _histogram(f"sglang:{name}", read)


def _histogram(name: str, read: int) -> list[str]:
    edges = [str(float(edge)) for edge in _BUCKETS] + ["+Inf"]
    return [
        f"# HELP {name} About it.",
        f"# TYPE {name} histogram",
        *(f'{name}_bucket{{le="{edge}",{_LABELS}}} {float(10 * read)}' for edge in edges),
        f"{name}_count{{{_LABELS}}} {float(10 * read)}",
        f"{name}_sum{{{_LABELS}}} {3.5 * read}",
    ]


def main() -> None:
    lines = int(sys.argv[1])
    read = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal read
            read += self.path == "/metrics"
            body = page(lines, read) if self.path == "/metrics" else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            sys.stdout.write(f"{self.path}\n")
            sys.stdout.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
