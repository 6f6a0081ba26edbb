"""Pods to inject, and what came of it, looked at by name."""

from __future__ import annotations

import copy
import re
from typing import Any

from sidecar.config import load
from sidecar.inject.options import load_options
from sidecar.inject.pod import Injection, Place, inject
from sidecar.settings import Settings

LABEL = {"rankguard.dev/inject": "true"}
GPU = {"limits": {"nvidia.com/gpu": "8"}}


def a_pod(*others: dict[str, Any], spec: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    """A labelled pod with an engine that asks for GPUs, `engine` over it, and `others` beside it."""
    container = {"name": "engine", "image": "vllm/vllm-openai:v0.32.0", "resources": copy.deepcopy(GPU), **engine}
    metadata = {"name": "p", "labels": {**LABEL, "app": "x"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container, *others]}}
    pod["spec"] |= spec or {}
    return pod


def annotated(pod: dict[str, Any], **annotations: str) -> dict[str, Any]:
    """`death_deadline="5"` is the annotation rankguard.dev/death-deadline."""
    ours = {f"rankguard.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    pod["metadata"].setdefault("annotations", {}).update(ours)
    return pod


def done(pod: dict[str, Any], options: dict[str, Any] | None = None, **place: Any) -> Injection:
    return inject(pod, load_options(options or {}), Place(**place))


def injected(pod: dict[str, Any], options: dict[str, Any] | None = None, **place: Any) -> dict[str, Any]:
    """The pod, which was injected."""
    result = done(pod, options, **place)
    assert result.injected, f"{result.reason}: {result.message}"
    return result.pod


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    spec = pod["spec"]
    (found,) = (each for each in (*spec.get("initContainers", []), *spec["containers"]) if each["name"] == name)
    return found


def sidecar(pod: dict[str, Any]) -> dict[str, Any]:
    return container(pod, "rankguard")


def engine(pod: dict[str, Any]) -> dict[str, Any]:
    return container(pod, "engine")


def environ(container: dict[str, Any]) -> dict[str, str]:
    """Its variables as the kubelet would fill them in; what comes from the pod is some name."""
    values: dict[str, str] = {}
    for entry in container.get("env") or []:
        assert entry["name"] not in values, "a variable is set twice"
        text = entry.get("value", "from-the-pod")
        values[entry["name"]] = re.sub(r"\$\(([A-Z_]+)\)", lambda found: values.get(found[1], found[0]), text)
    return values


def settings(pod: dict[str, Any]) -> Settings:
    """What `rankguard run` in the sidecar makes of its environment. In a pod a setting that it refuses would leave it
    observing."""
    loaded = load({}, {**environ(sidecar(pod)), "RANKGUARD_IN_POD": "1"})
    assert [str(error) for error in loaded.errors] == []
    return loaded.settings


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container.get("volumeMounts") or []}


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in pod["spec"]["volumes"] if each["name"] == name)
    return found
