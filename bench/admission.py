"""The webhook's answers: over real TLS, for a pod as large as a real engine's, one at a time and a hundred at once.

The server's options are the defaults; it has no cluster, so nothing is looked up. Client and server share the machine,
as nothing else does: what the client uses of a core the server does not have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.children import Child, program
from bench.pump import Pump
from bench.report import Goal, Report, Row
from bench.scale import Scale
from bench.stats import ms, percentile
from bench.usage import used
from sidecar.errors import RankguardError
from sidecar.webhook.certificates.authority import make_ca, make_server

NAME = "admission"
LIMIT = 20.0  # ms, of the median
SIZES: dict[Scale, tuple[tuple[int, int], ...]] = {  # connections, rounds
    Scale.FULL: ((1, 500), (100, 30)), Scale.QUICK: ((1, 200), (100, 10)), Scale.SMOKE: ((1, 3), (100, 1)),
}  # fmt: skip
_START, _ROUND = 60.0, 20.0  # seconds for the start, and for a round at most


def run(scale: Scale) -> Report:
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rankguard-bench-")))
        now = datetime.now(UTC)
        ca = make_ca(now, timedelta(days=1))
        pair = make_server(ca, ["localhost"], now, timedelta(days=1))
        review = json.dumps(a_review()).encode()
        for name, data in (("ca.crt", ca.chain), ("tls.crt", pair.chain), ("tls.key", pair.key), ("review", review)):
            (folder / name).write_bytes(data)
        pump = Pump()
        stack.callback(pump.close)
        webhook = stack.enter_context(
            Child([
                sys.executable, "-m", "sidecar", "webhook", "--listen", "127.0.0.1:0", "--metrics-listen", "none",
                "--cert-file", str(folder / "tls.crt"), "--key-file", str(folder / "tls.key"), "--log-format", "json",
            ], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )  # fmt: skip
        assert webhook.process.stderr is not None
        lines: list[dict[str, Any]] = []
        pump.add_lines(webhook.process.stderr.fileno(), lambda text, _: lines.append(json.loads(text)))
        pump.until(lambda: any(line["event"] == "serving" for line in lines), _START, "the webhook serves")
        port = next(line["address"] for line in lines if line["event"] == "serving").rpartition(":")[2]
        at_rest = _rss_mib(webhook.pid)
        for connections, rounds in SIZES[scale]:
            before = used(webhook.pid)
            seconds = _asked(pump, port, folder, connections, rounds)
            spent = used(webhook.pid) - before
            rows.append(_row(connections, seconds, spent.cpu, spent.waited, at_rest, _rss_mib(webhook.pid)))
    return Report(
        NAME, f"Admission: a review of {len(review):,} bytes over TLS",
        ("median ms", "p99 ms", "CPU ms each", "RSS MiB"),
        tuple(rows), ("100 at once: each on a connection of its own, all sent in the same moment, again and again",),
    )  # fmt: skip


def _asked(pump: Pump, port: str, folder: Path, connections: int, rounds: int) -> list[float]:
    said: list[str] = []
    words = program("admission_client", port, folder / "ca.crt", folder / "review", connections, rounds)
    with Child(words) as client:
        pump.add_lines(client.out, lambda text, _: said.append(text))
        pump.until(lambda: bool(said), _START + rounds * _ROUND, "the client is done")
        pump.drop(client.out)
    seconds = [second for each in json.loads(said[0]) for second in each]
    if len(seconds) != connections * rounds:
        raise RankguardError("not every request was answered")
    return seconds


def _row(connections: int, seconds: list[float], cpu: float, waited: float, at_rest: float, rss: float) -> Row:
    median, last = percentile(seconds, 0.5), percentile(seconds, 0.99)
    each = cpu / len(seconds)
    why = (
        f"an answer takes {1000 * each:.2f} ms of a core, and the one process works on one at a time; it waited"
        f" {1000 * waited / len(seconds):.2f} ms for a core"
    )
    data = {
        "connections": connections, "answers": len(seconds), "cpu_seconds": cpu, "waited_seconds": waited,
        "rss_mib_at_rest": at_rest, "rss_mib": rss,
    }  # fmt: skip
    return Row(
        "one at a time" if connections == 1 else f"{connections} at once",
        (ms(median), ms(last), ms(each), f"{rss:.0f}"),
        (Goal("median", 1000 * median, LIMIT, " ms", why=why),),
        data,
    )


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().split("\n"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def a_review() -> dict[str, Any]:
    """As the API server sends it for a Deployment's pod: an engine with 8 GPUs, an exporter beside it."""
    kind, owner = {"group": "", "version": "v1", "kind": "Pod"}, "sglang-llama-7d9c6b5f4d"
    env = [{"name": f"SGLANG_SETTING_{n}", "value": f"value-{n}"} for n in range(30)]
    probe = {"httpGet": {"path": "/health", "port": 30000, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 5,
             "failureThreshold": 3, "successThreshold": 1}  # fmt: skip
    common = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
              "imagePullPolicy": "IfNotPresent"}  # fmt: skip
    token = {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
             "readOnly": True}  # fmt: skip
    engine = {
        "name": "sglang", "image": "lmsysorg/sglang:v0.5.0", "command": ["python3", "-m", "sglang.launch_server"],
        "args": ["--model-path", "/models/llama", "--tp-size", "8", "--port", "30000"], "env": env,
        "ports": [{"name": "http", "containerPort": 30000, "protocol": "TCP"}],
        "resources": {"limits": {"nvidia.com/gpu": "8", "memory": "512Gi"},
                      "requests": {"nvidia.com/gpu": "8", "cpu": "32", "memory": "512Gi"}},
        "livenessProbe": probe, "startupProbe": {**probe, "failureThreshold": 180},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}, {"name": "shm", "mountPath": "/dev/shm"}, token],
        # The one that every namespace allows a sidecar beside: the webhook here has no cluster to ask.
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        **common,
    }  # fmt: skip
    exporter = {"name": "exporter", "image": "exporter:1", "env": env[:10], "resources": {}, "volumeMounts": [token]}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    fields = {f'k:{{"name":"{each["name"]}"}}': {".": {}, "f:name": {}, "f:value": {}} for each in env}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner}-", "creationTimestamp": None,
            "labels": {"app": "sglang", "pod-template-hash": "7d9c6b5f4d", "rankguard.dev/inject": "true"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "0b6f2c1e",
                                 "controller": True, "blockOwnerDeletion": True}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                               "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:containers": fields}}}],
        },
        "spec": {
            "containers": [engine, exporter | common],
            "volumes": [
                {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
                {"name": token["name"], "projected": {"sources": sources, "defaultMode": 420}},
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "securityContext": {}, "schedulerName": "default-scheduler",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "status": {},
    }  # fmt: skip
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "requestKind": kind,
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": "inference", "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"}, "object": pod,
        "oldObject": None, "dryRun": False, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }  # fmt: skip
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
