"""What the webhook asks the API server, and what it tells it: namespaces, claims, Events, in good times and in bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, Refusal
from sidecar_process import eventually
from webhook_process import Webhook, certificates, patched, pod, review

ENFORCE = "pod-security.kubernetes.io/enforce"


def in_cluster(api: ApiServer, folder: Path, *arguments: str) -> Webhook:
    certificates(folder)
    return Webhook(folder, "--service-account", str(api.folder), *arguments, env=api.environ)


def rights(response: dict[str, Any], before: dict[str, Any]) -> Any:
    """The sidecar's securityContext."""
    spec = patched(response, before)["spec"]
    (sidecar,) = (c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == "rankguard")
    return sidecar.get("securityContext")


def test_the_rights_are_those_that_the_namespace_allows(api: ApiServer, tmp_path: Path) -> None:
    """By its label as it is now: one that is changed counts at once, and a namespace that was just made is known."""
    api.namespace("inference")
    api.namespace("strict", **{ENFORCE: "restricted"})
    before = pod()
    before["spec"]["securityContext"] = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
    with in_cluster(api, tmp_path) as webhook:
        webhook.ready()
        full = webhook.ask(review(before))
        assert not any("Pod Security" in line for line in full.get("warnings", ()))
        assert "SYS_PTRACE" in json.dumps(rights(full, before))
        strict = webhook.ask(review(before, namespace="strict"))
        assert "SYS_PTRACE" not in json.dumps(rights(strict, before))
        api.namespace("inference", **{ENFORCE: "baseline"})
        eventually(
            lambda: "SYS_PTRACE" not in json.dumps(rights(webhook.ask(review(before)), before)), "the new label counts"
        )
        api.namespace("new")
        assert "SYS_PTRACE" in json.dumps(rights(webhook.ask(review(before, namespace="new")), before))


@pytest.mark.parametrize("fault", ["hangs", "forbids", "breaks"])
def test_an_api_server_that_does_not_answer_costs_rights_and_no_time(
    api: ApiServer, tmp_path: Path, fault: str
) -> None:
    """The pod is let through with the rights that every namespace allows, and its creator is told; it is counted."""

    def fail(method: str, path: str) -> None:
        if fault == "hangs":
            api.hangs()
        raise Refusal(403 if fault == "forbids" else 500, "no")

    api.namespace("inference")
    api.fault = fail
    before = pod()
    before["spec"]["securityContext"] = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True}
    with in_cluster(api, tmp_path, "--namespace", "rankguard") as webhook:
        webhook.ready()
        response = webhook.ask(review(before))
        assert any("Pod Security" in line for line in response["warnings"])
        assert "SYS_PTRACE" not in json.dumps(rights(response, before))
        counted = 'rankguard_webhook_kubernetes_errors_total{operation="namespace"}'
        eventually(lambda: webhook.metric(counted) > 0, "the error is counted", 60)


def test_a_pod_without_its_sidecar_leaves_an_event(api: ApiServer, tmp_path: Path) -> None:
    """On what the pod belongs to, once for many equal pods; not for a trial run, which leaves nothing behind."""
    api.namespace("inference")
    wrong = pod(annotations={"rankguard.dev/death-deadline": "soon"})
    with in_cluster(api, tmp_path) as webhook:
        webhook.ready()
        assert webhook.ask(review(wrong, dryRun=True))["warnings"]
        assert any("BadAnnotation" in line for line in webhook.ask(review(wrong))["warnings"])
        webhook.ask(review(wrong))
        (event,) = eventually(api.events, "the Event")
        eventually(lambda: webhook.metric('rankguard_webhook_events_total{outcome="repeated"}') == 1, "counted")
        assert len(api.events()) == 1
    assert event["metadata"]["namespace"] == "inference"
    assert event["involvedObject"] == {
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "sglang-7d9c6b5f4d", "uid": "u-1",
        "namespace": "inference",
    }  # fmt: skip
    assert event["type"] == "Warning"
    assert "death-deadline" in event["message"]


def test_events_are_dropped_rather_than_waited_for(api: ApiServer, tmp_path: Path) -> None:
    """More pods than the queue holds, each with an owner of its own, while the API server takes no Event."""
    api.namespace("inference")
    api.fault = lambda method, path: api.hangs() if method == "POST" else None
    with in_cluster(api, tmp_path) as webhook:
        webhook.ready()
        from webhook_process import answer_on, request

        with webhook.connect() as connection:
            for at in range(300):
                owner = {"apiVersion": "v1", "kind": "X", "name": f"x{at}", "uid": f"u{at}", "controller": True}
                wrong = pod(annotations={"rankguard.dev/death-deadline": "soon"}, ownerReferences=[owner])
                connection.sendall(request(json.dumps(review(wrong)).encode()))
                assert answer_on(connection)[0] == 200
        assert webhook.metric('rankguard_webhook_events_total{outcome="dropped"}') > 0


def test_a_claim_that_cannot_be_used_is_not_mounted(api: ApiServer, tmp_path: Path) -> None:
    """A pod with one that is missing would stay Pending. One that is there, for many nodes, is mounted."""
    api.namespace("inference")
    claims = "/api/v1/namespaces/inference/persistentvolumeclaims"
    api.put(f"{claims}/shared", {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}})
    api.put(f"{claims}/single", {"metadata": {"name": "single"}, "spec": {"accessModes": ["ReadWriteOnce"]}})

    def mounted(webhook: Webhook, name: str) -> bool:
        found = pod(annotations={"rankguard.dev/volume": "claim", "rankguard.dev/volume-claim": name})
        after = patched(webhook.ask(review(found)), found)
        return any(v.get("persistentVolumeClaim", {}).get("claimName") == name for v in after["spec"]["volumes"])

    with in_cluster(api, tmp_path) as webhook:
        webhook.ready()
        # The first question may come too early for an answer on a busy machine: then the claim counts as not known.
        eventually(lambda: mounted(webhook, "shared"), "the shared claim is used")
        eventually(lambda: not mounted(webhook, "missing"), "the missing claim is not used")
        eventually(lambda: not mounted(webhook, "single"), "the claim of a single node is not used")


def test_options_are_read_again_and_a_bad_file_keeps_the_old_ones(api: ApiServer, tmp_path: Path) -> None:
    api.namespace("inference")
    file = tmp_path / "options.yaml"
    file.write_text("image: registry.example/rankguard:1\n")

    def image(webhook: Webhook) -> str:
        before = pod()
        spec = patched(webhook.ask(review(before)), before)["spec"]
        return next(c["image"] for c in spec["initContainers"] if c["name"] == "rankguard")

    with in_cluster(api, tmp_path, "--config", str(file)) as webhook:
        webhook.ready()
        assert image(webhook) == "registry.example/rankguard:1"
        file.write_text("image: registry.example/rankguard:2\nimage: twice\n")
        line = webhook.wait_for("the new options cannot be used")
        assert "second time" in line["because"]
        assert webhook.metric("rankguard_webhook_config_errors") == 1
        assert image(webhook) == "registry.example/rankguard:1"
        file.write_text("image: registry.example/rankguard:3\n")
        webhook.wait_for("the options were read again")
        assert image(webhook) == "registry.example/rankguard:3"
        assert webhook.metric("rankguard_webhook_config_errors") == 0
