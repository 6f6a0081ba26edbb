"""Admission over real TLS: whatever comes, a pod is let through, and nobody else waits for it."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from command_line import refusal
from hypothesis import given
from hypothesis import strategies as st
from sidecar_process import eventually
from webhook_process import Webhook, answer_on, certificates, containers, patched, pod, request, review

from sidecar.inject.patch import json_patch


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """One without a cluster."""
    folder = tmp_path_factory.mktemp("webhook")
    certificates(folder)
    with Webhook(folder, "--namespace", "rankguard") as process:
        yield process.ready()


def test_a_labelled_pod_gets_the_sidecar(webhook: Webhook) -> None:
    """Also with no cluster to ask: then with the rights that every namespace allows, and the creator is told. What
    the pod had stays, and a second time nothing is added.
    """
    before = pod(managedFields=[{"manager": "kubectl"}])
    before["spec"]["securityContext"] = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
    response = webhook.ask(review(before))
    after = patched(response, before)
    assert "rankguard" in containers(after)
    assert after["metadata"]["managedFields"] == before["metadata"]["managedFields"]
    assert any("Pod Security" in line for line in response["warnings"])
    assert all(len(line) <= 256 for line in response["warnings"])
    again = webhook.ask(review(after))
    assert containers(patched(again, after)) == containers(after)


def test_each_pod_has_a_hook_token_of_its_own(webhook: Webhook) -> None:
    """Who knows one pod's token cannot call another's hook."""
    before = pod()
    before["spec"]["securityContext"] = {"runAsUser": 1000}
    answers = [webhook.ask(review(before)).get("patch") for _ in range(2)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("pod_", "request_", "reason"),
    [
        (pod(label=None), {}, "NoLabel"),
        (pod(), {"namespace": "kube-system"}, "SystemNamespace"),
        (pod(), {"namespace": "rankguard"}, "SystemNamespace"),
        (pod(), {"operation": "UPDATE"}, "NotACreation"),
        (pod(), {"subResource": "ephemeralcontainers"}, "NotAPod"),
        ({"spec": {}}, {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}}, "NotAPod"),
        (None, {"operation": "DELETE"}, "NotACreation"),
    ],
    ids=["no label", "kube-system", "own namespace", "update", "subresource", "another kind", "deletion"],
)
def test_what_is_none_of_ours_is_let_through_untouched(
    webhook: Webhook, pod_: Any, request_: dict[str, Any], reason: str
) -> None:
    """Without a patch and without a warning, counted by its reason."""
    metric = f'rankguard_webhook_requests_total{{outcome="skipped",reason="{reason}"}}'
    before = webhook.metric(metric)
    response = webhook.ask(review(pod_, **request_))
    assert set(response) == {"uid", "allowed"}
    assert webhook.metric(metric) == before + 1


@pytest.mark.parametrize(
    "pod_",
    [
        {"metadata": {"labels": {"rankguard.dev/inject": "true"}}, "spec": None},
        {"metadata": {"labels": {"rankguard.dev/inject": 1}}},
        pod(label="false"),
        pod() | {"spec": {"containers": "none"}},
        pod() | {"spec": {"containers": [], "hostPID": True}},
        {"metadata": []},
        [],
        "pod",
        None,
    ],
    ids=["no spec", "a number for a label", "opted out", "containers that are none", "hostPID", "list", "array",
         "text", "null"],
)  # fmt: skip
def test_a_pod_that_cannot_have_a_sidecar_is_let_through(webhook: Webhook, pod_: Any) -> None:
    """Whatever its fields hold: the API server's own validation is to judge it, not we."""
    response = webhook.ask(review(pod_))
    if isinstance(pod_, dict) and "patch" in response:
        assert "rankguard" not in str(patched(response, pod_).get("spec"))


def test_a_review_of_another_version_is_let_through(webhook: Webhook) -> None:
    """In its own version, which is all that the API server takes, and with a warning."""
    response = webhook.ask(review(pod()) | {"apiVersion": "admission.k8s.io/v1beta1"})
    assert "patch" not in response
    assert "v1beta1" in response["warnings"][0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (json.dumps({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}).encode(), 400),
        (json.dumps(review(pod()) | {"apiVersion": "v1"}).encode(), 400),
        (json.dumps(review(pod(), uid="")).encode(), 400),
    ],
    ids=["empty", "cut", "deep", "no text", "no object", "no request", "another group", "no uid"],
)
def test_a_malformed_review_is_refused(webhook: Webhook, body: bytes, status: int) -> None:
    """There is no uid to answer to. The API server takes it for a failed call, and lets the pod through."""
    assert webhook.post(body)[0] == status
    assert "rankguard" in str(webhook.ask(review(pod())))


@pytest.mark.parametrize("said", [True, False])
def test_a_review_that_is_too_large_is_refused(webhook: Webhook, said: bool) -> None:
    """By what its head says, before it is sent; or once more has come than there may be."""
    before = webhook.metric('rankguard_webhook_requests_total{outcome="refused",reason="TooLarge"}')
    with webhook.connect() as connection:
        if said:
            connection.sendall(request(b"", said=3 * 2**20 + 1))
        else:
            connection.sendall(request(b"").replace(b"content-length: 0", b"transfer-encoding: chunked"))
            for _ in range(3 * 16):
                connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
            connection.sendall(b"1\r\n \r\n")
        assert answer_on(connection)[0] == 413
    assert webhook.metric('rankguard_webhook_requests_total{outcome="refused",reason="TooLarge"}') == before + 1


def test_a_large_review_is_answered(webhook: Webhook) -> None:
    """Nearly as large as one may be."""
    before = pod(annotations={f"note-{n}": "x" * 1000 for n in range(2500)})
    before["spec"]["securityContext"] = {"runAsUser": 1000}
    after = patched(webhook.ask(review(before)), before)
    assert "rankguard" in containers(after)


def test_slow_silent_and_wrong_clients_keep_nobody_waiting(webhook: Webhook) -> None:
    """More connections than one server takes, which never finish what they begin: no TLS at all, TLS without a
    request, half a head, half a body. Others are answered meanwhile.
    """
    port = webhook.ports()[0]
    begun: list[Any] = []
    try:
        for _ in range(300):
            begun.append(socket.create_connection(("127.0.0.1", port), 20))
        begun[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        for data in (b"", b"POST /mutate HTT", request(b"{", said=1000), request(b"", said=2**20)) * 5:
            begun.append(webhook.connect())
            begun[-1].sendall(data)
        assert webhook.ask(review(pod(label=None)))["allowed"]
    finally:
        for connection in begun:
            connection.close()


def test_a_hundred_at_once_are_all_answered(webhook: Webhook) -> None:
    """On connections that are kept, as the API server keeps them, each with an answer of its own."""
    connections = [webhook.connect() for _ in range(100)]
    try:
        for at, connection in enumerate(connections):
            before = pod(annotations={"n": str(at)})
            before["spec"]["securityContext"] = {"runAsUser": 1000}
            connection.sendall(request(json.dumps(review(before, uid=f"u{at}")).encode()))
        for at, connection in enumerate(connections):
            status, body = answer_on(connection)
            assert status == 200
            assert json.loads(body)["response"]["uid"] == f"u{at}"
    finally:
        for connection in connections:
            connection.close()


def test_tls_is_asked_for_and_old_versions_are_refused(webhook: Webhook) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", webhook.ports()[0]), 20) as raw, pytest.raises(OSError):  # noqa: PT011
        context.wrap_socket(raw)


def test_sigterm_ends_it_when_nobody_comes_any_more(tmp_path: Path) -> None:
    """Not ready at once, still answering, on a connection that ends; what is under way is answered; status 0."""
    certificates(tmp_path)
    with Webhook(tmp_path, delay="600") as webhook:
        webhook.ready()
        slow = webhook.connect()
        body = json.dumps(review(pod(label=None))).encode()
        whole = request(body)
        slow.sendall(whole[:-10])
        webhook.process.terminate()
        eventually(lambda: webhook.plain("/readyz").status_code == 503, "not ready")
        with webhook.connect() as late:
            late.sendall(request(body))
            head = late.recv(65536)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in head.lower()
        webhook.process.terminate()  # the wait is over
        threading.Timer(0.2, slow.sendall, [whole[-10:]]).start()
        assert answer_on(slow)[0] == 200
        slow.close()
        assert webhook.process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--cert-file"),
        (["--cert-file", "nowhere.crt", "--key-file", "nowhere.key"], "nowhere.crt cannot be read"),
        (["--certificate", "self"], "--secret"),
        (["--listen", "here"], "--listen"),
        (["--shutdown-delay", "soon"], "--shutdown-delay"),
        (["--certificate", "self", "--secret", "Bad_Name"], "--secret"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--ca-lifetime", "1"], "--ca-lifetime"),
    ],
)
def test_a_bad_setting_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which says what was wrong; status 2."""
    certificates(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = [] if says in ("--cert-file", "nowhere.crt cannot be read") or "self" in arguments else [
        "--cert-file", "tls.crt", "--key-file", "tls.key",
    ]  # fmt: skip
    if "--ca-lifetime" in arguments:
        files = ["--certificate", "self", "--secret", "s", "--service", "w", "--webhook-configuration", "c",
                 "--namespace", "n"]  # fmt: skip
    assert says in refusal(capfd, "webhook", *files, *arguments)


def test_a_bad_setting_ends_the_process(tmp_path: Path) -> None:
    """The same from outside: the container's status is 2, and its log is the one line."""
    ran = subprocess.run(
        [sys.executable, "-m", "sidecar", "webhook"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran
    assert "--cert-file" in ran.stderr


_JSON = st.recursive(
    st.none() | st.integers(2, 9) | st.text("ab/~", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, _JSON)
def test_a_patch_makes_the_one_of_the_other(before: Any, after: Any) -> None:
    """As a library that others use applies it."""
    assert jsonpatch.apply_patch(before, json_patch(before, after)) == after
