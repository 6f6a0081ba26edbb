"""The component in the hands of the real kustomize, on workloads that were not written for it."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_files import ENGINE, FOLDER, INJECT, SIDECAR, built, container, environ, mounts, pods, volume

COMPONENT = FOLDER / "kustomize" / "component"
GRACE = FOLDER / "kustomize" / "grace-period"
KINDS = ("Deployment", "StatefulSet", "LeaderWorkerSet")


def almost_ours() -> list[str]:
    """Names of variables in which ours occur."""
    ours = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text())["template"]["spec"]
    names = [each["name"] for each in container(ours, ENGINE)["env"]]
    return [f"MY_{name}" for name in names] + [f"{name}_WAIT_SECS" for name in names]


def somebodys_pod() -> dict[str, Any]:
    """One with everything that the component's names could be taken for."""
    return {
        "terminationGracePeriodSeconds": 900,
        "serviceAccountName": "inference",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "initContainers": [
            {"name": "rankguard-models", "image": "fetch:1"},
            {"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"},
        ],
        "containers": [
            {"name": "my-engine", "image": "proxy:1", "env": [{"name": "SPT_NOENV", "value": "mine"}]},
            {
                "name": "engine",
                "image": "vllm/vllm-openai:v0.32.0",
                "command": ["vllm", "serve"],
                "args": ["m"],
                "env": [{"name": name, "value": f"my {name}"} for name in ("POD_NAME", *almost_ours())],
                "lifecycle": {"postStart": {"exec": {"command": ["true"]}}},
                "volumeMounts": [
                    {"name": "dshm", "mountPath": "/dev/shm"},
                    {"name": "old", "mountPath": "/mnt/var/lib/rankguard/engine"},
                ],
            },
            {"name": "engine-metrics", "image": "metrics:1"},
        ],
        "volumes": [
            {"name": "dshm", "emptyDir": {"medium": "Memory"}},
            {"name": "old", "emptyDir": {}},
            {"name": "rankguard-dumps-old", "emptyDir": {}},
        ],
    }


def workload(kind: str, *templates: dict[str, Any]) -> dict[str, Any]:
    """One of `kind` with these pods; a LeaderWorkerSet has two."""
    labels = {"app": "x"}
    wrapped = [{"metadata": {"labels": labels}, "spec": copy.deepcopy(pod)} for pod in templates]
    if kind == "LeaderWorkerSet":
        inner = {"size": 2, "leaderTemplate": wrapped[0], "workerTemplate": wrapped[-1]}
        version, spec = "leaderworkerset.x-k8s.io/v1", {"replicas": 3, "leaderWorkerTemplate": inner}
    else:
        version, spec = "apps/v1", {"replicas": 3, "selector": {"matchLabels": labels}, "template": wrapped[0]}
    if kind == "StatefulSet":
        spec["serviceName"] = "x"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}


def kustomize(
    folder: Path, *documents: dict[str, Any], components: tuple[Path, ...] = (COMPONENT,), **more: Any
) -> Any:
    """What comes of these documents. Raises `subprocess.CalledProcessError` where kustomize refuses."""
    folder.mkdir(exist_ok=True)
    (folder / "documents.yaml").write_text(yaml.safe_dump_all(documents))
    ours = [os.path.relpath(path, folder) for path in components]  # kustomize takes no absolute ones
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["documents.yaml"], "components": ours, **more})
    )
    return built(folder)


def missing(before: Any, after: Any, path: str = "") -> list[str]:
    """What was there before and is not any more, or is another value. Elements of lists may have moved."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key, value in before.items()
            for line in (missing(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"])
        ]
    if isinstance(before, list) and isinstance(after, list):
        lines = []
        for element in before:
            name = element.get("name") if isinstance(element, dict) else element
            alike = [e for e in after if (e.get("name") if isinstance(e, dict) else e) == name]
            if not any(missing(element, candidate) == [] for candidate in alike):
                lines.append(f"{path}/{name}")
        return lines
    return [] if before == after else [path]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_of_the_users_is_still_there(kind, tmp_path):
    """Also what is named almost like ours: kustomize looks for names by regular expressions."""
    before = workload(kind, somebodys_pod())
    (after,) = kustomize(tmp_path, before)
    assert missing(before, after) == []
    for pod, was in zip(pods(after), pods(before), strict=True):
        assert container(pod, SIDECAR)["restartPolicy"] == "Always"
        assert len(pod["initContainers"]) == len(was["initContainers"]) + 1
        assert len(pod["containers"]) == len(was["containers"])
        assert len(pod["volumes"]) == len(was["volumes"]) + 1
        assert "emptyDir" in volume(pod, "rankguard-dumps")
        engine = container(pod, ENGINE)
        assert mounts(engine)["/var/lib/rankguard/engine"]["name"] == "rankguard-dumps"
        assert engine["lifecycle"]["preStop"]["httpGet"]["port"] == 21400
        assert environ(engine)["CUDA_ENABLE_USER_TRIGGERED_COREDUMP"] == "1"
        for name in ("my-engine", "engine-metrics"):
            assert container(pod, name) == container(was, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_with_nothing_gets_the_lists_it_lacks(kind, tmp_path):
    """No volumes, no environment, no init containers, no lifecycle, no mounts: a JSON patch would fail on those."""
    bare = {"containers": [{"name": "engine", "image": "x:1"}], "terminationGracePeriodSeconds": 200}
    (after,) = kustomize(tmp_path, workload(kind, bare))
    for pod in pods(after):
        assert [each["name"] for each in pod["initContainers"]] == [SIDECAR]
        assert [each["name"] for each in pod["volumes"]] == ["rankguard-dumps"]
        assert pod["shareProcessNamespace"] is True
        assert pod["terminationGracePeriodSeconds"] == 200


@pytest.mark.parametrize("kind", KINDS)
def test_twice_is_once(kind, tmp_path):
    once = kustomize(tmp_path / "once", workload(kind, somebodys_pod()))
    assert kustomize(tmp_path / "twice", *once) == once


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_of_another_name_is_refused(kind, tmp_path):
    """Else the sidecar would be there and nobody would call its hook."""
    pod = somebodys_pod()
    container(pod, ENGINE)["name"] = "vllm"
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        kustomize(tmp_path, workload(kind, pod))
    assert "containers.[name=^engine$]" in refusal.value.stderr


def test_a_copy_of_the_component_takes_another_name(tmp_path):
    """As manifests/README.md says: the word is replaced in all of its files."""
    for file in COMPONENT.iterdir():
        (tmp_path / "component").mkdir(exist_ok=True)
        (tmp_path / "component" / file.name).write_text(re.sub(r"\bengine\b", "vllm", file.read_text()))
    assert r"sed -i 's/\bengine\b/vllm/g' component/*.yaml" in (FOLDER / "README.md").read_text()
    pod = somebodys_pod()
    container(pod, ENGINE)["name"] = "vllm"
    before = workload("Deployment", pod)
    (after,) = kustomize(tmp_path / "mine", before, components=(tmp_path / "component",))
    assert missing(before, after) == []
    engine = container(pods(after)[0], "vllm")
    assert engine["lifecycle"]["preStop"]["httpGet"]["port"] == 21400
    assert environ(engine)["CUDA_COREDUMP_FILE"].rpartition("/")[0] in mounts(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_grace_period_is_refused_or_set_by_its_own_component(kind, tmp_path):
    """Kubernetes' 30 s would end in the middle of a capture, and a number of ours could cut a longer one short."""
    pod = somebodys_pod()
    del pod["terminationGracePeriodSeconds"]
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        kustomize(tmp_path, workload(kind, pod))
    assert "terminationGracePeriodSeconds" in refusal.value.stderr
    (after,) = kustomize(tmp_path, workload(kind, pod), components=(GRACE, COMPONENT))
    assert {each["terminationGracePeriodSeconds"] for each in pods(after)} == {120}


def test_a_group_without_a_leader_template_is_refused(tmp_path):
    """Its leader's pod is the workers' then; with a template of ours it would be an empty one."""
    group = workload("LeaderWorkerSet", somebodys_pod())
    del group["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        kustomize(tmp_path, group)
    assert "leaderTemplate" in refusal.value.stderr


def test_what_is_labelled_or_of_another_kind_is_left_alone(tmp_path):
    router = workload("Deployment", {"containers": [{"name": "router", "image": "r:1"}]})
    router["metadata"] = {"name": "router", "labels": {INJECT: "false"}}
    agent = {**workload("Deployment", {"containers": [{"name": "a", "image": "a:1"}]}), "kind": "DaemonSet"}
    engine = workload("Deployment", somebodys_pod())
    made = {(each["kind"], each["metadata"]["name"]): each for each in kustomize(tmp_path, router, agent, engine)}
    assert made.pop(("Deployment", "router")) == router
    assert made.pop(("DaemonSet", "x")) == agent
    assert container(pods(made.pop(("Deployment", "x")))[0], SIDECAR)
    assert made == {}, "what the component is made of is no part of the output"


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_own_words_come_last(kind, tmp_path):
    """Image, name and namespace as everywhere in kustomize; settings by a patch."""
    path = {"LeaderWorkerSet": "/spec/leaderWorkerTemplate/leaderTemplate/spec"}.get(kind, "/spec/template/spec")
    setting = {"name": "RANKGUARD_STALL_LIMIT", "value": "600"}
    patch = [{"op": "add", "path": f"{path}/initContainers/2/env/-", "value": setting}]
    (after,) = kustomize(
        tmp_path,
        workload(kind, somebodys_pod()),
        namePrefix="prod-",
        namespace="inference",
        images=[{"name": "rankguard", "newName": "registry.example/rankguard", "newTag": "0.2.0"}],
        patches=[{"target": {"kind": kind}, "patch": yaml.safe_dump(patch)}],
    )
    assert after["metadata"]["name"] == "prod-x"
    assert container(pods(after)[0], SIDECAR)["image"] == "registry.example/rankguard:0.2.0"
    assert environ(container(pods(after)[0], SIDECAR))["RANKGUARD_STALL_LIMIT"] == "600"
