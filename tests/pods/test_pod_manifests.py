"""The manifests that podman can play, played: what users copy does what it promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_files import plain
from manifest_play import playable
from pod_specs import PYTHON, env, unique_name
from podman import image_name
from pods import Pod, artifacts, sealed
from sidecar_process import eventually

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_an_ordinary_manifest(play: Play, tmp_path: Path, memory: Path, engine: str) -> None:
    """As shipped but for images, GPUs and the stand-in's command: the ranks are found, the doctor has nothing to say
    against the rights, a death leaves its record in the pod's own folder of the volume, with the pod's names, and the
    engine is back; it sees no incident of its own.
    """
    document = plain(f"{engine}-ordinary.yaml")
    document = {**document, "metadata": {**document["metadata"], "name": unique_name()}}
    folders = {"models": tmp_path / "models", "dshm": memory, "rankguard-dumps": tmp_path / "volume"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    command = [PYTHON, "-m", "sidecar.demo.engine", "--engine", engine, "--tp", "8", "--light", "--health-port", "0"]
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
        running.wait_serving(8)
        checkup = json.loads(running.exec("rankguard", "rankguard", "doctor", "--json").stdout)
        assert checkup["tier"] == "full"
        lacking = {result["capability"] for result in checkup["checks"] if result["status"] in ("missing", "hung")}
        assert lacking <= {"coredump_pipe", "flight_recorder", "nccl_ras"}, checkup  # what only a GPU brings

        running.rank("TP5").kill()
        dumps = folders["rankguard-dumps"] / "default" / running.name
        (record,) = sealed(dumps)
        assert [f["rank"] for f in record["failures"] if f["first"]] == ["TP5"]
        assert record["pod"] == {
            "namespace": "default",
            "name": running.name,
            "uid": record["pod"]["uid"],
            "node": "node",
        }
        assert len(record["pod"]["uid"]) > 8
        assert len(artifacts(record, "pyspy_json")) >= 7
        running.wait_serving(8, times=2)
        assert running.exits("engine") == [137]
        assert running.restarts("rankguard") == 0
        seen = running.exec("engine", "sh", "-c", "find /var/lib/rankguard -name incident.json").stdout
        assert seen == ""
        eventually(lambda: running.metrics()["rankguard_incidents_total"]["RankDied",] == 1, "the incident counted")
