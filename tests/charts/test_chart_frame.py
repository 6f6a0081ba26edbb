"""What all of the chart's objects have in common: valid, named within the limits, and never another release's."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml
from chart_cases import CASES
from helm_chart import CHART, NAMESPACE, NEWEST, OLDEST, render, render_files

from sidecar.version import VERSION

GOLDEN = Path(__file__).parent / "golden-default.yaml"
EVERYTHING = {
    "sidecar": {"namespaces": ["inference"], "annotatePod": True},
    "viewer": {"enabled": True, "service": {"enabled": True}, "token": {"secretName": "t"}},
    "prune": {"enabled": True},
    "dumps": {"claim": "dumps", "namespace": "inference"},
    "webhook": {"certificate": {"mode": "cert-manager"}},
}
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
# The oldest cluster that a case can be installed in, where that is not the chart's.
SINCE = {"rights": "1.30", "bound tokens": "1.30", "policy": "1.36", "policy with all": "1.36"}


def test_the_chart_is_of_the_version_that_it_installs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION
    assert chart["type"] == "application"


@pytest.mark.parametrize("case", ["default", "webhook", "rights", "viewer for the cluster", "policy"])
def test_helms_linter_finds_nothing(case):
    """But for the icon, which we have none of."""
    report = helm_python.lint(CHART, values=CASES[case], kube_version=f"v{NEWEST}")
    assert [each for each in report["messages"] if each["error"] != "icon is recommended"] == []


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_every_object_is_one_that_the_api_server_takes(newest):
    """By the schemas of the oldest and of the newest version, with no field that they do not know."""
    seen = set()
    for case, values in CASES.items():
        version = NEWEST if newest else SINCE.get(case, OLDEST)
        for document in render(values, kube_version=version):
            text = json.dumps({**document, "metadata": None})
            if text not in seen and document["apiVersion"] != "cert-manager.io/v1":  # the others are most of the work
                kubernetes_validate.validate(document, ".".join(version.split(".")[:2]), strict=True)
            seen.add(text)


def test_a_wrong_field_would_be_found():
    """Else the test above could not fail."""
    for document in render():
        if document["kind"] == "Deployment":
            document["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize("case", ["default", "policy"])
def test_nothing_is_rendered_for_those_who_use_the_templates_alone(case):
    """A chart that has this one among its dependencies gets no object that it did not ask for."""
    off = {**CASES[case], "webhook": {"enabled": False}} if case == "default" else {"injection": "none"}
    assert render(off) == []


def test_each_object_says_where_it_belongs_and_what_it_is_part_of():
    for document in render(EVERYTHING):
        assert ("namespace" in document["metadata"]) == (document["kind"] not in CLUSTER_WIDE), document["metadata"]
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "guard"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("injection", ["webhook", "policy"])
def test_names_are_short_enough_whatever_the_release_is_called(injection):
    """A name is a label's value, and part of a pod's name and of a certificate's."""
    name, namespace = "r" * 53, "n" * 63
    values = {**EVERYTHING, "injection": injection, "sidecar": {**EVERYTHING["sidecar"], "namespaces": ["i" * 63]}}
    for document in render(values, name=name, namespace=namespace):
        most = 52 if document["kind"] == "CronJob" else 63
        assert len(document["metadata"]["name"]) <= most, document["metadata"]["name"]
        assert all(len(value) <= 63 for value in document["metadata"]["labels"].values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("guard", "team-a"), ("guard", "team-b")),
        (("guard-a", NAMESPACE), ("guard-b", NAMESPACE)),
        (("r" * 52 + "a", "n" * 63), ("r" * 52 + "b", "n" * 63)),
        (("guard", "n" * 62 + "a"), ("guard", "n" * 62 + "b")),
    ],
)
@pytest.mark.parametrize("injection", ["webhook", "policy"])
def test_two_releases_have_no_object_in_common(one, other, injection):
    """Not even in a third namespace, whose sidecars or volume both take care of."""
    values = {**EVERYTHING, "injection": injection}
    first, second = (
        {
            (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
            for document in render(values, name=name, namespace=namespace)
        }
        for name, namespace in (one, other)
    )
    assert first
    assert first & second == set()


@pytest.mark.parametrize("case", CASES)
def test_the_notes_name_what_is_there(case):
    """They are copied into a terminal in the first five minutes."""
    (notes,) = (body for path, body in render_files(CASES[case]).items() if path.endswith("NOTES.txt"))
    there = {
        (each["kind"].lower(), each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in render(CASES[case])
    }
    for command in (line.strip() for line in notes.splitlines() if line.strip().startswith("kubectl -n ")):
        namespace, words = command.split()[2], command.replace("deploy/", "deployment ").split()
        named = [(kind, name) for kind, name in itertools.pairwise(words) if kind in ("deployment", "configmap")]
        assert named or "POD" in command, command
        assert all(name == "NAME" or (kind, namespace, name) in there for kind, name in named), command
    assert ("port-forward" in notes) == any(name.endswith("-viewer") for _, _, name in there)
    assert ("helm test" in notes) == any(name.endswith("-test") for _, _, name in there)


def test_the_default_is_what_it_was():
    """A change of what everybody gets has to be seen in a review. `make renew-chart` writes it anew."""
    files = render_files(kube_version="1.36")
    text = "".join(f"# {path}\n{body.strip()}\n\n" for path, body in files.items())
    if os.environ.get("RENEW"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text, "`make renew-chart` writes it anew"
