"""The pods of these tests, as Kubernetes YAML would have them: an engine, the sidecar, and a neighbour that is neither.

Podman plays what Kubernetes runs, with two differences that matter here: a declared containerPort is bound on the host
(so none is declared, and the pod's address is asked), and native sidecars are not known (so it is among `containers`).
"""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import yaml
from podman import image_name

PYTHON = "/opt/rankguard/bin/python3"  # in our image, which serves as the engine's too
DUMPS = "/var/lib/rankguard"
FULL = {
    "runAsUser": 0,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]},
}
# What an engine, and a sidecar that is its twin, may run as.
ROOT = {"runAsUser": 0}  # with the capabilities that the runtime gives
LOCKING = {"runAsUser": 0, "capabilities": {"add": ["IPC_LOCK"]}}
USER = {
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
SIGNALS = {"runAsUser": 0, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["KILL"]}}
_numbers = itertools.count()

# Two processes with memory in /dev/shm that say every signal they get. Nothing may reach them: they are not ours.
_NEIGHBOUR = """\
import os, signal, time
child = os.fork()
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, lambda n, frame: print("neighbour got signal", n, flush=True))
open(f"/dev/shm/psm_neighbour{os.getpid()}", "w").write("mine")
print("neighbour up", flush=True)
while True:
    signal.pause()
    if child and os.waitpid(child, os.WNOHANG)[0]:
        print("neighbour lost its child", flush=True)
"""


def unique_name() -> str:
    """A pod's name that no other run on this machine has."""
    return f"rg-{os.getpid()}-{next(_numbers)}"


def env(**variables: object) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in variables.items()]


def engine(*arguments: str, shell: str = "", **more: Any) -> dict[str, Any]:
    """The engine's container: the stand-in with these flags. `shell`: a command of its own for `sh -c` instead."""
    command = [PYTHON, "-m", "sidecar.demo.engine", *arguments]
    container = {
        "name": "engine",
        "image": image_name(),
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", shell] if shell else command,
    }
    return {**container, **more}


def sidecar(security: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The sidecar's container as the image is meant to be run. `settings`: RANKGUARD_… variables by setting name."""
    settings = {"log_format": "json", **more.pop("settings", {})}
    mounts = [{"name": "dumps", "mountPath": DUMPS}] if more.pop("dumps", True) else []
    mounts += more.pop("mounts", [])
    container = {
        "name": "rankguard",
        "image": image_name(),
        "imagePullPolicy": "Never",
        "args": ["run"],
        "env": env(**{f"RANKGUARD_{name.upper()}": value for name, value in settings.items()}) + more.pop("env", []),
        "securityContext": FULL if security is None else security,
        "volumeMounts": mounts,
    }
    return {**container, **more}


def neighbour() -> dict[str, Any]:
    return {
        "name": "neighbour",
        "image": image_name(),
        "imagePullPolicy": "Never",
        "command": [PYTHON, "-c", _NEIGHBOUR],
    }


def pod(dumps: Path | None, *containers: dict[str, Any], restart: str = "Always", **more: Any) -> dict[str, Any]:
    """The whole pod. `dumps` is the folder of this machine that is the dump volume; None where there is none."""
    volumes = [host_folder("dumps", dumps)] if dumps is not None else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": unique_name(), "labels": {"app": "engine"}},
        "spec": {
            "shareProcessNamespace": True,
            "restartPolicy": restart,
            "containers": [*containers, neighbour()],
            "volumes": volumes + more.pop("volumes", []),
            **more,
        },
    }


def host_folder(name: str, folder: Path) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": str(folder), "type": "Directory"}}


def remedied(spec: dict[str, Any], remedy: dict[str, str]) -> dict[str, Any]:
    """The pod as it is once somebody has put in what the doctor printed, where it said so: merged as `kubectl patch`
    merges it. A new pod, with a name of its own.
    """
    patched = copy.deepcopy(spec)
    patched["metadata"]["name"] = unique_name()
    # Podman knows an emptyDir by its name alone, in whichever pod it is.
    text = remedy["yaml"].replace("rankguard-dumps", f"{patched['metadata']['name']}-dumps")
    (mine,) = (container for container in patched["spec"]["containers"] if container["name"] == "rankguard")
    places = {"the container rankguard": mine, "the pod's spec": patched["spec"]}
    _merge(places[remedy["place"].split(",")[0]], yaml.safe_load(text))
    return patched


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    for name, value in patch.items():
        there = into.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            _merge(there, value)
        elif name == "add":
            into[name] = [*(there or []), *value]
        elif isinstance(value, list) and isinstance(there, list) and name != "drop":
            key = "mountPath" if name == "volumeMounts" else "name"
            for item in value:
                (found,) = [old for old in there if old[key] == item[key]] or [None]
                if found is None:
                    there.append(item)
                else:
                    _merge(found, item)
        else:
            into[name] = value
