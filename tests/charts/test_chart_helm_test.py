"""`helm test`: the script of its pod, against a real server over TLS in the API server's place."""

from __future__ import annotations

import copy
import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helm_chart import of_kind, render, the

from sidecar.inject.options import Options
from sidecar.inject.pod import Place, inject

SERVER = "127.0.0.1"


def certificate(folder: Path) -> Path:
    """A certificate that is its own CA, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(SERVER))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.crt").write_bytes(pem)
    (folder / "server.pem").write_bytes(private + pem)
    return folder / "server.pem"


class ApiServer:
    """Answers each POST with what `answers` gives for the pod, in their order, the last one again and again."""

    def __init__(self, folder: Path, answers: list[Any]) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pod = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, self.headers["Authorization"], pod))
                answer = answers[min(len(outer.asked), len(answers)) - 1]
                status, body = answer(copy.deepcopy(pod))
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Warning", '299 - "from the API server"')
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((SERVER, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def injected(pod: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 201, inject(pod, Options(), Place(namespace="default", enforce="restricted")).pod


def skipped(pod: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    pod["metadata"]["annotations"]["rankguard.dev/skipped"] = "HostPID: the pod sees the node's processes"
    return 201, pod


def untouched(pod: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 201, pod


def forbidden(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 403, {"kind": "Status", "message": "pods is forbidden"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


def ran(account: Path, answers: list[Any], seconds: int) -> tuple[subprocess.CompletedProcess[str], ApiServer]:
    """The pod's command, with what the kubelet would give it."""
    server = ApiServer(account, answers)
    try:
        (container,) = the(render(), "Pod", "-test")["spec"]["containers"]
        command = [sys.executable, *container["command"][1:], *container["args"], str(account), str(seconds)]
        environment = {"KUBERNETES_SERVICE_HOST": SERVER, "KUBERNETES_SERVICE_PORT": str(server.port)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
        return done, server
    finally:
        server.close()


def test_a_pod_that_gets_its_sidecar_is_a_pass(account):
    """Asked in a dry run, with the account's token; the pod is one that our own injection takes."""
    done, server = ran(account, [injected], 60)
    assert (done.returncode, done.stderr) == (0, "")
    ((path, authorization, pod),) = server.asked
    assert path == "/api/v1/namespaces/default/pods?dryRun=All"
    assert authorization == "Bearer secret"
    assert pod["metadata"]["labels"] == {"rankguard.dev/inject": "true"}


def test_it_asks_again_while_the_right_or_the_certificate_is_on_its_way(account):
    done, server = ran(account, [forbidden, untouched, injected], 60)
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == 3


ENDS: dict[str, tuple[Any, str]] = {
    "skipped": (skipped, "HostPID: the pod sees the node's processes"),
    "untouched": (untouched, "nobody was asked, or nobody answered"),
    "forbidden": (forbidden, "the API server answered 403"),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_says_why_it_failed(account, end):
    """And passes on what the API server warned of."""
    answer, words = ENDS[end]
    done, _ = ran(account, [answer], 0)
    assert done.returncode == 1
    assert words in done.stderr
    if end != "forbidden":
        assert "from the API server" in done.stderr


def test_a_server_that_is_not_the_clusters_is_not_believed(account, tmp_path_factory):
    """Else a test that passes would say nothing."""
    other = tmp_path_factory.mktemp("other")
    server = ApiServer(other, [injected])
    try:
        certificate(account)
        (container,) = the(render(), "Pod", "-test")["spec"]["containers"]
        command = [sys.executable, *container["command"][1:], *container["args"], str(account), "0"]
        environment = {"KUBERNETES_SERVICE_HOST": SERVER, "KUBERNETES_SERVICE_PORT": str(server.port)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    finally:
        server.close()
    assert done.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert server.asked == []


def test_its_objects_come_in_order_and_go():
    """Hooks, so they are no part of the release; what gives the right comes before what uses it."""
    hooks = [each for each in render() if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    weights = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in hooks}
    assert sorted(weights, key=weights.__getitem__) == ["ServiceAccount", "Role", "RoleBinding", "Pod"]
    for each in hooks:
        assert "before-hook-creation" in each["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    (rule,) = next(each for each in hooks if each["kind"] == "Role")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}
    assert of_kind(render({"injection": "none"}), "Pod") == []
