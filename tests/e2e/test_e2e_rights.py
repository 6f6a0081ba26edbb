"""What a sidecar may do: to its engine at each level of Pod Security, and at the API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from e2e_cluster import ApiError, Cluster, core, until
from e2e_pod import SIDECAR, Pod, artifacts
from e2e_release import Release
from e2e_specs import PLAIN, UNPRIVILEGED, annotate, asked, event_about

Play = Callable[..., Pod]
TOKEN_REQUEST = {
    "apiVersion": "authentication.k8s.io/v1",
    "kind": "TokenRequest",
    "spec": {"expirationSeconds": 600},
}


def level(name: str, *more: Any) -> Any:
    return pytest.param(*more, marks=pytest.mark.level(name), id=f"{name}-{more[0].replace(' ', '-')}")


@pytest.mark.parametrize(
    ("tier", "security"),
    [
        level("privileged", "full", UNPRIVILEGED),
        level("baseline", "twin", UNPRIVILEGED),
        level("baseline", "signals only", None),
        level("restricted", "twin", UNPRIVILEGED),
    ],
)
def test_the_tier_of_rights_is_the_namespaces(play: Play, tier: str, security: dict[str, Any] | None) -> None:
    """The pod is admitted at its namespace's level, the sidecar finds the tier that this level allows, and a death is
    captured with all that the tier gives: stacks of the survivors, or the kill alone.
    """
    pod = play("engine", security=security).wait_ready().wait_serving(2)
    checkup = json.loads(pod.exec(SIDECAR, "rankguard", "doctor", "--json", check=False))
    assert checkup["tier"] == tier, checkup
    lacking = {one["capability"] for one in checkup["checks"] if one["required"] and one["status"] == "missing"}
    assert lacking == set(), checkup
    pod.kill("sglang::scheduler_TP1")
    ended = pod.wait_restart()
    assert ended["exitCode"] == 137
    (record,) = pod.sealed()
    assert record["failures"][0]["rank"] == "TP1"
    assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
    stacks = artifacts(record, "pyspy_json")
    assert {"server", "TP0"} <= stacks if tier != "signals only" else stacks == set()
    if tier != "signals only":
        assert record["id"] in ended["message"]
    pod.wait_serving(2, times=2)
    assert pod.restarts(SIDECAR) == 0


def test_a_sidecars_token_reaches_its_own_pod_alone(play: Play, cluster: Cluster, release: Release) -> None:
    """With the rights for the annotation there comes the ValidatingAdmissionPolicy: the token in the sidecar may write
    its own pod's annotation and Events, and nothing else: no label, no other pod, no deletion, no list, no secret. The
    same service account's token that belongs to no pod may do none of it. People are not concerned.
    """
    if not release.values["sidecar"]["annotatePod"]:
        pytest.skip("needs Kubernetes 1.30 or newer, for ValidatingAdmissionPolicy")
    mine = play("mine").wait_ready()
    other = play("other").wait_ready()
    space = mine.namespace

    def answers(*requests: list[Any]) -> list[int]:
        return [status for status, _ in json.loads(mine.exec(SIDECAR, *asked(*requests)))]

    # The API server takes a policy up some seconds after it was made.
    until(lambda: answers(annotate(space, "other")) == [403], "another pod's annotation is refused", 120)
    pods = f"/api/v1/namespaces/{space}/pods"
    assert answers(
        annotate(space, "mine"),
        event_about(space, "mine", mine.uid, "e2e-mine"),
        ["GET", f"{pods}/mine", PLAIN, None],
    ) == [200, 201, 200]
    assert set(
        answers(
            annotate(space, "mine", labels={"app": "stolen"}),
            ["PATCH", f"{pods}/mine", "application/merge-patch+json", {"metadata": {"annotations": {"mine": "x"}}}],
            event_about(space, "other", other.uid, "e2e-other"),
            ["DELETE", f"{pods}/mine", PLAIN, None],
            ["DELETE", f"{pods}/other", PLAIN, None],
            ["GET", pods, PLAIN, None],
            ["GET", f"/api/v1/namespaces/{space}/secrets", PLAIN, None],
            ["GET", f"/api/v1/namespaces/{release.namespace}/secrets", PLAIN, None],
            annotate(release.namespace, "other"),
        )
    ) == {403}

    told = cluster.post(core(space, "serviceaccounts", "default", "token"), TOKEN_REQUEST)
    with cluster.with_token(told["status"]["token"]) as stranger:
        for attempt in (
            annotate(space, "mine"),
            event_about(space, "mine", mine.uid, "e2e-none"),
        ):
            method, path, kind, body = attempt
            with pytest.raises(ApiError) as refusal:
                stranger.ask(method, path, body, kind)
            assert refusal.value.status == 403

    assert "app" not in mine.read()["metadata"]["labels"]
    cluster.patch(other.path, {"metadata": {"labels": {"by": "a-person"}}})
    assert not mine.gone()
    assert not other.gone()


def test_the_engine_gets_no_token_of_ours(play: Play, cluster: Cluster) -> None:
    """The token that is projected for the sidecar is mounted in the sidecar alone: where the pod asks for none
    (`automountServiceAccountToken: false`), its engine has none.
    """
    pod = play("engine", automount=False).wait_ready().wait_serving(2)
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert "token" in pod.exec(SIDECAR, "ls", folder)
    assert "token" not in pod.exec("engine", "sh", "-c", f"ls {folder} 2>/dev/null || true")
    pod.kill("sglang::scheduler_TP1")
    pod.wait_event("RankDied")
