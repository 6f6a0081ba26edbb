"""The kubelet finds the engine dead: the evidence is on the volume before it restarts the container."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pod_specs import PYTHON, engine, env, host_folder, pod, sidecar
from pods import Pod, artifacts, sealed

from sidecar.recorder.coredump.elf import shortfall

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]
_PROBE = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"
_THRESHOLD = 3


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """A folder of the engine's container: its program, its probe, and what tells it to hang."""
    folder = tmp_path / "control"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("doubles_engine.py"), folder)
    (folder / "probe.py").write_text(_PROBE)
    return folder


def hanging_pod(dumps: Path, control: Path, dump_file: str, *mounts: dict[str, str]) -> dict[str, Any]:
    """An engine with a liveness probe of its own, and a sidecar that leaves the decision to the kubelet."""
    coredumps = env(
        CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1, CUDA_COREDUMP_PIPE="/tmp/corepipe.cuda.%h.%p",
        CUDA_COREDUMP_FILE=dump_file, CUDA_COREDUMP_GENERATION_FLAGS="skip_global_memory,skip_abort",
    )  # fmt: skip
    container = engine(
        command=[PYTHON, "/control/doubles_engine.py"], env=coredumps,
        volumeMounts=[{"name": "control", "mountPath": "/control"}, *mounts],
        livenessProbe={
            "exec": {"command": [PYTHON, "/control/probe.py"]}, "failureThreshold": _THRESHOLD, "timeoutSeconds": 60,
        },
    )  # fmt: skip
    settings = {
        "expected_ranks": 2, "health_url": "http://127.0.0.1:8000/health", "stall_timeout": 600, "stall_limit": 600,
        "metrics_url": "http://127.0.0.1:8000/metrics", "probe_period": 0.5, "probe_failures": 1000,
    }  # fmt: skip
    return pod(dumps, container, sidecar(settings=settings), volumes=[host_folder("control", control)])


@pytest.mark.parametrize("where", ["on the shared volume", "off it"])
def test_evidence_first_then_the_restart(play: Play, dumps: Path, control: Path, where: str) -> None:
    """The kubelet's probe fails; its preStop hook is answered when the evidence is sealed: both ranks' CUDA coredumps,
    though the pipes are in the engine's private /tmp, and the driver's files on the dump volume or in the engine's own
    file system. The restart that follows is no further incident, and the next ranks are watched.
    """
    if where == "on the shared volume":
        (dumps / "engine").mkdir()
        mount = {"name": "dumps", "mountPath": "/var/lib/rankguard/engine", "subPath": "engine"}
        spec = hanging_pod(dumps, control, "/var/lib/rankguard/engine/core.cuda.%h.%p", mount)
    else:
        spec = hanging_pod(dumps, control, "/tmp/core.cuda.%h.%p")
    with play(spec) as running:
        running.wait_serving(2)
        running.wait_line("the engine answers")
        assert _probe(running) == 0
        (control / "hang").touch()
        for _ in range(_THRESHOLD - 1):
            assert _probe(running) != 0
        running.wait_line("the engine's health check failed")  # Rankguard has seen it too
        first = running.rank("TP0")

        status, answer = running.get("/hooks/prestop", timeout=100)  # as the kubelet calls it, before it sends SIGTERM

        assert status == 200
        (record,) = sealed(dumps)
        assert record["id"] in answer
        assert record["reason"] == "PreStop"
        assert first.state == "S"  # captured, and left to the kubelet
        found = artifacts(record, "cuda_coredump")
        assert sorted(found) == ["TP0", "TP1"], [a for a in record["artifacts"] if a["kind"] == "cuda_coredump"]
        for artifact in found.values():
            path = dumps / record["id"] / artifact["path"]
            data = path.read_bytes()
            assert (artifact["bytes"], artifact["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            with path.open("rb") as file:
                assert shortfall(file.fileno()) == ""
        moved = {"on the shared volume": "moved", "off it": "copied"}[where]
        assert {moved in artifact["detail"] for artifact in found.values()} == {True}, found
        assert {"TP0", "TP1"} <= artifacts(record, "pyspy_json").keys()

        _probe(running)  # the last one: the restart
        (control / "hang").unlink()
        running.wait_serving(2, times=2)
        assert running.rank("TP0").identity != first.identity
        assert running.exits("engine") == [143]
        assert len(list(dumps.glob("*/incident.json"))) == 1
        assert running.metrics()["rankguard_incidents_total"]["PreStop",] == 1
        assert sum(running.metrics()["rankguard_rank_deaths_total"].values()) == 0


def test_the_health_check_restarts_the_engine_by_itself(play: Play, dumps: Path, control: Path) -> None:
    """At the threshold the container is restarted, with no hook called: a stop like any other, not a failure."""
    with play(hanging_pod(dumps, control, "/tmp/core.cuda.%h.%p")) as running:
        running.wait_serving(2)
        running.wait_line("the engine answers")
        (control / "hang").touch()
        for _ in range(_THRESHOLD):
            _probe(running)
        (control / "hang").unlink()
        running.wait_serving(2, times=2)
        assert running.exits("engine") == [143]
        assert list(dumps.glob("*/incident.json")) == []
        assert sum(running.metrics()["rankguard_rank_deaths_total"].values()) == 0


def _probe(running: Pod) -> int:
    """One run of the engine's liveness probe; at the threshold podman restarts the container."""
    return running.podman.run("healthcheck", "run", running.full("engine"), check=False).returncode
