"""The pods of manifests/ without what they have for Rankguard, injected: as they were, where both say it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from inject_pods import container, environ, injected, mounts, settings

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
GOLDEN = Path(__file__).with_name("golden")
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
# The names that the path of the engine's mount is made of: a pod's own POD_NAME may be anything.
_NAMES = {"POD_NAMESPACE", "POD_NAME", "RANKGUARD_POD_NAMESPACE", "RANKGUARD_POD_NAME"}


def shipped(name: str) -> dict[str, Any]:
    template = yaml.safe_load((FOLDER / name).read_text())["spec"]["template"]
    return {"metadata": template["metadata"], "spec": template["spec"]}


def bare(pod: dict[str, Any]) -> dict[str, Any]:
    """As a user would have it without Rankguard."""
    pod = copy.deepcopy(pod)
    pod["metadata"]["labels"]["rankguard.dev/inject"] = "true"
    spec = pod["spec"]
    del spec["shareProcessNamespace"]
    spec.pop("initContainers", None)
    spec["containers"] = [each for each in spec["containers"] if each["name"] != "rankguard"]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] != "rankguard-dumps"]
    (engine,) = spec["containers"]
    del engine["lifecycle"]
    engine["env"] = [each for each in engine["env"] if each["name"] in ("HOME", "USER")]
    engine["volumeMounts"] = [each for each in engine["volumeMounts"] if each["name"] != "rankguard-dumps"]
    return pod


@pytest.mark.parametrize("name", FILES)
def test_injection_gives_what_the_manifest_says(name):
    """What one of the two has learned and the other has not would be found on somebody's cluster."""
    told = shipped(name)
    form = "ordinary" if "ordinary" in name else "native"
    enforce = "restricted" if "twin" in name else ""
    made = injected(bare(told), {"form": form, "api-token": False}, enforce=enforce)

    assert made["spec"]["shareProcessNamespace"] is told["spec"]["shareProcessNamespace"]
    assert made["spec"]["volumes"] == told["spec"]["volumes"]
    ours, theirs = container(made, "rankguard"), container(told, "rankguard")
    for key in theirs.keys() - {"env", "securityContext"}:
        assert ours[key] == theirs[key], key
    # The twin of manifests/ has its user from the pod.
    assert ours["securityContext"].items() >= theirs["securityContext"].items()
    assert [each["name"] for each in ours["env"]][:4] == [each["name"] for each in theirs["env"]][:4]
    assert settings(made).dump_volume_limit == 20 * 2**30
    where = "initContainers" if form == "native" else "containers"
    assert [each["name"] for each in made["spec"][where]] == [each["name"] for each in told["spec"][where]]

    ours, theirs = container(made, "engine"), container(told, "engine")
    for key in theirs.keys() - {"env", "volumeMounts", "startupProbe"}:
        assert ours[key] == theirs[key], key
    assert ours["startupProbe"] == {**theirs["startupProbe"], "terminationGracePeriodSeconds": 75}
    assert mounts(ours).keys() == mounts(theirs).keys()
    here, there = environ(ours), environ(theirs)
    assert {key: here.get(key) for key in there.keys() - _NAMES} == {key: there[key] for key in there.keys() - _NAMES}
    more = here.keys() - there.keys() - _NAMES
    assert all(key.startswith("SGLANG_") for key in more)  # vLLM's manifests leave out what only SGLang reads


def test_a_whole_pod_as_it_comes_out():
    """To be read by people. After a wanted change: python tests/inject/test_inject_manifests.py"""
    assert golden() == (GOLDEN / "vllm.yaml").read_text()


def golden() -> str:
    made = injected(bare(shipped("vllm-native.yaml")), token="the-hooks-token")
    return yaml.safe_dump(made, sort_keys=False, width=120)


if __name__ == "__main__":
    sys.stdout.write(f"{GOLDEN / 'vllm.yaml'}\n")
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "vllm.yaml").write_text(golden())
