"""Whether a value has a pod's shape, as far as injection reads it. After this nothing is asked for its type any more.

What the API server would refuse anyway is refused here with the place where it stands; null is the same as absent.
"""

from __future__ import annotations

from typing import Any


class _Any:
    """A mapping whose values may be anything, or all of `values`."""

    def __init__(self, values: Any = None) -> None:
        self.values = values


_TEXTS = _Any(str)
_NAMED = {"name": str}
_EXEC = {"exec": {"command": [str]}}
_HANDLER = {**_EXEC, "httpGet": {"path": str, "httpHeaders": [{"name": str, "value": str}]}}
_PROBE = {**_EXEC, "periodSeconds": int, "failureThreshold": int, "timeoutSeconds": int,
          "terminationGracePeriodSeconds": int}  # fmt: skip
_SECURITY = {"runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool, "privileged": bool,
             "allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool,
             "capabilities": {"add": [str], "drop": [str]}}  # fmt: skip
_RESOURCES = {"limits": _Any(), "requests": _Any()}
_CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [_NAMED],
    "envFrom": [_Any()],
    "ports": [{"containerPort": int}],
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "subPathExpr": str, "readOnly": bool}],
    "lifecycle": {"preStop": _HANDLER, "postStart": _HANDLER},
    "livenessProbe": _PROBE,
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "resources": {**_RESOURCES, "claims": [_Any()]},
    "securityContext": _SECURITY,
    "restartPolicy": str,
    "terminationMessagePath": str,
}
_POD = {
    "metadata": {"labels": _TEXTS, "annotations": _Any(), "ownerReferences": [_Any()]},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "volumes": [_NAMED],
        "securityContext": {"runAsUser": int, "runAsGroup": int, "fsGroup": int},
        "nodeSelector": _TEXTS,
        "os": {"name": str},
        "hostPID": bool,
        "hostNetwork": bool,
        "shareProcessNamespace": bool,
        "restartPolicy": str,
        "terminationGracePeriodSeconds": int,
        "resources": _RESOURCES,
    },
}
_REQUIRED = {id(_NAMED): "name", id(_CONTAINER): "name"}
_WORDS = {str: "a text", int: "a whole number", bool: "true or false"}


def trouble(pod: Any) -> str:
    """What is wrong with it, in a sentence; "" for a pod."""
    if not isinstance(pod, dict):
        return "it is no mapping"
    if pod.get("kind", "Pod") not in ("Pod", None):
        return "it is of another kind"
    if found := _wrong(pod, _POD, "it"):
        return found
    spec = pod.get("spec") or {}
    if not spec.get("containers"):
        return "it has no containers"
    names = [each["name"] for each in (*(spec.get("initContainers") or ()), *spec["containers"])]
    if len(set(names)) < len(names):
        return "two of its containers have one name"
    return ""


def _wrong(value: Any, shape: Any, path: str) -> str:
    if isinstance(shape, type):
        # True is an int to Python, and none to Kubernetes.
        right = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        return "" if right else f"{path} has to be {_WORDS[shape]}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{path} has to be a list"
        items = ((item, shape[0], f"{path}[{at}]") for at, item in enumerate(value))
    else:
        if not isinstance(value, dict):
            return f"{path} has to be a mapping"
        if not all(isinstance(key, str) for key in value):
            return f"{path} has a key that is no text"
        if (required := _REQUIRED.get(id(shape))) and not value.get(required):
            return f"{path}.{required} is missing"
        if isinstance(shape, _Any):
            inner = value.items() if shape.values is not None else ()
            items = ((item, shape.values, f"{path}[{key!r}]") for key, item in inner)
        else:
            items = ((value[key], part, f"{path}.{key}") for key, part in shape.items() if value.get(key) is not None)
    return next((found for item, part, place in items if (found := _wrong(item, part, place))), "")
