"""A real Rankguard in a pod, as far as the API server can tell: what it tells there, and what follows the kill."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_rig import NAMESPACE, POD, PODS, UID, ApiServer, api_server
from life_parts import Ranks, ask, await_metric, metric
from liveness_parts import status
from process_cgroup import PIDS
from sidecar_process import Sidecar, eventually

NAMED = ("--pod-namespace", NAMESPACE, "--pod-name", POD, "--pod-uid", UID, "--captures", "process")
RULES = {
    "initContainers": [
        {"name": "rankguard", "restartPolicyRules": [
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [86]}},
        ]}
    ]
}  # fmt: skip


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "account") as server:
        server.pod()
        yield server


@contextmanager
def pod(api: ApiServer, dumps: Path, *flags: str, container: str = "") -> Iterator[tuple[Ranks, Sidecar]]:
    """Two ranks and a Rankguard that watches them, both in the pod that `api` knows. `container`: the ranks' id."""
    with Ranks() as ranks, inside(container) as enter:
        for identity in ranks.start():
            enter(identity.pid)
        arguments = (*ranks.flags, *NAMED, "--service-account-dir", str(api.folder), "--api-listen", "127.0.0.1:0")
        with Sidecar(dumps, *arguments, *flags, env=api.environ) as sidecar:
            yield ranks, sidecar.wait_serving()


@contextmanager
def inside(container: str) -> Iterator[Any]:
    """What puts a process into a cgroup that is called as a container runtime calls it; skips where none can be."""
    if not container:
        yield lambda _: None
        return
    folder = (PIDS if PIDS.is_dir() else Path("/sys/fs/cgroup")) / f"rankguard-test-{uuid.uuid4().hex[:12]}"
    try:
        (folder / container).mkdir(parents=True)
        (folder / container / "cgroup.procs").read_text()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield lambda pid: (folder / container / "cgroup.procs").write_text(str(pid))
    finally:
        for cgroup in (folder / container, folder):
            eventually(lambda cgroup=cgroup: not (cgroup / "cgroup.procs").read_text(), "the cgroup empty")
            cgroup.rmdir()


@pytest.mark.root
def test_a_rank_dies(api: ApiServer, tmp_path: Path) -> None:
    """The record and the Events name the container, the pod's annotation the incident, and the pod is deleted after all
    of that, as itself and no other.
    """
    container = uuid.uuid4().hex * 2
    status_ = {"containerStatuses": [{"name": "engine", "containerID": f"containerd://{container}"}]}
    api.pod(status=status_)
    flags = ("--kubernetes-annotation", "--after-kill", "delete-pod", "--target-container", "other")
    with pod(api, tmp_path / "dumps", *flags, container=container) as (ranks, sidecar):
        port = int(sidecar.wait("listening", process="supervisor")["api_listen"].rpartition(":")[2])

        def names() -> set[str]:
            return {rank["container_name"] for rank in json.loads(ask(port, "/api/v1/ranks")[1])["ranks"]}

        eventually(lambda: names() == {"engine"}, "the name")
        ranks.kill(1)
        ranks.collect()
        record = sidecar.incident()
        eventually(lambda: not api.objects(PODS), f"the pod deleted\n{sidecar.log()}")
        events = api.events()
        assert {reason: [e["count"] for e in rows] for reason, rows in events.items()} == {
            "RankDied": [1], "EngineKilled": [1], "EvidenceSaved": [1],
        }  # fmt: skip
        for (event,) in events.values():
            assert record["id"] in event["message"]
            assert event["involvedObject"]["fieldPath"] == "spec.containers{engine}"
        assert events["RankDied"][0]["message"].startswith("TP1 in container engine died of sigkill (signal 9)")
        assert record["failures"][0]["container"] == "engine"
        patched = [path for method, path, _ in api.requests if method == "PATCH"]
        assert patched == [f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"]
        assert [m for m, *_ in api.requests].index("DELETE") == len(api.requests) - 1
        assert metric(sidecar, "kubernetes_errors_total") == 0


def test_the_fleet_switch_is_turned(api: ApiServer, tmp_path: Path) -> None:
    """From then on a death is only recorded; a guard that is started anew knows it too, and the metrics tell."""
    with pod(api, tmp_path / "dumps", "--fleet-switch", "system/fleet") as (ranks, sidecar):
        await_metric(sidecar, 0, "fleet_observe")
        assert status(sidecar)["kubernetes"]["fleet_switch"]["applied"] is False
        api.fleet("observe")
        sidecar.wait("fleet switch", process="guard", timeout=90.0)
        eventually(lambda: status(sidecar)["kubernetes"]["fleet_switch"]["applied"], "applied")
        assert metric(sidecar, "fleet_observe") == 1
        ranks.kill(1)
        eventually(lambda: sidecar.incidents(), "an incident")
        ranks.processes[0].send_signal(signal.SIGTERM)  # the end of what is observed
        record = sidecar.incident(60.0)
        assert record["decision"]["action"] == "observe"
        assert record["termination"] is None
        assert ranks.processes[0].wait(20) == -signal.SIGTERM
        assert not sidecar.events("frozen")


@pytest.mark.parametrize(
    ("flags", "spec", "because"),
    [
        ((), RULES, ""),
        (("--pod-group", "llama-0"), RULES, "the group llama-0"),
        ((), {}, "no restartPolicyRules"),
    ],
)
def test_the_container_ends_after_the_kill(
    api: ApiServer, tmp_path: Path, flags: tuple[str, ...], spec: dict[str, Any], because: str
) -> None:
    """With the code that the pod's rules name, once the evidence is sealed; never in a group of pods, nor where no rule
    would restart the engine.
    """
    api.pod(spec=spec)
    with pod(api, tmp_path / "dumps", "--after-kill", "exit", *flags) as (ranks, sidecar):
        eventually(lambda: api.asked("GET", "/pods/"), "the pod read")
        ranks.kill(0)
        ranks.collect()
        record = sidecar.incident()
        if because:
            assert because in sidecar.wait("nothing is done after the kill")["because"]
            assert sidecar.process.poll() is None
            return
        assert sidecar.process.wait(60) == 86, sidecar.log()
        assert record["sealed"]
        assert set(api.events()) == {"RankDied", "EngineKilled", "EvidenceSaved"}


def test_a_deletion_that_no_hook_announces(api: ApiServer, tmp_path: Path) -> None:
    """A pod with a preStop hook of its own: once a rank has left as one does that was told to, the API server is asked,
    and what the rest ends by is no failure.
    """
    with pod(api, tmp_path / "dumps", "--exit-grace", "600") as (ranks, sidecar):
        eventually(lambda: api.asked("GET", "/pods/"), "the pod read")
        api.pod(deletionTimestamp="2026-11-30T00:00:00Z", finalizers=["test"])
        ranks.kill(0, signal.SIGTERM)
        sidecar.wait("the pod is being deleted", process="guard")
        ranks.kill(1)
        ranks.collect()
        sidecar.wait("watching", state="restarting")
        assert sidecar.incidents() == []
        assert metric(sidecar, "rank_deaths_total") == 0


@pytest.mark.parametrize("way", ["silent", "gone", "forbidden"])
def test_without_the_api_server(api: ApiServer, tmp_path: Path, way: str) -> None:
    """Everything else works as ever: the kill, the record, the metrics; and what failed is counted."""
    flags = ("--fleet-switch", "system/fleet", "--after-kill", "delete-pod", "--kubernetes-annotation")
    if way == "silent":
        api.hang()
    elif way == "forbidden":
        api.refuse(403)
    else:
        api.close()
    with pod(api, tmp_path / "dumps", *flags) as (ranks, sidecar):
        ranks.kill(1)
        ranks.collect()
        record = sidecar.incident()
        assert record["termination"]["outcome"] in ("reaped", "already_gone", "exited_unreaped")
        eventually(lambda: metric(sidecar, "kubernetes_errors_total") > 0, f"counted\n{sidecar.log()}")
        await_metric(sidecar, 1, "rank_deaths_total", cause="sigkill")
        assert "t0ken" not in sidecar.log()
