"""A pod as injection makes it, played: a user's pod, one label, and a dead rank leaves its record."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_files import plain
from manifest_play import playable
from pod_specs import PYTHON, env, unique_name
from podman import image_name
from pods import Pod, artifacts, sealed

sys.path.append(str(Path(__file__).resolve().parents[1] / "inject"))  # what takes the sidecar out of a manifest
from inject_pods import injected
from test_inject_manifests import bare

pytestmark = pytest.mark.root


def test_an_injected_pod(play: Callable[[dict[str, Any]], Pod], tmp_path: Path, memory: Path) -> None:
    """Of a manifest without the sidecar: ordinary, since podman has no native ones, and without a token, since it has
    no API server. What the kubelet would fill in is filled in as for the manifests.
    """
    document = copy.deepcopy(plain("vllm-ordinary.yaml"))
    document["metadata"]["name"] = unique_name()
    template = document["spec"]["template"]
    template |= injected(bare(template), {"form": "ordinary", "api-token": False, "image": image_name()})
    for mount in template["spec"]["containers"][0]["volumeMounts"]:
        if "subPathExpr" in mount:  # what makes it playable knows the manifests' names
            mount["subPathExpr"] = mount["subPathExpr"].replace("RANKGUARD_POD_", "POD_")
    folders = {"models": tmp_path / "models", "dshm": memory, "rankguard-dumps": tmp_path / "volume"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    command = [PYTHON, "-m", "sidecar.demo.engine", "--engine", "vllm", "--tp", "4", "--light", "--health-port", "0"]
    played = playable(
        document,
        image=image_name(),
        engine_command=command,
        folders={name: str(folder) for name, folder in folders.items()},
    )
    for container in played["spec"]["template"]["spec"]["containers"]:
        container["imagePullPolicy"] = "Never"
        del container["ports"]  # podman would take each on this machine, which Kubernetes does not
        container["env"] += env(RANKGUARD_LOG_FORMAT="json")  # what these tests can read
    with play(played) as running:
        running.wait_serving(4)
        running.rank("TP2").kill()
        (record,) = sealed(folders["rankguard-dumps"] / "default" / running.name)
        assert [f["rank"] for f in record["failures"] if f["first"]] == ["TP2"]
        assert len(artifacts(record, "pyspy_json")) >= 3
        running.wait_serving(4, times=2)
        assert running.exits("engine") == [137]
        assert running.restarts("rankguard") == 0
