"""A real `rankguard webhook` for tests: a process of its own, asked over real TLS, never left over."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonpatch
from cryptography import x509
from sidecar_process import eventually

from sidecar.webhook.certificates.authority import make_ca, make_server
from sidecar.webhook.certificates.pair import Pair

HOST = "rankguard-webhook.rankguard.svc"  # as the API server calls it


def certificates(folder: Path, lifetime: timedelta = timedelta(days=1)) -> Pair:
    """A CA, a server's certificate and its key, as files; the pair that is to be served."""
    now = datetime.now(UTC)
    ca = make_ca(now, timedelta(days=2))
    pair = make_server(ca, [HOST], now, lifetime)
    for name, data in (("ca.crt", ca.chain), ("tls.crt", pair.chain), ("tls.key", pair.key)):
        (folder / name).write_bytes(data)
    return pair


def review(pod: Any, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "inference",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def pod(label: str | None = "true", **metadata: Any) -> dict[str, Any]:
    """One that asks for a GPU, as a ReplicaSet makes it."""
    labels = {"app": "sglang"} | ({"rankguard.dev/inject": label} if label is not None else {})
    owner = {
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "sglang-7d9c6b5f4d", "uid": "u-1", "controller": True,
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "sglang-7d9c6b5f4d-", "labels": labels, "ownerReferences": [owner], **metadata},
        "spec": {
            "containers": [
                {
                    "name": "sglang",
                    "image": "lmsysorg/sglang:v0.5.0",
                    "command": ["python3", "-m", "sglang.launch_server"],
                    "env": [{"name": f"E{n}", "value": str(n)} for n in range(10)],
                    "resources": {"limits": {"nvidia.com/gpu": "8"}},
                }
            ]
        },
    }


class Webhook:
    """Use as a context manager. Files of `certificates` are in `folder`, unless other `arguments` say `--certificate`.
    Its log is JSON, read as it comes.
    """

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None, delay: str = "0") -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self.noise: list[str] = []
        own = [] if "--certificate" in arguments else [
            "--cert-file", str(folder / "tls.crt"), "--key-file", str(folder / "tls.key"),
        ]  # fmt: skip
        argv = [
            sys.executable, "-W", "error", "-m", "sidecar", "webhook", "--listen", "127.0.0.1:0", "--metrics-listen",
            "127.0.0.1:0", "--log-format", "json", "--shutdown-delay", delay, *own, *arguments,
        ]  # fmt: skip
        hidden = ("RANKGUARD_", "KUBERNETES_", "POD_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clean | (env or {}),
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Webhook:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end()
        if kind is None:
            assert not self.noise, self.noise
            assert not self.events("a bug"), self.lines

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            try:
                self.lines.append(json.loads(raw))
            except ValueError:
                self.noise.append(raw.decode(errors="replace"))

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self._reader.join(20)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["event"].startswith(event)]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None or len(self.events(event)) >= count, (self.lines, self.noise)
            return self.events(event) if len(self.events(event)) >= count else []

        return list(eventually(found, f"{event!r} in {self.lines} {self.noise}", 60))[-1]

    def ports(self) -> tuple[int, int]:
        line = self.wait_for("serving")
        return int(line["address"].rpartition(":")[2]), int(line["metrics"].rpartition(":")[2])

    def ready(self) -> Webhook:
        eventually(lambda: self.plain("/readyz").status_code == 200, "ready", 60)
        return self

    def plain(self, path: str) -> httpx.Response:
        # `verify`: otherwise each client reads a hundred CA certificates first, for a port without TLS.
        with httpx.Client(trust_env=False, timeout=20, verify=False) as client:
            return client.get(f"http://127.0.0.1:{self.ports()[1]}{path}")

    def metric(self, text: str) -> float:
        found = re.search(rf"^{re.escape(text)} (\S+)$", self.plain("/metrics").text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def connect(self, ca: bytes | None = None) -> ssl.SSLSocket:
        """A connection as the API server makes it. Raises `ssl.SSLCertVerificationError`."""
        trusted = (ca or (self.folder / "ca.crt").read_bytes()).decode()
        context = ssl.create_default_context(cadata=trusted)
        raw = socket.create_connection(("127.0.0.1", self.ports()[0]), 20)
        try:
            return context.wrap_socket(raw, server_hostname=HOST)
        except BaseException:
            raw.close()
            raise

    def served(self, ca: bytes | None = None) -> bytes:
        """The certificate that a new handshake gets, in PEM."""
        with self.connect(ca) as connection:
            found = connection.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).encode()

    def post(self, body: bytes, ca: bytes | None = None, path: str = "/mutate") -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own."""
        with self.connect(ca) as connection:
            connection.sendall(request(body, path))
            return answer_on(connection)

    def ask(self, found: dict[str, Any], ca: bytes | None = None) -> dict[str, Any]:
        """The response in the answer to a review."""
        status, data = self.post(json.dumps(found).encode(), ca)
        assert status == 200, data
        answer = json.loads(data)
        assert answer["kind"] == "AdmissionReview"
        assert answer["apiVersion"] == found["apiVersion"]
        assert answer["response"]["uid"] == found["request"]["uid"]
        assert answer["response"]["allowed"] is True
        return dict(answer["response"])


def request(body: bytes, path: str = "/mutate", said: int | None = None) -> bytes:
    length = len(body) if said is None else said
    head = f"POST {path}?timeout=5s HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {length}\r\n\r\n".encode() + body


def answer_on(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """Reads one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(body) < length:
        chunk = connection.recv(65536)
        assert chunk, body
        body += chunk
    return int(head.split()[1]), body


def patched(response: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The pod as the API server goes on with it."""
    if "patch" not in response:
        return before
    assert response["patchType"] == "JSONPatch"
    return dict(jsonpatch.apply_patch(before, base64.b64decode(response["patch"]).decode()))


def containers(found: dict[str, Any]) -> list[str]:
    spec = found["spec"]
    return [each["name"] for each in [*spec.get("initContainers", []), *spec["containers"]]]


def end_of(pem: bytes) -> datetime:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc
