"""An engine of two ranks with the CUDA driver's stand-in, for a container: it serves until /control/hang exists.

    python3 /control/doubles_engine.py

Then its health check says 503 and no token comes any more, though requests run; the ranks live.
"""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

served = 0


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        global served
        hangs = os.path.exists("/control/hang")
        if self.path == "/metrics":
            served += 0 if hangs else 10
            status, body = 200, f"sglang:num_running_reqs 1\nsglang:generation_tokens_total {served}\n"
        else:
            status, body = (503, "no\n") if hangs else (200, "ok\n")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


ranks = [
    subprocess.Popen([sys.executable, "-m", "sidecar.demo.cuda_double", "--title", f"sglang::scheduler_TP{n}"])
    for n in range(2)
]
ThreadingHTTPServer(("127.0.0.1", 8000), Pages).serve_forever()
