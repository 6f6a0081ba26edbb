"""The files of manifests/ as values: their pods, containers, environments."""

from __future__ import annotations

import copy
import functools
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
PLAIN = tuple(sorted(path.name for path in FOLDER.glob("*.yaml")))
EXAMPLES = ("deployment", "statefulset", "leaderworkerset")
SIDECAR, ENGINE = "rankguard", "engine"
INJECT = "rankguard.dev/inject"
VERSIONS = ("1.29", kubernetes_validate.latest_version())  # the first with native sidecars, and the newest known

# What the kubelet would put in, by fieldPath.
POD = {
    "metadata.namespace": "inference",
    "metadata.name": "engine-5d9c7b6f4-x2x9z",
    "metadata.uid": "6b1f7a52-3a53-4a0e-9d42-6f3c1f0b7a11",
    "spec.nodeName": "gpu-node-7",
}

# A part of a manifest that is commented out: an item of a list, or a probe with its fields.
_COMMENTED = re.compile(r"^( *)# ((?:- \{|livenessProbe:|  [a-zA-Z]+: (?:\{path|\d+)).*)$", re.MULTILINE)


def plain(name: str) -> dict[str, Any]:
    return copy.deepcopy(_parsed((FOLDER / name).read_text()))


def with_all_options(name: str) -> dict[str, Any]:
    """The file with everything switched on that it has commented out."""
    text, count = _COMMENTED.subn(r"\1\2", (FOLDER / name).read_text())
    assert count >= 9, f"only {count} commented lines were found in {name}"
    return copy.deepcopy(_parsed(text))


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(text)
    return document


def built(folder: str | Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder. Raises `subprocess.CalledProcessError`, with its words in `stderr`."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [kubectl, "kustomize", folder], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return list(yaml.safe_load_all(done.stdout))


_built_once = functools.cache(built)  # a second each on a busy machine


def built_example(name: str) -> list[dict[str, Any]]:
    """An example's workloads, those with an engine first."""
    documents = copy.deepcopy(_built_once(FOLDER / "kustomize" / "examples" / name))
    return sorted(documents, key=lambda document: document["metadata"].get("labels", {}).get(INJECT) == "false")


def templates(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates in a workload."""
    spec = document["spec"]
    if document["kind"] == "LeaderWorkerSet":
        return [spec["leaderWorkerTemplate"][name] for name in ("leaderTemplate", "workerTemplate")]
    return [spec["template"]]


def pods(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [template["spec"] for template in templates(document)]


def containers(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def container(pod: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in containers(pod) if each["name"] == name)
    return found


def environ(container: Mapping[str, Any]) -> dict[str, str]:
    """Its environment, as the kubelet would fill it in; a secret is some text."""
    values = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        values[entry["name"]] = (
            POD[source["fieldRef"]["fieldPath"]] if "fieldRef" in source else entry.get("value", "t")
        )
    assert len(values) == len(container.get("env", [])), "a variable is set twice"
    return values


def mounts(container: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Its mounts, by path."""
    return {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}


def volume(pod: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in pod["volumes"] if each["name"] == name)
    return found


def command_line(container: Mapping[str, Any], more: Mapping[str, str] | None = None) -> list[str]:
    """What it runs. `more`: variables that others than the manifest put into it."""
    values = {**environ(container), **(more or {})}
    words = [*container["command"], *container.get("args", [])]
    return [re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda found: values[found[1]], word) for word in words]
