"""One label on a pod: what its failures look like in kubectl, on the volume and to Prometheus; what is no failure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from e2e_cluster import KUBECTL, Cluster
from e2e_pod import SIDECAR, Pod, artifacts, lines_of
from e2e_release import INJECTED, Release
from e2e_specs import INJECT

from sidecar.version import VERSION

Play = Callable[..., Pod]


def test_a_rank_is_killed(play: Play, release: Release) -> None:
    """A labelled pod gets its sidecar and is Ready. A rank gets SIGKILL: the engine's container is restarted with 137,
    and which rank it was stands in the termination message, in Events, in the pod's annotation, in the record with the
    survivors' stacks, and in the metrics. The sidecar is not restarted, and watches the new engine.
    """
    pod = play("engine", ranks=4).wait_ready().wait_serving(4)
    assert pod.annotations()[INJECTED] == VERSION
    sidecar = pod.read()["spec"]["initContainers"][0]
    assert (sidecar["name"], sidecar["restartPolicy"]) == (SIDECAR, "Always")
    assert pod.read()["spec"]["shareProcessNamespace"] is True
    pod.until(lambda: sum(pod.metrics().get("rankguard_rank_up", {}).values()) == 4, "four ranks in the metrics")

    pod.kill("sglang::scheduler_TP1")

    ended = pod.wait_restart()
    assert (ended["exitCode"], ended["reason"]) == (137, "Error")
    (record,) = pod.sealed()
    assert record["reason"] == "RankDied"
    assert [(f["rank"], f["cause"]) for f in record["failures"] if f["first"]] == [("TP1", "sigkill")]
    assert {"server", "TP0", "TP2", "TP3"} <= artifacts(record, "pyspy_json")
    assert record["pod"]["namespace"] == pod.namespace
    assert (record["pod"]["name"], record["pod"]["uid"]) == (pod.name, pod.uid)
    assert "TP1" in ended["message"]
    assert record["id"] in ended["message"]
    for reason in ("RankDied", "EvidenceSaved", "EngineKilled"):
        event = pod.wait_event(reason)
        assert record["id"] in event["message"]
        assert event["involvedObject"]["fieldPath"] == "spec.containers{engine}"
    assert "TP1" in pod.wait_event("RankDied")["message"]
    if release.values["sidecar"]["annotatePod"]:
        said = pod.until(lambda: pod.annotations().get("rankguard.dev/last-incident"), "the annotation")
        assert said.startswith(record["id"])

    pod.wait_serving(4, times=2).wait_ready()
    values = pod.until(lambda: sum((m := pod.metrics()).get("rankguard_rank_up", {}).values()) == 4 and m, "new ranks")
    assert values["rankguard_rank_deaths_total"]["sigkill",] == 1
    assert values["rankguard_incidents_total"]["RankDied",] == 1
    assert set(values.get("rankguard_kubernetes_errors_total", {}).values()) <= {0}
    assert pod.restarts(SIDECAR) == 0


def test_an_ordinary_container(play: Play) -> None:
    """For clusters that know no native sidecars: among the pod's containers, with the same result."""
    pod = play("engine", settings={"form": "ordinary"}).wait_ready().wait_serving(2)
    spec = pod.read()["spec"]
    assert SIDECAR in [each["name"] for each in spec["containers"]]
    assert SIDECAR not in [each["name"] for each in spec.get("initContainers", [])]
    pod.kill("sglang::scheduler_TP0")
    assert pod.wait_restart()["exitCode"] == 137
    (record,) = pod.sealed()
    assert record["failures"][0]["rank"] == "TP0"
    assert pod.restarts(SIDECAR) == 0


def test_a_start_that_takes_long(play: Play) -> None:
    """The user's startupProbe stays as it is, and while it fails the pod is not Ready and nobody is killed. A rank that
    dies during that start is an incident all the same, and the engine is started again.
    """
    probe = {
        "exec": {"command": ["test", "-e", "/tmp/up"]},
        "periodSeconds": 2,
        "failureThreshold": 300,
        "timeoutSeconds": 3,
        "successThreshold": 1,
    }
    pod = play("engine", "--title-when", "fifo", light=False, startupProbe=probe)
    assert {key: pod.container("engine")["startupProbe"][key] for key in probe} == probe
    assert "startupProbe" not in pod.container(SIDECAR)
    pod.until(lambda: '"event": "spawned"' in pod.logs("engine"), "the engine has begun")
    pod.until(lambda: len(pod.lines("rank")) >= 3, "the sidecar has seen the server and its ranks")
    pod.wait_event("Unhealthy")  # the probe has failed
    assert not pod.is_ready()
    assert pod.incidents() == []

    pod.order("exit TP1 3")

    assert pod.wait_restart()["exitCode"] == 137
    (record,) = pod.sealed()
    assert record["reason"] == "RankDied"
    assert [(f["exit_code"], f["cause"]) for f in record["failures"] if f["first"]] == [(3, "exit_nonzero")]

    pod.until(lambda: '"event": "spawned"' in pod.logs("engine"), "the engine has begun again")
    pod.order("title")
    pod.exec("engine", "touch", "/tmp/up")
    pod.wait_ready().wait_serving(2)
    assert len(pod.incidents()) == 1


def test_a_clean_deletion_is_no_incident(play: Play, cluster: Cluster, tmp_path: Path) -> None:
    """`kubectl delete pod`: the hook is answered at once, the pod goes well within its grace period, and neither the
    sidecar's log, which is read to its end, nor an Event tells of a failure.
    """
    pod = play("engine", grace=300).wait_ready().wait_serving(2)
    said = tmp_path / "log"
    follow = [KUBECTL, "logs", "-f", "-n", pod.namespace, pod.name, "-c", SIDECAR]
    with said.open("wb") as file:
        follower = subprocess.Popen(follow, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=file)
    try:
        pod.until(lambda: lines_of(said.read_text(), "watching", state="serving"), "the log is followed")
        pod.delete()
        pod.wait_gone(150)  # half of the grace period
        follower.wait(60)
    finally:
        follower.kill()
        follower.wait()
    log = said.read_text()
    hooks = lines_of(log, "preStop")
    assert {(hook["deletion"], hook["failing"]) for hook in hooks} == {(True, False)}
    for event in ("rank died", "liveness failed", "frozen", "killed", "sealed"):
        assert lines_of(log, event) == [], log
    told = {event["reason"] for event in pod.events()}
    assert not told & {"RankDied", "LivenessFailed", "EngineKilled", "FailedPreStopHook"}, told


def test_a_pod_that_says_no_is_left_alone(play: Play) -> None:
    """The label `rankguard.dev/inject: "false"`: the pod is admitted as it is, with an annotation that says why."""
    pod = play("engine", labels={INJECT: "false"})
    spec = pod.read()["spec"]
    assert [each["name"] for each in spec["containers"]] == ["engine"]
    assert spec.get("initContainers", []) == []
    assert not spec.get("shareProcessNamespace")
    assert INJECTED not in pod.annotations()
    assert pod.annotations()["rankguard.dev/skipped"].startswith("OptedOut: ")
