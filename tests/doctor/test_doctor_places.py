"""The volume, the pod's deadlines and its API server, and the PID namespace: each as it can be found in a pod."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doctor_rig import USER, check, nothing, process, result, root_with, statuses, ways


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def tmpfs(where: Path, options: str) -> Iterator[Path]:
    where.mkdir()
    call("mount", "-t", "tmpfs", "-o", options, "none", str(where))
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=False)


# -- the volume -------------------------------------------------------------------------------------------------------


def test_a_volume_that_takes_files(tmp_path: Path) -> None:
    """The folder is made, as `run` makes it, and nothing is left in it."""
    folder = tmp_path / "deep" / "er"
    found = check(folder, **nothing())
    assert statuses(found, "volume") == ["ok"]
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_an_ended_check_left_behind_goes(tmp_path: Path) -> None:
    (tmp_path / ".rankguard-doctor").write_text("half")
    assert statuses(check(tmp_path, **nothing()), "volume") == ["ok"]
    assert list(tmp_path.iterdir()) == []


def test_no_link_leads_the_check_elsewhere(tmp_path: Path) -> None:
    """A volume can be shared with an engine that is not trusted."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / ".rankguard-doctor").symlink_to(precious)
    check(volume, **nothing())
    assert precious.read_text() == "kept"


def test_something_else_in_its_place(tmp_path: Path) -> None:
    """Required: the exit status says so."""
    (tmp_path / "file").write_text("")
    found = check(tmp_path / "file", **nothing())
    assert result(found, "volume").fails
    assert "EEXIST" in result(found, "volume").seen
    assert statuses(found, "volume_room") == ["unknown"]


@pytest.mark.root
def test_a_volume_that_is_read_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "volume", "ro") as volume:
        found = check(volume, **nothing())
    assert result(found, "volume").fails
    assert "EROFS" in result(found, "volume").seen


@pytest.mark.root
def test_a_volume_without_room(tmp_path: Path) -> None:
    """Written while there is room for a few bytes, and told that large evidence will not be kept; full, it fails."""
    with tmpfs(tmp_path / "volume", "size=32m") as volume:
        little = check(volume, **nothing())
        enough = check(volume, **{**nothing(), "dump_free_floor": 0, "captures": ("process",)})
        with contextlib.suppress(OSError), (volume / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * (1 << 20)):
                pass
        full = check(volume, **nothing())
    assert statuses(little, "volume", "volume_room") == ["ok", "missing"]
    assert not little.fails
    assert statuses(enough, "volume_room") == ["missing"]  # 32 MiB hold no large evidence either
    assert result(full, "volume").fails
    assert "ENOSPC" in result(full, "volume").seen


@pytest.mark.root
def test_a_folder_of_roots_and_another_user(tmp_path: Path) -> None:
    """What a non-root sidecar finds on a hostPath or below subPathExpr; the remedy is the volume that it can write."""
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    found = check(tmp_path, user=USER, **nothing())
    volume = result(found, "volume")
    assert volume.fails
    assert "EACCES" in volume.seen
    assert "subPathExpr" in volume.seen
    assert ways(volume)[0]["volumes"][0]["emptyDir"] == {"sizeLimit": "20Gi"}
    assert ways(volume)[0]["containers"][0]["volumeMounts"][0]["mountPath"] == str(tmp_path)
    assert ways(volume)[1]["securityContext"]["runAsUser"] == 0
    assert ways(volume)[1]["securityContext"]["capabilities"]["add"] == ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]


@pytest.mark.root
def test_a_volume_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    """It is told as hung, with what hung; everything else is told as ever; and what was left behind ends with it."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
    call("mount", "-o", "loop", str(image), str(volume))
    try:
        call("fsfreeze", "--freeze", str(volume))
        try:
            with process() as target:
                found = check(volume, target, seconds=6.0)
        finally:
            call("fsfreeze", "--unfreeze", str(volume))
    finally:
        call("umount", "--lazy", str(volume))
    assert statuses(found, "volume", "volume_room") == ["hung", "hung"]
    assert f"write and fsync a file in {volume}" in result(found, "volume").seen
    assert result(found, "volume").fails
    assert statuses(found, "signals", "ptrace", "pidfd") == ["ok", "ok", "ok"]


# -- the PID namespace ------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_pod_that_does_not_share_its_process_namespace(tmp_path: Path) -> None:
    """Alone, without even a pause process, it has nothing to watch: that fails, with the one line of YAML."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    beside = [*apart, "sh", "-c", 'sleep 600 >/dev/null 2>&1 & "$@"; exit $?', "sh"]
    found = check(tmp_path, prefix=apart, in_pod=True, **nothing())
    namespace = result(found, "process_namespace")
    assert namespace.fails
    assert ways(namespace) == [{"shareProcessNamespace": True}]
    # A wrapped engine that is not known by its title is somebody, and on a host nothing follows from being alone.
    assert statuses(check(tmp_path, prefix=beside, in_pod=True, **nothing()), "process_namespace") == ["unknown"]
    assert statuses(check(tmp_path, prefix=apart, **nothing()), "process_namespace") == ["unknown"]


# -- the grace period and the API server ------------------------------------------------------------------------------


def test_a_grace_period_that_is_too_short(tmp_path: Path) -> None:
    """It must hold the hook, --liveness-deadline and 10 s, and something for the engine. Else: what would be right."""
    short = check(tmp_path, termination_grace_period=70.0, **nothing())
    long = check(tmp_path, termination_grace_period=71.0, **nothing())
    quick = check(tmp_path, termination_grace_period=70.0, liveness_deadline=30.0, **nothing())
    assert statuses(short, "grace_period") == ["missing"]
    assert ways(result(short, "grace_period"))[0] == {"terminationGracePeriodSeconds": 120}
    assert statuses(long, "grace_period") == ["ok"]
    assert "leaves 1 s" in result(long, "grace_period").seen
    assert statuses(quick, "grace_period") == ["ok"]
    assert not short.fails


def test_a_grace_period_that_nobody_knows(tmp_path: Path) -> None:
    assert statuses(check(tmp_path, in_pod=True, **nothing()), "grace_period") == ["unknown"]
    assert statuses(check(tmp_path, **nothing()), "grace_period", "api_access") == ["not_applicable"] * 2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA and a server's certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for words in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2"],
        ["req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kubernetes"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out",
         "server.crt", "-days", "2", "-extfile", "ext"],
    ):  # fmt: skip
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    return folder


class Api:
    """An API server over TLS. `answer` gives status and body; `hang` keeps everybody waiting until the end."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.answer: Callable[[], tuple[int, Any]] = lambda: (200, {"kind": "Pod"})
        self.hang = False
        self.seen: list[tuple[str, str | None]] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.review: Callable[[dict[str, str]], Any] = lambda _: {"status": {"allowed": True}}
        self.over = threading.Event()
        self.folder = folder
        claims = base64.urlsafe_b64encode(json.dumps({"sub": "system:serviceaccount:models:watcher"}).encode())
        self.token = f"e30.{claims.decode().rstrip('=')}.x"
        (folder / "token").write_text(self.token + "\n")
        (folder / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers["authorization"]))
                if outer.hang:
                    outer.over.wait(60)
                    return
                status, body = outer.answer()
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, asked["kind"], asked["spec"]["resourceAttributes"]))
                data = json.dumps(outer.review(asked["spec"]["resourceAttributes"])).encode()
                self.send_response(201)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def checked(self, dumps: Path, seconds: float = 30.0, **settings: Any) -> Any:
        port = str(self.server.server_address[1])
        return check(
            dumps, seconds=seconds, order={"account": str(self.folder)},
            env={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port, "HTTPS_PROXY": "http://no/"},
            **{**nothing(), "pod_namespace": "models", "pod_name": "engine-0", **settings},
        )  # fmt: skip


@pytest.fixture
def api(tmp_path: Path, certificates: Path) -> Iterator[Api]:
    account = tmp_path / "account"
    account.mkdir()
    server = Api(account, certificates)
    try:
        yield server
    finally:
        server.close()


def test_a_pod_that_may_be_read(api: Api, tmp_path: Path) -> None:
    """Asked with the token for the pod itself; its grace period is taken from there, and beats what was told."""
    api.answer = lambda: (200, {"kind": "Pod", "spec": {"terminationGracePeriodSeconds": 30}})
    found = api.checked(tmp_path, termination_grace_period=600.0)
    assert api.seen == [("/api/v1/namespaces/models/pods/engine-0", f"Bearer {api.token}")]
    assert statuses(found, "api_access", "grace_period") == ["ok", "missing"]
    assert "the pod has 30 s" in result(found, "grace_period").seen


@pytest.mark.parametrize(
    ("probes", "status", "seen"),
    [
        ({}, "not_applicable", "answered at once"),
        ({"livenessProbe": {"terminationGracePeriodSeconds": 75}}, "ok", "a probe of the engine has 75 s"),
        ({"livenessProbe": {"terminationGracePeriodSeconds": 70}}, "missing", "a probe of the engine has 70 s"),
        ({"livenessProbe": {"terminationGracePeriodSeconds": 75}, "startupProbe": {}}, "missing", "the pod has 30 s"),
    ],
)
def test_a_probes_own_grace_period_governs(api: Api, tmp_path: Path, probes: dict, status: str, seen: str) -> None:
    """What a failed probe leads to is bounded by the probe's value, and by the pod's only where it has none."""
    hook = {"preStop": {"httpGet": {"path": "/hooks/prestop", "port": 21400}}}
    spec = {"terminationGracePeriodSeconds": 30, "containers": [{"name": "engine", "lifecycle": hook, **probes}]}
    api.answer = lambda: (200, {"kind": "Pod", "spec": spec})
    found = api.checked(tmp_path)
    assert statuses(found, "grace_period") == [status]
    assert seen in result(found, "grace_period").seen


def test_a_pod_that_may_not_be_read(api: Api, tmp_path: Path) -> None:
    """The remedy names the service account that the token is of; nothing fails, since all works without it."""
    api.answer = lambda: (403, {"kind": "Status"})
    found = api.checked(tmp_path)
    assert statuses(found, "api_access") == ["missing"]
    assert not found.fails
    text = result(found, "api_access").remedies[0].yaml
    assert "{kind: ServiceAccount, name: watcher, namespace: models}" in text
    assert "verbs: [get]" in text
    assert api.token not in json.dumps([one.seen for one in found.results]) + text


EVERYTHING = {
    "kubernetes_annotation": True, "after_kill": "delete-pod", "fleet_switch": "rankguard-system/fleet",
}  # fmt: skip


def test_what_the_settings_ask_for_is_allowed(api: Api, tmp_path: Path) -> None:
    """The server is asked for its opinion of each right, by the object's name where there is one; nothing is made."""
    found = api.checked(tmp_path, **EVERYTHING)
    assert statuses(found, "api_rights") == ["ok"]
    assert {(path, kind) for path, kind, _ in api.asked} == {
        ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "SelfSubjectAccessReview")
    }
    assert [right for _, _, right in api.asked] == [
        {"verb": "create", "resource": "events", "namespace": "models"},
        {"verb": "patch", "resource": "pods", "namespace": "models", "name": "engine-0"},
        {"verb": "delete", "resource": "pods", "namespace": "models", "name": "engine-0"},
        {"verb": "get", "resource": "configmaps", "namespace": "rankguard-system", "name": "fleet"},
    ]
    assert statuses(api.checked(tmp_path, kubernetes_events=False), "api_rights") == ["not_applicable"]


def test_what_the_settings_ask_for_is_refused(api: Api, tmp_path: Path) -> None:
    """The remedy is a role with what is missing and nothing else, in each namespace, for the account of the token."""
    api.review = lambda right: {"status": {"allowed": right["verb"] == "create"}}
    one = result(api.checked(tmp_path, **EVERYTHING), "api_rights")
    assert (one.status, one.seen) == ("missing", "refused: patch pods, delete pods, get configmaps")
    (remedy,) = one.remedies
    documents = list(yaml.safe_load_all(remedy.yaml))
    assert [(d["kind"], d["metadata"]["namespace"]) for d in documents] == [
        ("Role", "models"), ("RoleBinding", "models"),
        ("Role", "rankguard-system"), ("RoleBinding", "rankguard-system"),
    ]  # fmt: skip
    assert [rule["verbs"] for rule in documents[0]["rules"]] == [["patch"], ["delete"]]
    assert documents[2]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": ["fleet"]}
    ]
    account = {"kind": "ServiceAccount", "name": "watcher", "namespace": "models"}
    assert [documents[i]["subjects"] for i in (1, 3)] == [[account]] * 2


@pytest.mark.parametrize("answer", [{}, [], {"status": {"allowed": None}}])
def test_an_opinion_that_is_none(api: Api, tmp_path: Path, answer: Any) -> None:
    api.review = lambda _: answer
    assert statuses(api.checked(tmp_path), "api_rights") == ["unknown"]


def test_an_api_server_that_is_silent(api: Api, tmp_path: Path) -> None:
    """The check ends, as hung, and the others are told."""
    api.hang = True
    found = api.checked(tmp_path, seconds=5.0, in_pod=True)
    assert statuses(found, "api_access", "volume") == ["hung", "ok"]


def test_a_token_and_no_name(api: Api, tmp_path: Path) -> None:
    found = api.checked(tmp_path, pod_name="")
    assert statuses(found, "api_access") == ["missing"]
    assert "fieldPath: metadata.name" in result(found, "api_access").remedies[0].yaml
    assert api.seen == []


def test_a_server_that_is_not_the_clusters(api: Api, tmp_path: Path) -> None:
    """Its certificate is held against the service account's CA, and it gets no token otherwise."""
    (api.folder / "ca.crt").write_bytes((api.folder / "ca.crt").read_bytes()[:0])
    found = api.checked(tmp_path)
    assert statuses(found, "api_access") == ["missing"]
    assert api.seen == []


@pytest.mark.root
def test_a_kernel_that_has_no_pidfds_is_no_failure(tmp_path: Path) -> None:
    """With every newer way masked, exit statuses come from the target's stat, where it may be looked at."""
    masked = ("pidfd", "thread_pidfd", "pidfd_hup", "pidfd_info")
    with process(user=USER) as target:
        full = check(tmp_path, target, prefix=root_with("sys_ptrace", "kill"), mask_features=masked)
        less = check(tmp_path, target, prefix=root_with("kill"), mask_features=masked)
    assert statuses(full, "pidfd", "exit_status", "signals") == ["missing", "ok", "ok"]
    assert statuses(less, "exit_status", "signals") == ["missing", "ok"]
    assert not full.fails
    assert os.path.isdir(tmp_path)
