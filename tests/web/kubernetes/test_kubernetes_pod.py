"""Our own pod as an API server tells it: a real HTTPS server with a CA of its own, good, bad and silent."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sidecar.log import Log
from sidecar.settings import Settings
from sidecar.web.kubernetes.api import Api
from sidecar.web.kubernetes.pod import PodFacts, PodLook, PodStatus, facts_in, group_in_environment, pod_in

LWS = "leaderworkerset.sigs.k8s.io/"


def pod(kind: str = "PartialObjectMetadata", **metadata: object) -> dict[str, object]:
    return {"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "engine-0", "uid": "u1", **metadata}}


class ApiServer:
    """Answers as `answer(handler)` does. `folder` is the service account's, `environ` what the kubelet sets."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: reply(handler, pod())
        self.seen: list[tuple[str, str | None]] = []
        self.troubles: list[str] = []
        self.released = threading.Event()
        self.folder = folder
        (folder / "token").write_text("t0ken")
        (folder / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers["authorization"]))
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # closing waits for them, and `released` lets them end

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away while it was kept waiting

        self.server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def environ(self) -> dict[str, str]:
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.server.server_address[1]),
        }

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    # Ways to answer.

    def hangs(self, _: BaseHTTPRequestHandler) -> None:
        self.released.wait(60)

    def trickles(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not self.released.wait(0.05):
            handler.wfile.write(b" ")


def reply(handler: BaseHTTPRequestHandler, body: object, status: int = 200) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's certificate for 127.0.0.1 signed by it, and another CA that signed nothing."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}",
                "-days", "2")  # fmt: skip
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kubernetes")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.crt", "-days", "2", "-extfile", "ext")  # fmt: skip
    return folder


@pytest.fixture
def api(tmp_path: Path, certificates: Path) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path, certificates)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def captured_log() -> Iterator[tuple[Log, Callable[[], str]]]:
    read, write = os.pipe()
    try:
        yield Log("web", "text", write), lambda: os.read(read, 65536).decode()
    finally:
        os.close(read)
        os.close(write)


def pod_status(api: ApiServer, log: Log, **named: str) -> PodStatus:
    settings = Settings(service_account_dir=str(api.folder), **named)
    return PodStatus(settings, Api(settings, log, api.troubles.append, api.environ), api.environ)


def looks(api: ApiServer, times: int = 1, warm: bool = True, **settings: str) -> tuple[list[PodLook | None], str, str]:
    """Ask `times` times; then the group that is known, and the log."""
    named = {"pod_namespace": "models", "pod_name": "engine-0", "pod_uid": "u1", **settings}

    async def ask(log: Log) -> tuple[list[PodLook | None], str]:
        status = pod_status(api, log, **named)
        if warm:
            import kubernetes.client.rest
            import kubernetes.config.incluster_config  # noqa: F401 - as `start` does; here the import may be slow
        return [await status.look() for _ in range(times)], status.group

    with captured_log() as (log, said):
        log("begin")
        answers, group = asyncio.run(ask(log))
        return answers, group, said()


def test_a_pod_that_is_deleted(api: ApiServer) -> None:
    """Told apart from one that is not; asked with the token, at the pod's own path."""
    answers = []
    for stamp in (None, "2026-11-20T23:59:59Z"):
        api.answer = lambda handler, stamp=stamp: reply(handler, pod(deletionTimestamp=stamp))
        answers += looks(api)[0]
    assert answers == [PodLook(False), PodLook(True)]
    path, token = api.seen[0]
    assert path == "/api/v1/namespaces/models/pods/engine-0"
    assert token is not None
    assert token.lower() == "bearer t0ken"


def test_the_whole_pod_will_do(api: ApiServer) -> None:
    api.answer = lambda handler: reply(handler, {**pod("Pod", deletionTimestamp="now"), "spec": {}, "status": {}})
    assert looks(api)[0] == [PodLook(True)]


@pytest.mark.parametrize(
    ("status", "body", "because"),
    [
        (403, {"kind": "Status"}, "has no right to"),
        (401, b"", "the token is not taken"),
        (404, {"kind": "Status"}, "status 404"),
        (500, b"oh no", "status 500"),
        (302, b"", "status 302"),
        (200, b"<html>", "is no Pod"),
        (200, b"[" * 100_000, "is no Pod"),
        (200, {"kind": "Pod", "metadata": "none"}, "is no Pod"),
        (200, {"kind": "ConfigMap", "metadata": {}}, "is no Pod"),
        (200, b"\xff\xfe\x00", "is no Pod"),
        (200, b'{"kind": "Pod", "metadata": {}' + b" " * 3_000_000 + b"}", "is no Pod"),
    ],
)
def test_an_answer_that_is_none(api: ApiServer, status: int, body: object, because: str) -> None:
    """Nothing is known, and one line says why, however often it is asked."""
    api.answer = lambda handler: reply(handler, body, status)
    answers, _, log = looks(api, times=2)
    assert answers == [None, None]
    assert because in log
    assert log.count("does not tell about the pod") == 1
    assert api.troubles == ["get_pod"] * 2
    assert "t0ken" not in log


def test_no_http_at_all(api: ApiServer) -> None:
    api.answer = lambda handler: handler.wfile.write(b"\x00\x01garbage\r\n\r\n")
    answers, _, log = looks(api)
    assert answers == [None]
    assert "does not tell" in log


@pytest.mark.parametrize("way", ["hangs", "trickles"])
def test_one_that_takes_for_ever(api: ApiServer, way: str) -> None:
    """Costs the patience and no more, and later calls the same."""
    api.answer = getattr(api, way)
    answers, _, log = looks(api, times=2 if way == "hangs" else 1)
    assert set(answers) == {None}
    assert "does not tell" in log


def test_another_ca(api: ApiServer, certificates: Path) -> None:
    """A server that somebody else's CA vouches for gets no token."""
    (api.folder / "ca.crt").write_bytes((certificates / "other.crt").read_bytes())
    answers, _, log = looks(api)
    assert answers == [None]
    assert api.seen == []
    assert "certificate" in log.lower()


def test_nobody_there(api: ApiServer) -> None:
    api.server.server_close()
    assert looks(api)[0] == [None]


def test_deleted_by_force(api: ApiServer) -> None:
    """A pod that was known and is not there any more, or whose name another one has, is being deleted. A name that was
    never known may be a mistake.
    """
    answers = [(200, pod(labels={LWS + "name": "l", LWS + "group-index": "3"})), (404, {"kind": "Status"})]
    api.answer = lambda handler: reply(handler, *reversed(answers.pop(0)))
    assert looks(api, times=2)[0] == [PodLook(False, "l-3"), PodLook(True, "l-3")]
    api.answer = lambda handler: reply(handler, pod(uid="u2"))
    assert looks(api)[0] == [PodLook(True)]


def test_a_token_that_was_rotated(api: ApiServer) -> None:
    def rotate(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, pod())
        (api.folder / "token").write_text("next\n")

    api.answer = rotate
    assert looks(api, times=2)[0] == [PodLook(False), PodLook(False)]
    assert [str(token).lower() for _, token in api.seen] == ["bearer t0ken", "bearer next"]


@pytest.mark.parametrize("missing", ["token", "name", "host"])
def test_without_a_cluster_nothing_is_imported(api: ApiServer, missing: str) -> None:
    """No token, no name of the pod, no cluster: nobody is asked, and the client is not even loaded."""
    environ = {} if missing == "host" else api.environ
    if missing == "token":
        (api.folder / "token").unlink()
    code = (
        "import asyncio, json, sys\n"
        "from sidecar.log import Log\n"
        "from sidecar.settings import Settings\n"
        "from sidecar.web.kubernetes.api import Api\n"
        "from sidecar.web.kubernetes.pod import PodStatus\n"
        "async def main():\n"
        "    name, folder, environ = sys.argv[1:]\n"
        "    settings = Settings(pod_namespace='n', pod_name=name, service_account_dir=folder)\n"
        "    status = PodStatus(settings, Api(settings, Log('web', 'text'), print, json.loads(environ)))\n"
        "    status.start()\n"
        "    assert await status.look() is None\n"
        "asyncio.run(main())\n"
        "assert 'kubernetes' not in sys.modules\n"
    )
    arguments = ["" if missing == "name" else "p", str(api.folder), json.dumps(environ)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("pod_namespace or pod_name is not set" in done.stderr) == (missing == "name")
    assert api.seen == []


def test_the_first_look_is_taken_at_the_start(api: ApiServer) -> None:
    """It has imported the client and learnt the group, so that a hook whose API server is silent still knows it."""
    api.answer = lambda handler: reply(handler, pod(labels={"jobset.sigs.k8s.io/jobset-name": "train"}))

    async def life(log: Log) -> str:
        status = pod_status(api, log, pod_namespace="models", pod_name="engine-0")
        status.start()
        assert status._warming is not None
        assert await status._warming == PodLook(False, "train")
        api.answer = api.hangs
        assert await status.look() is None
        return status.group

    with captured_log() as (log, _):
        assert asyncio.run(life(log)) == "train"


@pytest.mark.parametrize(
    ("metadata", "group"),
    [
        ({}, ""),
        ({"labels": None}, ""),
        ({"labels": {LWS + "name": "lws", LWS + "group-index": "1"}, "annotations": {LWS + "size": "4"}}, "lws-1"),
        ({"labels": {LWS + "name": "lws", LWS + "group-index": "1"}, "annotations": {LWS + "size": "1"}}, ""),
        ({"labels": {LWS + "name": "lws"}}, "lws"),
        ({"labels": {"jobset.sigs.k8s.io/jobset-name": "train"}}, "train"),
        ({"labels": {"jobset.sigs.k8s.io/jobset-name": "a\nb"}}, ""),
        ({"labels": {"jobset.sigs.k8s.io/jobset-name": 5}}, ""),
    ],
)
def test_groups_in_labels(metadata: dict[str, object], group: str) -> None:
    assert pod_in(pod(**metadata)) == PodLook(False, group)


@pytest.mark.parametrize(
    ("environ", "group"),
    [
        ({}, ""),
        ({"LWS_LEADER_ADDRESS": "lws-0.lws.default", "LWS_GROUP_SIZE": "2"}, "lws-0"),
        ({"LWS_LEADER_ADDRESS": "lws-0.lws.default"}, "lws-0"),
        ({"LWS_LEADER_ADDRESS": "lws-0.lws.default", "LWS_GROUP_SIZE": "1"}, ""),
        ({"LWS_LEADER_ADDRESS": "../etc"}, ""),
    ],
)
def test_groups_in_the_environment(environ: dict[str, str], group: str) -> None:
    assert group_in_environment(environ) == group


ID, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("status", "spec", "facts"),
    [
        ({}, {}, PodFacts("u1")),
        (None, "none", PodFacts("u1")),
        (
            {
                "initContainerStatuses": [{"name": "rankguard", "containerID": f"containerd://{OTHER}"}],
                "containerStatuses": [{"name": "engine", "containerID": f"cri-o://{ID}"}, {"name": "new"}, 5],
            },
            {},
            PodFacts("u1", {OTHER: "rankguard", ID: "engine"}),
        ),
        ({"containerStatuses": [{"name": "a\nb", "containerID": f"docker://{ID}"}]}, {}, PodFacts("u1")),
        (
            {},
            {
                "initContainers": [
                    {"restartPolicyRules": [
                        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [86, "x"]}},
                        {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
                        {"action": "RestartAllContainers"},
                    ]}
                ]
            },
            PodFacts("u1", {}, frozenset({86})),
        ),
    ],
)  # fmt: skip
def test_what_the_whole_pod_says(status: object, spec: object, facts: PodFacts) -> None:
    """Names by container id, whatever the runtime, and the exit codes that restart all containers."""
    assert facts_in({**pod("Pod"), "status": status, "spec": spec}) == facts


def test_the_setting_names_the_group_where_nobody_else_does(api: ApiServer) -> None:
    assert looks(api, pod_group="mine")[1] == "mine"
