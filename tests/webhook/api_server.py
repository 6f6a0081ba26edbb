"""An API server as far as the webhook uses one: HTTPS with a CA of its own, objects with resourceVersions, conflicts,
JSON patches with tests, watches, Events; and every way of failing.
"""

from __future__ import annotations

import copy
import json
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonpatch

from sidecar.webhook.certificates.authority import make_ca, make_server

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApiServer:
    """`objects` by path. `fault(method, path)` may raise `Refusal`, or wait: it is called before every answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], None] = lambda method, path: None
        self.released = threading.Event()
        self._changed = threading.Condition()
        self._history: list[tuple[str, str, dict[str, Any]]] = []
        self._version = 0
        now = datetime.now(UTC)
        ca = make_ca(now, timedelta(days=1))
        pair = make_server(ca, ["localhost"], now, timedelta(days=1))
        (folder / "token").write_text("t0ken")
        (folder / "ca.crt").write_bytes(ca.chain)
        (folder / "api.pem").write_bytes(pair.chain + pair.key)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._handle(self, "GET")

            def do_POST(self) -> None:
                outer._handle(self, "POST")

            def do_PUT(self) -> None:
                outer._handle(self, "PUT")

            def do_PATCH(self) -> None:
                outer._handle(self, "PATCH")

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away

        self.server = Server(("localhost", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "api.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def environ(self) -> dict[str, str]:
        return {
            "KUBERNETES_SERVICE_HOST": "localhost",
            "KUBERNETES_SERVICE_PORT": str(self.server.server_address[1]),
        }

    def close(self) -> None:
        self.released.set()
        with self._changed:
            self._changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)

    # What a test does to it.

    def put(self, path: str, found: dict[str, Any]) -> None:
        """As by somebody else: whatever was there is replaced."""
        with self._changed:
            self._store("MODIFIED" if path in self.objects else "ADDED", path, copy.deepcopy(found))

    def get(self, path: str) -> dict[str, Any] | None:
        with self._changed:
            return copy.deepcopy(self.objects.get(path))

    def namespace(self, name: str, **labels: str) -> None:
        self.put(f"/api/v1/namespaces/{name}", {"kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def events(self) -> list[dict[str, Any]]:
        with self._changed:
            return [found for path, found in self.objects.items() if "/events/" in path]

    def hangs(self, *_: str) -> None:
        self.released.wait(60)

    # What it does.

    def _store(self, kind: str, path: str, found: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        found.setdefault("metadata", {})["resourceVersion"] = str(self._version)
        self.objects[path] = found
        self._history.append((kind, path, copy.deepcopy(found)))
        self._changed.notify_all()
        return found

    def _handle(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        url = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        self.calls.append((method, handler.path))
        try:
            if handler.headers["authorization"] != "bearer t0ken":
                raise Refusal(401, "Unauthorized")
            self.fault(method, handler.path)
            if method == "GET" and "watch=1" in url.query:
                self._watch(handler, url.path, url.query)
                return
            with self._changed:
                status, found = self._answer(method, url.path, body)
        except Refusal as refusal:
            status, found = refusal.status, {"kind": "Status", "message": str(refusal), "code": refusal.status}
        data = json.dumps(found).encode()
        handler.send_response(status)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if method == "POST":
            name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{self._version}"
            body["metadata"]["name"] = name
            if f"{path}/{name}" in self.objects:
                raise Refusal(409, f"{name} already exists")
            return 201, self._store("ADDED", f"{path}/{name}", body)
        old = self.objects.get(path)
        if old is None:
            raise Refusal(404, f"{path} not found")
        if method == "PUT":
            if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "the object has been modified")
            return 200, self._store("MODIFIED", path, body)
        if method == "PATCH":
            try:
                patched = jsonpatch.apply_patch(copy.deepcopy(old), body)
            except jsonpatch.JsonPatchTestFailed as error:
                raise Refusal(422, "the test failed") from error
            return 200, self._store("MODIFIED", path, patched)
        return 200, old

    def _watch(self, handler: BaseHTTPRequestHandler, path: str, query: str) -> None:
        selector = parse_qs(query).get("fieldSelector", [""])[0]
        only = f"{path}/{selector.partition('=')[2]}" if selector else ""

        def wanted(at: str) -> bool:
            return at == only if only else at.rpartition("/")[0] == path

        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        with self._changed:
            seen = len(self._history)
            batch = [("ADDED", at, found) for at, found in self.objects.items() if wanted(at)]
        while not self.released.is_set():
            for kind, at, found in batch:
                if wanted(at):
                    line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
                    handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            with self._changed:
                while len(self._history) == seen and not self.released.is_set():
                    self._changed.wait()
                batch = self._history[seen:]
                seen += len(batch)
