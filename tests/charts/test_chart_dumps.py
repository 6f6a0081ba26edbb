"""What reads the volume with everybody's evidence: the viewer, and the job that prunes it."""

from __future__ import annotations

import pytest
from chart_cases import CASES
from click.testing import CliRunner
from helm_chart import of_kind, render, the

from sidecar.cli import rankguard


def _viewer(case: str):
    pod = the(render(CASES[case]), "Deployment", "-viewer")["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def _prune(case: str):
    pod = the(render(CASES[case]), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def mount(container):
    return next(each for each in container["volumeMounts"] if each["mountPath"] == "/dumps")


def test_nothing_of_it_is_there_by_default():
    assert of_kind(render(), "Deployment", "-viewer") == of_kind(render(), "CronJob") == []


def test_the_viewer_can_change_nothing_and_is_reached_by_nobody_in_the_cluster():
    """Read-only is the volume's word, not only the program's; and loopback needs the right to `port-forward`."""
    _, viewer = _viewer("viewer")
    assert mount(viewer)["readOnly"] is True
    assert "--api-listen=127.0.0.1:21401" in viewer["args"]
    assert "--write" not in viewer["args"]
    assert of_kind(render(CASES["viewer"]), "Service", "-viewer") == []
    policy = the(render(CASES["viewer"]), "NetworkPolicy", "-viewer")["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [21400]
    assert policy["egress"] == []


def test_with_a_service_it_asks_for_the_token():
    objects = render(CASES["viewer for the cluster"])
    pod, viewer = _viewer("viewer for the cluster")
    assert mount(viewer)["readOnly"] is False
    assert {"--api-listen=:21401", "--api-token-file=/etc/rankguard-token/secret", "--write"} <= set(viewer["args"])
    assert {"name": "token", "secret": {"secretName": "viewer-token", "defaultMode": 0o400}} in pod["volumes"]
    service = the(objects, "Service", "-viewer")["spec"]
    labels = the(objects, "Deployment", "-viewer")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    policy = the(objects, "NetworkPolicy", "-viewer")["spec"]
    by_port = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert by_port == dict.fromkeys((21400, 21401), CASES["viewer for the cluster"]["networkPolicy"]["viewerFrom"])


@pytest.mark.parametrize(("case", "of"), [("viewer", _viewer), ("prune", _prune)])
def test_they_read_everybodys_folders_and_nothing_else(case, of):
    """A sidecar's folder is closed to all but its user: root with one capability opens it. No token of the API's."""
    pod, reader = of(case)
    assert pod["automountServiceAccountToken"] is False
    assert "hostPath" not in str(pod["volumes"])
    assert reader["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}
    assert reader["securityContext"]["runAsUser"] == 0
    assert reader["securityContext"]["readOnlyRootFilesystem"] is True


def test_they_run_where_the_claim_is():
    """A claim belongs to a namespace; one that is said nowhere is the sidecars' own."""
    for document in render(CASES["viewer"]):
        if document["metadata"]["labels"]["app.kubernetes.io/component"] == "viewer":
            assert document["metadata"]["namespace"] == "inference"
    pod, _ = _viewer("viewer")
    assert {"name": "dumps", "persistentVolumeClaim": {"claimName": "dumps"}} in pod["volumes"]
    objects = render({"sidecar": {"volume": "claim", "volumeClaim": "shared"}, "prune": {"enabled": True}})
    volumes = the(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert volumes == [{"name": "dumps", "persistentVolumeClaim": {"claimName": "shared"}}]


def test_prune_is_never_there_twice():
    spec = the(render(CASES["prune"]), "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("case", ["viewer", "viewer for the cluster", "prune", "default"])
def test_the_commands_and_their_options_are_there(case):
    """Each command and flag in an argument list is one that `rankguard` knows."""
    for document in render(CASES[case]):
        spec = document.get("spec", {})
        template = (spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec).get("template", {})
        for each in template.get("spec", {}).get("containers", []):
            words = [word for word in each["args"] if not word.startswith("-")]
            told = CliRunner().invoke(rankguard, [*words, "--help"])
            assert told.exit_code == 0, told.output
            for flag in (word.partition("=")[0] for word in each["args"] if word.startswith("-")):
                assert flag in told.output, (words, flag)
