"""Without a cluster: what the other tests here apply is valid, and the helpers read an API server's answers rightly."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kmock
import kubernetes_validate
import pytest
import yaml
from aiohttp import web
from e2e_cluster import ApiError, Cluster, Image, until
from e2e_pod import Pod, artifacts, lines_of, samples
from e2e_release import CHART, merged, rolled_out, steadily, values_of
from e2e_specs import ASK, UNPRIVILEGED, annotate, asked, engine_pod, event_about
from kubernetes.client import Configuration
from readme_blocks import Block, of
from test_e2e_readme import Reader

VERSIONS = ("1.29", kubernetes_validate.latest_version())
PODS = {
    "plain": engine_pod("engine", "rankguard:1", ranks=4),
    "starts late": engine_pod(
        "engine", "rankguard:1", "--title-when", "fifo", light=False, startupProbe={"exec": {"command": ["true"]}}
    ),
    "hangs": engine_pod("engine", "rankguard:1", probe={"periodSeconds": 2, "failureThreshold": 3}, grace=300),
    "unprivileged": engine_pod("engine", "rankguard:1", security=UNPRIVILEGED, automount=False),
    "ordinary": engine_pod(
        "engine", "rankguard:1", settings={"form": "ordinary", "image": "rankguard-that-is-nowhere:0"}
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PODS)
def test_the_pods_are_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(PODS[name], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_sent_from_inside_a_pod_is_valid(version: str) -> None:
    """An Event is one by the API's schema; and the program that asks is one that Python takes."""
    _, path, _, body = event_about("ns", "engine", "a-uid", "an-event")
    assert path == "/api/v1/namespaces/ns/events"
    kubernetes_validate.validate(body, version, strict=True)
    compile(ASK, "ask", "exec")
    assert json.loads(asked(annotate("ns", "engine"))[-1])[0][0] == "PATCH"


def test_the_entrypoint_writes_down_the_stop(tmp_path: Path) -> None:
    """The shell around the engine says when SIGTERM came, passes it on, and ends with the engine's own status."""
    shell = PODS["plain"]["spec"]["containers"][0]["command"][2].replace("/tmp/control", str(tmp_path / "control"))
    shell = shell.replace("/opt/rankguard/bin/python3", sys.executable)
    engine = subprocess.Popen(["/bin/sh", "-c", shell], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert engine.stdout is not None
        lines = iter(engine.stdout.readline, "")
        ready = next(json.loads(line) for line in lines if json.loads(line)["event"] == "ready")
        assert [rank["label"] for rank in ready["ranks"]] == ["TP0", "TP1", "TP2", "TP3"]
        assert (tmp_path / "control").is_fifo()
        engine.terminate()
        said = next(lines)
        assert said.startswith("TERM ")
        assert float(said.split()[1]) > 1e9
        assert engine.wait(30) == 128 + 15
    finally:
        engine.kill()
        for process in ready["processes"]:
            _kill(process["pid"], process["start"])
        engine.communicate()


@pytest.mark.parametrize("version", [(1, 29), (1, 30), (1, 36)])
def test_the_chart_takes_the_values(version: tuple[int, int]) -> None:
    """What these tests install with is allowed by the chart's schema, and renders."""
    values = values_of("run", Image("registry:5000/rankguard:e2e").values(), ["ns-0", "ns-1"], version)
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(merged(values, {"injection": "policy", "webhook": {"replicas": 1}}))
        for changed in (values, merged(values, {"sidecar": {"settings": {"death-deadline": 7}}})):
            chart.validate_schema(changed)
            rendered = chart.render(changed, name="run", namespace="system", is_install=True)
    documents = [one for text in rendered.values() if "kind:" in text for one in yaml.safe_load_all(text) if one]
    (config,) = (one for one in documents if one["kind"] == "MutatingWebhookConfiguration")
    assert config["webhooks"][0]["namespaceSelector"]["matchLabels"] == {"rankguard-e2e": "run"}
    assert {one["metadata"]["namespace"] for one in documents if one["kind"] == "Role"} >= {"ns-0", "ns-1"}


def test_helm_is_called_as_it_wants_to_be(tmp_path: Path) -> None:
    """Every step of a release's life, to the point where Helm looks for the cluster, which is not there. In a process
    of its own: Helm's engine reads KUBECONFIG when it is loaded.
    """
    config = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "current-context": "c",
        "users": [{"name": "u", "user": {}}],
    }))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], env={**os.environ, "KUBECONFIG": str(config)}, stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["refused"] * 6


_STEPS = """
import json, helm_python
from e2e_cluster import Cluster
from e2e_release import Release, values_of
with Cluster.from_environment() as cluster:
    values = values_of("run", cluster.image.values(), ["a"], (1, 36))
    release = Release(cluster, "run", "system", values, "a")
    told = []
    life = release.install, release.upgrade, lambda: release.rollback(1), release.uninstall, release.test
    for step in (*life, release.revisions):
        try:
            step()
        except helm_python.HelmKubeError as error:
            told.append("refused" if "connection refused" in str(error) else str(error))
    print(json.dumps(told))
    release.close()
"""


@pytest.mark.parametrize(
    ("enforce", "uid"), [("privileged", None), ("baseline", None), ("baseline", 1000), ("restricted", 1000)]
)
def test_the_pods_are_such_that_get_a_sidecar(enforce: str, uid: int | None) -> None:
    """By the very function that the webhook calls."""
    from sidecar.inject.options import load_options
    from sidecar.inject.pod import Place, inject

    for name, pod in PODS.items():
        given = copy.deepcopy(pod)
        if uid is not None:
            given["spec"]["containers"][0]["securityContext"] = UNPRIVILEGED
        result = inject(given, load_options({"image": "rankguard:1"}), Place(namespace="ns", enforce=enforce))
        assert result.injected, (name, result.reason, result.message)
        spec = result.pod["spec"]
        where = spec["containers"] if name == "ordinary" else spec["initContainers"]
        assert "rankguard" in [each["name"] for each in where]
        kubernetes_validate.validate(result.pod, VERSIONS[0], strict=True)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rankguard:1", ("rankguard", "1", "")),
        ("registry:5000/team/rankguard", ("registry:5000/team/rankguard", "", "")),
        ("registry:5000/rankguard:1", ("registry:5000/rankguard", "1", "")),
        ("rankguard@sha256:ab", ("rankguard", "", "sha256:ab")),
    ],
)
def test_an_images_name_is_taken_apart(name: str, parts: tuple[str, str, str]) -> None:
    values = Image(name).values()
    assert (values["repository"], values["tag"], values["digest"]) == parts


def test_a_condition_has_to_hold_for_a_while() -> None:
    answers = iter([True, False, True, True, True])
    holds = steadily(lambda: next(answers), times=3)
    assert [holds() for _ in range(5)] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({}, False),
        ({"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}, False),
        ({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 3}, False),
        ({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}, True),
    ],
)
def test_a_deployment_is_rolled_out_when_all_is_new(status: dict[str, int], done: bool) -> None:
    assert rolled_out({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}) is done


def test_logs_records_and_metrics_are_read() -> None:
    log = 'no json\n{"event": "watching", "state": "serving"}\n{"event": "watching", "state": "starting"}\n'
    assert len(lines_of(log, "watching")) == 2
    assert len(lines_of(log, "watching", state="serving")) == 1
    assert samples('rank_up{rank="TP0"} 1\n') == {"rank_up": {("TP0",): 1.0}}
    record = {"artifacts": [{"kind": "pyspy_json", "rank": "TP0", "status": "captured"}]}
    assert artifacts(record, "pyspy_json") == {"TP0"}
    assert artifacts(record, "pyspy_json", "failed") == set()


@pytest.fixture
def api(kmock: kmock.RawHandler) -> Iterator[Cluster]:
    settings = Configuration()
    settings.host = str(kmock.url).rstrip("/")
    with Cluster(settings, "/nonexistent", Image("rankguard:1")) as cluster:
        yield cluster


def state(*, ready: bool = False, restarts: int = 0, ended: Any = None, uid: str = "a") -> dict[str, Any]:
    """A pod as the API server would say it."""
    engine = {"name": "engine", "restartCount": restarts, "lastState": {"terminated": ended} if ended else {}}
    return {
        "metadata": {"name": "engine", "uid": uid},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [engine],
            "initContainerStatuses": [{"name": "rankguard", "restartCount": 0}],
        },
    }


@pytest.mark.asyncio
async def test_a_pod_is_followed_through_its_life(kmock: kmock.RawHandler, api: Cluster) -> None:
    """Not Ready, an API server that is busy for a moment, Ready; a restart with its exit code; an Event; gone."""
    path = "/api/v1/namespaces/ns/pods"
    ended = {"exitCode": 137, "message": "TP1 was killed"}
    kmock[f"post {path}"] << state()
    told = iter([
        state(), web.Response(status=503), state(ready=True), state(ready=True, restarts=1, ended=ended),
        state(ready=True, restarts=1, ended=ended), state(uid="b"),
    ])  # fmt: skip
    kmock[f"get {path}/engine"] << (lambda: next(told))
    kmock["get /api/v1/namespaces/ns/events"] << {
        "items": [
            {"reason": "RankDied", "message": "later", "lastTimestamp": "2026-01-02T00:00:00Z"},
            {"reason": "RankDied", "message": "first", "lastTimestamp": "2026-01-01T00:00:00Z"},
        ]
    }

    def follow() -> None:
        pod = Pod.made(api, "ns", PODS["plain"])
        assert pod.wait_ready() is pod
        assert pod.wait_restart() == ended
        assert pod.wait_event("RankDied")["message"] == "later"
        pod.wait_gone()

    await asyncio.to_thread(follow)
    asked_for = kmock["get /api/v1/namespaces/ns/events"][0]
    assert "involvedObject.uid=a,reason=RankDied" in str(asked_for.params)


@pytest.mark.asyncio
async def test_a_kubeconfig_is_read_and_its_token_shown(
    kmock: kmock.RawHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `KUBECONFIG` names it; and who reads the README types with names that are this run's."""
    config = tmp_path / "config"
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": str(kmock.url).rstrip("/")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "a-token"}}],
    }))  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.setenv("RANKGUARD_E2E_IMAGE", "registry:5000/rankguard:e2e")
    kmock["get /version"] << {"major": "1", "minor": "36"}

    def look() -> tuple[tuple[int, int], str]:
        with Cluster.from_environment() as cluster:
            version = cluster.version()
            (tmp_path / "reader").mkdir()
            reader = Reader(cluster, tmp_path / "reader", "rge2e-1")
            asked = Block("sh", ("cluster",), "kubectl config view --minify --output jsonpath={..namespace}\n", 1)
            assert "registry:5000/rankguard:e2e" in (reader.folder / "examples" / "stand-in.yaml").read_text()
            for block in of("cluster"):
                assert "rankguard-system" not in reader.theirs(block.text).replace(reader.system, "")
                assert "{default}" not in reader.theirs(block.text)
            return version, reader.types(asked)

    assert await asyncio.to_thread(look) == ((1, 36), "rge2e-1-readme")
    assert kmock["get /version"][0].headers["Authorization"] == "Bearer a-token"


@pytest.mark.asyncio
async def test_who_is_refused_is_not_asked_again(kmock: kmock.RawHandler, api: Cluster) -> None:
    """A 403 is no matter of waiting."""
    kmock["get /"] << 403
    with pytest.raises(ApiError):
        await asyncio.to_thread(until, lambda: api.get("/api/v1/namespaces/ns/pods/a"), "a pod", 30)
    assert len(kmock) == 1


@pytest.mark.asyncio
async def test_the_cluster_is_asked_what_it_knows(kmock: kmock.RawHandler, api: Cluster) -> None:
    kmock["get /version"] << {"major": "1", "minor": "36+"}
    kmock["get /apis/a.example/v1"] << {"resources": [{"kind": "Known"}]}
    kmock["get /apis/b.example/v1"] << 404
    assert await asyncio.to_thread(api.version) == (1, 36)
    assert await asyncio.to_thread(api.serves, "a.example/v1", "Known")
    assert not await asyncio.to_thread(api.serves, "a.example/v1", "Unknown")
    assert not await asyncio.to_thread(api.serves, "b.example/v1", "Known")


def _kill(pid: int, start: int) -> None:
    from sidecar_process import kill_identity

    from sidecar.model import Identity

    kill_identity(Identity(pid, start))
