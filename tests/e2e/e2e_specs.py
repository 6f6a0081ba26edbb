"""What these tests apply: pods of the stand-in engine, which carry the label and nothing of the sidecar.

The engine is run from Rankguard's own image, so that one image is all that a cluster must have.
"""

from __future__ import annotations

import json
from typing import Any

PYTHON = "/opt/rankguard/bin/python3"
INJECT = "rankguard.dev/inject"
Json = dict[str, Any]

# The entrypoint writes down when it was told to stop, and passes it on; the engine takes orders from /tmp/control.
_ENTRYPOINT = """\
mkfifo /tmp/control
trap 'date -u "+TERM %s.%N"; kill $child' TERM
{command} --control /tmp/control &
child=$!
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
exit $status
"""
# Fails from the moment that a test makes the file.
HANG = "/tmp/hang"
_PROBE = {"exec": {"command": ["test", "!", "-e", HANG]}}

# What an engine's container may say of itself at each level of Pod Security.
UNPRIVILEGED: Json = {
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def engine_pod(
    name: str,
    image: str,
    *flags: str,
    ranks: int = 2,
    light: bool = True,
    pull_policy: str = "IfNotPresent",
    settings: dict[str, str] | None = None,
    probe: Json | None = None,
    labels: dict[str, str] | None = None,
    security: Json | None = None,
    grace: int | None = None,
    automount: bool | None = None,
    **container: Any,
) -> Json:
    """A labelled pod with a container `engine`. `settings` become annotations `rankguard.dev/…`, `probe` is what the
    engine's livenessProbe has beside its command, None: no probe; `container` is more of the engine's container.
    """
    command = [PYTHON, "-m", "sidecar.demo.engine", "--tp", str(ranks), "--no-detokenizer", *flags]
    command += ["--light"] if light else []
    engine: Json = {
        "name": "engine",
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": ["/bin/sh", "-c", _ENTRYPOINT.format(command=" ".join(command))],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        **container,
    }
    if probe is not None:
        engine["livenessProbe"] = {**_PROBE, **probe}
    if security is not None:
        engine["securityContext"] = security
    spec: Json = {"containers": [engine]}
    if grace is not None:
        spec["terminationGracePeriodSeconds"] = grace
    if automount is not None:
        spec["automountServiceAccountToken"] = automount
    said = {"container": "engine", "log-format": "json", **(settings or {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {INJECT: "true", **(labels or {})},
            "annotations": {f"rankguard.dev/{key}": value for key, value in said.items()},
        },
        "spec": spec,
    }


# Runs in a pod: what the service account's token may do there, by the API server's own answers.
ASK = """
import json, os, pathlib, ssl, sys, urllib.error, urllib.request
there = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=there / "ca.crt")
host = os.environ["KUBERNETES_SERVICE_HOST"]
server = f"https://[{host}]" if ":" in host else f"https://{host}"
server += ":" + os.environ["KUBERNETES_SERVICE_PORT"]
answers = []
for method, path, kind, body in json.loads(sys.argv[1]):
    request = urllib.request.Request(server + path, method=method)
    request.add_header("Authorization", "Bearer " + (there / "token").read_text())
    request.add_header("Content-Type", kind)
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data, timeout=20, context=context) as answer:
            answers.append([answer.status, ""])
    except urllib.error.HTTPError as error:
        answers.append([error.code, error.read().decode(errors="replace")[:2000]])
print(json.dumps(answers))
"""
MERGE = "application/merge-patch+json"
PLAIN = "application/json"


def annotate(namespace: str, pod: str, **more: Any) -> list[Any]:
    """The request that a sidecar makes for its annotation. `more`: of the pod's metadata."""
    metadata = {"annotations": {"rankguard.dev/last-incident": "e2e"}, **more}
    return ["PATCH", f"/api/v1/namespaces/{namespace}/pods/{pod}", MERGE, {"metadata": metadata}]


def event_about(namespace: str, pod: str, uid: str, name: str) -> list[Any]:
    """The request that makes an Event on a pod."""
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
        "reason": "E2E",
        "message": "made by a test",
        "type": "Normal",
    }
    return ["POST", f"/api/v1/namespaces/{namespace}/events", PLAIN, body]


def asked(*requests: list[Any]) -> list[str]:
    """The command that makes these requests inside of a pod."""
    return [PYTHON, "-c", ASK, json.dumps(requests)]
