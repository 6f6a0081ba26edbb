"""A sidecar's token reaches its own pod alone: the policies, evaluated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from cel_policy import Evaluation, Request
from chart_cases import CASES
from helm_chart import NAMESPACE, of_kind, render, the

UID, OTHER_UID = "6b1f7a52-3a53-4a0e-9d42-6f3c1f0b7a11", "00000000-3a53-4a0e-9d42-6f3c1f0b7a11"
TOKEN = {"authentication.kubernetes.io/pod-name": ["engine-0"], "authentication.kubernetes.io/pod-uid": [UID]}
OBJECTS = render(CASES["rights"])


def pod(name: str = "engine-0", uid: str = UID, **changes: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "inference", "uid": uid, "labels": {"app": "engine"}}
    metadata |= {"annotations": {"kept": "1"}, "ownerReferences": [{"kind": "StatefulSet", "name": "engine"}]}
    return {"metadata": {**metadata, **changes}, "spec": {"containers": [{"name": "engine", "image": "x"}]}}


def annotated(**changes: Any) -> dict[str, Any]:
    return pod(annotations={"kept": "1", "rankguard.dev/last-incident": "20261120T235959.123Z-rankdied-tp3"}, **changes)


def event(key: str = "involvedObject", **changes: Any) -> dict[str, Any]:
    about = {"kind": "Pod", "namespace": "inference", "name": "engine-0", "uid": UID, **changes}
    return {"metadata": {"name": "engine-0.1", "namespace": "inference"}, key: about}


def refused(kind: str, request: Request) -> bool | None:
    """Whether the policy refuses; None where it is not asked at all."""
    spec = the(OBJECTS, "ValidatingAdmissionPolicy", f"-{kind}")["spec"]
    rule = spec["matchConstraints"]["resourceRules"][0]
    assert request.operation in rule["operations"]
    evaluation = Evaluation(spec, request)
    if not evaluation.matches():
        return None
    evaluation.variables()
    verdicts = [evaluation.value(each["expression"]) for each in spec["validations"]]
    assert all(isinstance(verdict, bool) for verdict in verdicts)
    return not all(verdicts)


def changed(old: dict[str, Any], new: dict[str, Any], **more: Any) -> Request:
    return Request("UPDATE", new, old, **{"extra": TOKEN, **more})


def test_the_own_pod_gets_its_annotation_and_loses_it():
    assert refused("pods", changed(pod(), annotated())) is False
    assert refused("pods", changed(annotated(), pod())) is False
    assert refused("pods", changed(pod(annotations={}), annotated())) is True  # `kept` is not ours to add
    without = pod()
    del without["metadata"]["annotations"]
    only = pod(annotations={"rankguard.dev/last-incident": "x"})
    assert refused("pods", changed(without, only)) is False
    assert refused("pods", changed(only, without)) is False


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"app": "other"}},
        {"labels": {"app": "engine", "more": "1"}},
        {"labels": {}},
        {"annotations": {"kept": "2"}},
        {"annotations": {}},
        {"annotations": {"kept": "1", "rankguard.dev/after-kill": "delete-pod"}},
        {"finalizers": ["stay.example/for-ever"]},
        {"ownerReferences": []},
    ],
    ids=str,
)
def test_nothing_else_of_it_is_changed(change):
    assert refused("pods", changed(pod(), pod(**change))) is True


def test_not_its_image_either():
    new = copy.deepcopy(annotated())
    new["spec"]["containers"][0]["image"] = "y"
    assert refused("pods", changed(pod(), new)) is True


NOT_ITS_OWN = {
    "another pod": {"name": "engine-1"},
    "a later pod of the same name": {"uid": OTHER_UID},
}


@pytest.mark.parametrize("which", NOT_ITS_OWN)
def test_another_pod_is_neither_annotated_nor_deleted(which):
    other = NOT_ITS_OWN[which]
    assert refused("pods", changed(pod(**other), annotated(**other))) is True
    assert refused("pods", Request("DELETE", None, pod(**other), extra=TOKEN)) is True


def test_the_own_pod_may_be_deleted():
    assert refused("pods", Request("DELETE", None, pod(), extra=TOKEN)) is False


UNBOUND = {
    "no extra at all": None,
    "an empty one": {},
    "a token for a node alone": {"authentication.kubernetes.io/node-name": ["n"]},
    "without the pod's uid": {"authentication.kubernetes.io/pod-name": ["engine-0"]},
}


@pytest.mark.parametrize("which", UNBOUND)
def test_an_unbound_token_is_refused(which):
    """One from a Secret, or from `kubectl create token`, may be anywhere."""
    extra = UNBOUND[which]
    assert refused("pods", changed(pod(), annotated(), extra=extra)) is True
    assert refused("pods", Request("DELETE", None, pod(), extra=extra)) is True
    assert refused("events", Request("CREATE", event(), extra=extra)) is True


@pytest.mark.parametrize("key", ["involvedObject", "regarding"])
def test_events_are_about_the_own_pod(key):
    """In both of the API's groups. One without a uid is taken; the name in the token is enough."""
    assert refused("events", Request("CREATE", event(key), extra=TOKEN)) is False
    assert refused("events", Request("UPDATE", event(key), event(key), extra=TOKEN)) is False
    nameless = event(key)
    del nameless[key]["uid"]
    assert refused("events", Request("CREATE", nameless, extra=TOKEN)) is False


@pytest.mark.parametrize(
    "change",
    [{"name": "engine-1"}, {"uid": OTHER_UID}, {"namespace": "research"}, {"kind": "Node"}, {"kind": "Deployment"}],
    ids=str,
)
@pytest.mark.parametrize("key", ["involvedObject", "regarding"])
def test_other_events_are_refused(key, change):
    """Also as a change of somebody else's Event into one of ours."""
    assert refused("events", Request("CREATE", event(key, **change), extra=TOKEN)) is True
    assert refused("events", Request("UPDATE", event(key), event(key, **change), extra=TOKEN)) is True
    assert refused("events", Request("CREATE", {"metadata": {"name": "x"}}, extra=TOKEN)) is True


NOT_MEANT = {
    "a person": {"username": "alice"},
    "the kubelet": {"username": "system:node:gpu-7"},
    "a controller of Kubernetes' own": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
    "another namespace's service account": {"username": "system:serviceaccount:inference-ops:operator"},
    "one whose namespace only begins so": {"username": "system:serviceaccount:inferenc:e"},
    "one that may make pods": {"allowed": {("create", "pods")}},
    "one that is exempt": {"username": "system:serviceaccount:inference:operator"},
}


@pytest.mark.parametrize("who", NOT_MEANT)
def test_nobody_else_is_kept_from_anything(who):
    """An error or a refusal here would stop roll-outs, drains and repairs in these namespaces."""
    more = NOT_MEANT[who]
    assert refused("pods", changed(pod(), pod(labels={}), extra=None, **more)) is None
    assert refused("pods", Request("DELETE", None, pod("engine-1"), **more)) is None
    assert refused("events", Request("CREATE", event(name="engine-1"), **more)) is None


def test_what_others_may_do_does_not_exempt():
    """Only what is as good as everything in the namespace does."""
    request = changed(pod("engine-1"), annotated(name="engine-1"), allowed={("delete", "pods"), ("create", "events")})
    assert refused("pods", request) is True


def test_the_policies_are_in_force_where_the_rights_are():
    """And deny: warning alone would be none."""
    namespaces = CASES["rights"]["sidecar"]["namespaces"]
    for policy in of_kind(OBJECTS, "ValidatingAdmissionPolicy"):
        assert policy["spec"]["failurePolicy"] == "Fail"
        binding = the(OBJECTS, "ValidatingAdmissionPolicyBinding", policy["metadata"]["name"][-7:])
        assert binding["spec"]["policyName"] == policy["metadata"]["name"]
        assert binding["spec"]["validationActions"] == ["Deny"]
        (selected,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
        assert selected == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces}
    rules = {
        (rule["resources"][0], operation, group)
        for policy in of_kind(OBJECTS, "ValidatingAdmissionPolicy")
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for operation in rule["operations"]
        for group in rule["apiGroups"]
    }
    assert rules == {
        ("pods", "UPDATE", ""),
        ("pods", "DELETE", ""),
        *(("events", operation, group) for operation in ("CREATE", "UPDATE") for group in ("", "events.k8s.io")),
    }


def granted(case: str) -> dict[str, set[tuple[str, str]]]:
    """By namespace: what its service accounts may do, from our Roles."""
    return {
        role["metadata"]["namespace"]: {
            (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
        }
        for role in of_kind(render(CASES[case]), "Role", "-sidecar")
    }


def test_rights_are_given_in_listed_namespaces_and_to_their_service_accounts_alone():
    """By default Events, and a look at the own pod. Nothing where no namespace is listed."""
    few = {("events", "create"), ("pods", "get")}
    assert granted("default") == {}
    assert granted("nothing injects") == {"inference": few}
    assert granted("no tokens") == {"inference": few}
    more = few | {("events", "patch"), ("pods", "patch"), ("pods", "delete")}
    assert granted("rights") == {"inference": more, "research": more}
    for binding in of_kind(OBJECTS, "RoleBinding", "-sidecar"):
        (subject,) = binding["subjects"]
        assert subject["name"] == f"system:serviceaccounts:{binding['metadata']['namespace']}"


@pytest.mark.parametrize("right", ["aggregateEvents", "annotatePod", "deletePod", "bindTokens"])
def test_no_further_right_without_the_policies(right):
    values = {"sidecar": {"namespaces": ["inference"], right: True}}
    assert len(of_kind(render(values), "ValidatingAdmissionPolicy")) == 2
    assert len(of_kind(render(values), "ValidatingAdmissionPolicyBinding")) == 2
    assert of_kind(render({"sidecar": {"namespaces": ["inference"]}}), "ValidatingAdmissionPolicy") == []


def test_the_fleet_switch_is_read_by_name_and_stays_as_it_was_set():
    """A key that the chart renders would be put back by an upgrade in the middle of an emergency."""
    objects = render(CASES["nothing injects"])
    switch = the(objects, "ConfigMap", "-fleet")
    assert "data" not in switch
    assert the(OBJECTS, "ConfigMap", "-fleet")["data"] == {"mode": "observe"}
    (rule,) = the(objects, "Role", "-fleet")["rules"]
    assert rule == {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [switch["metadata"]["name"]],
        "verbs": ["get"],
    }
    assert switch["metadata"]["namespace"] == the(objects, "Role", "-fleet")["metadata"]["namespace"] == NAMESPACE
    subjects = the(OBJECTS, "RoleBinding", "-fleet")["subjects"]
    assert [subject["name"] for subject in subjects] == [
        "system:serviceaccounts:inference",
        "system:serviceaccounts:research",
    ]
    assert of_kind(render(CASES["bound tokens"]), "ConfigMap", "-fleet") == []
    assert of_kind(render(), "ConfigMap", "-fleet") == []
