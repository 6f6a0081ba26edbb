"""The chart's life: tests, upgrade, rollback, removal; the policy instead of the webhook; the fleet switch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from e2e_cluster import LABEL, Cluster, core, until
from e2e_pod import SIDECAR, Pod
from e2e_release import Release, values_of
from e2e_specs import engine_pod

Play = Callable[..., Pod]


def test_helm_test_passes(release: Release) -> None:
    """`helm test` asks the API server for a pod, in a dry run, and finds the sidecar in it."""
    release.test()


def test_the_policy_instead_of_the_webhook(play: Play, cluster: Cluster, release: Release) -> None:
    """`injection: policy`, on 1.36 and newer: no server of ours runs, a labelled pod gets the sidecar all the same, and
    a killed rank makes its incident. Switched there and back by upgrades.
    """
    if cluster.version() < (1, 36) or not cluster.serves("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy"):
        pytest.skip("needs MutatingAdmissionPolicy in admissionregistration.k8s.io/v1: Kubernetes 1.36 or newer")
    with release.changed(injection="policy"):
        assert not [each for each in release.deployments() if each["metadata"]["name"].endswith("-webhook")]
        hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
        assert cluster.get(hooks, labelSelector=release.selector)["items"] == []
        pod = play("engine", probe={"periodSeconds": 5}).wait_ready().wait_serving(2)
        sidecar = pod.read()["spec"]["initContainers"][0]
        assert (sidecar["name"], sidecar["restartPolicy"]) == (SIDECAR, "Always")
        assert pod.container("engine")["lifecycle"]["preStop"]["httpGet"]["port"] == 21400
        pod.kill("sglang::scheduler_TP1")
        ended = pod.wait_restart()
        assert ended["exitCode"] == 137
        (record,) = pod.sealed()
        assert record["id"] in ended["message"]
        assert record["id"] in pod.wait_event("RankDied")["message"]


def test_the_fleet_switch(play: Play, cluster: Cluster, release: Release) -> None:
    """`mode: observe` in one ConfigMap, while the pod runs: the next death is recorded and nothing is killed. Taken
    back, the next engine is killed. An upgrade of the chart leaves the switch as a person has set it.
    """
    switch = core(release.namespace, "configmaps", f"{release.fullname}-fleet")
    pod = play("engine").wait_ready().wait_serving(2)
    cluster.patch(switch, {"data": {"mode": "observe"}})
    try:
        release.upgrade(commonLabels={"upgraded": "yes"})
        assert cluster.get(switch)["data"] == {"mode": "observe"}
        pod.until(lambda: list(pod.metrics().get("rankguard_fleet_observe", {}).values()) == [1], "the switch is seen")
        pod.kill("sglang::scheduler_TP1")
        (record,) = pod.sealed()
        assert record["decision"]["action"] == "observe"
        assert pod.restarts("engine") == 0
    finally:
        cluster.patch(switch, {"data": None})
    pod.until(
        lambda: list(pod.metrics().get("rankguard_fleet_observe", {}).values()) == [0], "the switch is taken back"
    )
    other = play("other").wait_ready().wait_serving(2)
    other.kill("sglang::scheduler_TP0")
    assert other.wait_restart()["exitCode"] == 137


def test_upgrade_rollback_and_removal(cluster: Cluster, run: str) -> None:
    """A release of its own: an upgrade changes what new pods get and leaves running ones alone; a rollback takes it
    back; after the removal nothing in the cluster carries the release's name, and pods are made as before.
    """
    name, system, target = f"{run}-life", f"{run}-life-system", f"{run}-life"
    alone = f"{run}-life-alone"  # a label's value of its own: the other release injects nothing here
    release = None
    try:
        for each in (system, target):
            cluster.make_namespace(each, {LABEL: alone})
        values = values_of(alone, cluster.image.values(), [target], cluster.version())
        values["webhook"]["replicas"] = 1
        release = Release(cluster, name, system, values, target)
        release.install()
        image = cluster.image
        pod = Pod.made(cluster, target, engine_pod("engine", image.name, pull_policy=image.pull_policy))
        pod.wait_ready().wait_serving(2)

        release.upgrade(sidecar={"settings": {"death-deadline": 7}})
        until(lambda: setting(release, "RANKGUARD_DEATH_DEADLINE") == "7", "new pods have the new setting", 300)
        release.rollback(1)
        until(lambda: setting(release, "RANKGUARD_DEATH_DEADLINE") is None, "new pods are as before", 300)
        assert [each["revision"] for each in sorted(release.revisions(), key=lambda r: r["revision"])] == [1, 2, 3]
        assert not pod.gone()
        assert (pod.restarts("engine"), pod.restarts(SIDECAR)) == (0, 0)

        release.uninstall()
        until(lambda: not release.left(), "nothing is left", 120)
        until(lambda: not release.injects(), "pods are made as before")
        pod.kill("sglang::scheduler_TP1")  # who has a sidecar keeps it
        assert pod.wait_restart()["exitCode"] == 137
    finally:
        if release is not None:
            release.uninstall()
            release.close()
        cluster.remove_namespaces(target, system)
    assert release.left() == []


def setting(release: Release, variable: str) -> str | None:
    """What a pod that is made now would have in its sidecar's environment."""
    for container in release.asked_for()["spec"].get("initContainers", []):
        if container["name"] == SIDECAR:
            return {each["name"]: each.get("value") for each in container["env"]}.get(variable)
    return "not injected"
