"""Does a pod with the label come back from the API server with the sidecar? Asked in a dry run, so no pod is made.

python -c SCRIPT NAMESPACE IMAGE [FOLDER SECONDS]; FOLDER: of the service account. Asks again for a minute: a right that
was given a moment ago may not have arrived everywhere, nor a certificate that was just made.
"""

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request

namespace, image = sys.argv[1:3]
folder, seconds = sys.argv[3:5] or ("/var/run/secrets/kubernetes.io/serviceaccount", "60")
account = pathlib.Path(folder)
pod = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "rankguard-test-",
        "labels": {"rankguard.dev/inject": "true"},
        "annotations": {"rankguard.dev/container": "engine"},
    },
    "spec": {
        "securityContext": {"runAsUser": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "engine",
                "image": image,
                "command": ["python3", "-m", "sglang.launch_server"],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "16Mi"}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}


def asked() -> tuple[dict, list[str]]:
    """What the API server would make of the pod, and its warnings."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{port}/api/v1/namespaces/{namespace}/pods?dryRun=All",
        data=json.dumps(pod).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.load(answer), answer.headers.get_all("Warning") or []
    except urllib.error.HTTPError as error:
        raise OSError(f"the API server answered {error.code}: {error.read(2000).decode(errors='replace')}") from error


def has_sidecar(made: dict) -> bool:
    spec = made["spec"]
    return any(container["name"] == "rankguard" for container in spec.get("initContainers", []) + spec["containers"])


end = time.monotonic() + float(seconds)
while True:
    warnings, final = [], False
    try:
        made, warnings = asked()
        if has_sidecar(made):
            print(f"a labelled pod in {namespace} gets its sidecar")
            sys.exit(0)
        trouble = made["metadata"].get("annotations", {}).get("rankguard.dev/skipped", "")
        final = bool(trouble)
        trouble = trouble or "it came back as it was: nobody was asked, or nobody answered"
    except (OSError, ValueError, KeyError) as error:
        trouble = f"{type(error).__name__}: {error}"
    if final or time.monotonic() > end:
        sys.exit("\n  ".join([f"a labelled pod in {namespace} gets no sidecar: {trouble}", *warnings]))
    time.sleep(2)
