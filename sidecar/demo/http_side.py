"""The HTTP server of a stand-in engine: health and metrics under the engine's real names and with its habits.

SGLang (its `http_server.py`): the health check asks the ranks for a token and says 503 where none comes in time. Its
`prompt_tokens_total` and `generation_tokens_total` rise when a request ends (`observe_one_finished_request`);
`realtime_tokens_total`, in newer versions, and the count of inter-token latencies rise meanwhile.
vLLM (its `api_server.py`): /health is 200 until the engine core has ended; metrics are the core's last ones.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sidecar.demo.options import Options
from sidecar.demo.traffic import Numbers, Traffic


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class HttpSide:
    """Serves on `listener`, a bound socket, from `start` to `close`."""

    def __init__(self, listener: socket.socket, options: Options, traffic: Traffic) -> None:
        self.port: int = listener.getsockname()[1]
        routes = _routes(options, traffic)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = routes.get(self.path.partition("?")[0], lambda: (404, b""))()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True  # whoever asked did not wait for the answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = _Server(("127.0.0.1", self.port), Handler, bind_and_activate=False)
        self._http.socket.close()
        self._http.socket = listener
        self._open = False

    def start(self) -> None:
        """Listen. Until now a connection is refused."""
        self._http.server_activate()
        self._open = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), name="uvicorn", daemon=True).start()

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        if self._open:
            self._open = False
            self._http.shutdown()
            self._http.server_close()


def _routes(options: Options, traffic: Traffic) -> dict[str, Callable[[], tuple[int, bytes]]]:
    def generate() -> tuple[int, bytes]:
        time.sleep(min(options.health_seconds, options.health_limit))
        left = options.health_limit - options.health_seconds
        return (200 if left > 0 and traffic.ranks_answer(left) else 503), b""

    def health() -> tuple[int, bytes]:
        return (503 if traffic.dead else 200), b""

    if options.engine == "sglang":
        routes = {"/health": health if options.plain_health else generate, "/health_generate": generate}
    else:
        routes = {"/health": health}
    if options.metrics and options.engine != "generic":
        page = _sglang if options.engine == "sglang" else _vllm
        routes["/metrics"] = lambda: (200, page(traffic.numbers).encode())
    return routes


def _family(name: str, kind: str, text: str, *samples: tuple[str, float]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    return "\n".join([*lines, *(f"{name}{labels} {float(value)}" for labels, value in samples)]) + "\n"


def _histogram(name: str, text: str, labels: str, count: int, each: float) -> str:
    bounds = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
    buckets = [(f'_bucket{{{labels},le="{bound}"}}', count if each <= bound else 0) for bound in bounds]
    ends = [
        (f'_bucket{{{labels},le="+Inf"}}', count),
        (f"_count{{{labels}}}", count),
        (f"_sum{{{labels}}}", count * each),
    ]
    return _family(name, "histogram", text, *buckets, *ends)


def _sglang(numbers: Numbers) -> str:
    plain = 'model_name="stand-in/8b"'
    labels = f'engine_type="unified",{plain},pp_rank="0",tp_rank="0"'
    busy = numbers.running
    return "".join([
        _family("sglang:num_running_reqs", "gauge", "The number of running requests.", (f"{{{labels}}}", busy)),
        _family("sglang:num_queue_reqs", "gauge", "The number of requests in the waiting queue.",
                (f"{{{labels}}}", numbers.waiting)),
        _family("sglang:token_usage", "gauge", "The token usage.", (f"{{{labels}}}", min(1.0, busy / 100))),
        _family("sglang:gen_throughput", "gauge", "The generation throughput (token/s).",
                (f"{{{labels}}}", 25.0 * busy)),
        _family("sglang:realtime_tokens_total", "counter", "Total number of tokens processed in realtime.",
                (f'{{{labels},mode="prefill_compute"}}', numbers.prefilled),
                (f'{{{labels},mode="decode"}}', numbers.decoded)),
        _family("sglang:prompt_tokens_total", "counter", "Number of prefill tokens processed.",
                (f"{{{plain}}}", 100 * numbers.finished)),
        _family("sglang:generation_tokens_total", "counter", "Number of generation tokens processed.",
                (f"{{{plain}}}", 10 * numbers.finished)),
        _family("sglang:num_requests_total", "counter", "Number of requests processed.",
                (f"{{{plain}}}", numbers.finished)),
        _histogram("sglang:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", plain,
                   numbers.decoded, 0.04),
    ])  # fmt: skip


def _vllm(numbers: Numbers) -> str:
    labels = 'engine="0",model_name="stand-in/8b"'
    return "".join([
        _family("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.",
                (f"{{{labels}}}", numbers.running)),
        _family("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.",
                (f"{{{labels}}}", numbers.waiting)),
        _family("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.",
                (f"{{{labels}}}", min(1.0, numbers.running / 100))),
        _family("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.",
                (f"{{{labels}}}", numbers.prefilled)),
        _family("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.",
                (f"{{{labels}}}", numbers.decoded)),
        _family("vllm:request_success_total", "counter", "Count of successfully processed requests.",
                (f'{{{labels},finished_reason="stop"}}', numbers.finished),
                (f'{{{labels},finished_reason="length"}}', 0)),
        _histogram("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", labels,
                   numbers.steps, float(numbers.running)),
    ])  # fmt: skip
