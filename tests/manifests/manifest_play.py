"""An ordinary manifest as `podman kube play` 4.3 can play it, for tests of real pods."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from manifest_files import ENGINE, containers

# podman refuses a manifest with these; the others it fills in itself.
REFUSED = {"metadata.namespace": "default", "spec.nodeName": "node"}


def playable(
    document: Mapping[str, Any], *, image: str, engine_command: Sequence[str], folders: Mapping[str, str]
) -> dict[str, Any]:
    """The same Deployment with what podman and a machine without GPUs cannot do replaced, and nothing else.

    `image` runs both containers. `engine_command` is a stand-in's. `folders` has for each volume the folder of the host
    that takes its place. podman leaves `subPathExpr` out, with which each mount would be the whole volume: here such a
    mount is a volume of its own, of the folder that the expression means.
    """
    played: dict[str, Any] = copy.deepcopy(dict(document))
    pod = played["spec"]["template"]["spec"]
    if "initContainers" in pod:
        raise ValueError("a native sidecar would never end as the init container that podman takes it for")
    pod_name = f"{document['metadata']['name']}-pod-0"  # podman's for a Deployment's only pod
    pod["volumes"] = [_volume(volume["name"], folders[volume["name"]]) for volume in pod["volumes"]]
    for container in containers(pod):
        container["image"] = image
        for variable in container["env"]:
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            if path in REFUSED:
                del variable["valueFrom"]
                variable["value"] = REFUSED[path]
        if container["name"] == ENGINE:
            container["command"] = list(engine_command)
            del container["args"]
            del container["resources"]["limits"]["nvidia.com/gpu"]
        for mount in container["volumeMounts"]:
            expression = mount.pop("subPathExpr", "")
            if expression:
                part = expression.replace("$(POD_NAMESPACE)", REFUSED["metadata.namespace"])
                part = part.replace("$(POD_NAME)", pod_name)
                folder = f"{folders[mount['name']]}/{part}"
                mount["name"] = f"{mount['name']}-{container['name']}"
                pod["volumes"].append(_volume(mount["name"], folder))
    return played


def _volume(name: str, folder: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}
