"""What stands in for an ordinary manifest in a test of real pods is that manifest."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
from manifest_files import ENGINE, PLAIN, VERSIONS, container, mounts, plain, pods
from manifest_play import playable

ORDINARY = [name for name in PLAIN if name.endswith("-ordinary.yaml")]
FOLDERS = {"models": "/host/models", "dshm": "/host/shm", "rankguard-dumps": "/host/dumps"}
STAND_IN = ["python3", "-m", "sidecar.demo.engine", "--tp", "4"]

ALLOWED = [
    r"volumes/.*",
    r"containers/\w+/image",
    rf"containers/{ENGINE}/(command|args)/\d+",
    rf"containers/{ENGINE}/resources/limits/nvidia\.com/gpu",
    r"containers/\w+/env/(POD_NAMESPACE|NODE_NAME)/(value|valueFrom/fieldRef/fieldPath)",
    r"containers/\w+/volumeMounts/rankguard-dumps[a-z-]*/(name|mountPath|subPathExpr)",
]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every scalar by its path; an element of a list is named by its name, or else its number."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(inner["name"] if isinstance(inner, dict) else str(at), inner) for at, inner in enumerate(value)]
    else:
        return {path: value}
    return {leaf: found for key, inner in items for leaf, found in leaves(inner, f"{path}/{key}".lstrip("/")).items()}


def play(name: str) -> dict[str, Any]:
    return playable(plain(name), image="localhost/rankguard:1", engine_command=STAND_IN, folders=FOLDERS)


@pytest.mark.parametrize("name", ORDINARY)
def test_nothing_is_changed_but_what_podman_cannot_do(name):
    """Else the pod tests would prove something of another manifest than the one that is shipped."""
    before, after = leaves(plain(name)), leaves(play(name))
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    inner = [path.removeprefix("spec/template/spec/") for path in changed]
    assert [path for path in inner if not any(re.fullmatch(allowed, path) for allowed in ALLOWED)] == []
    assert {pattern for pattern in ALLOWED if not any(re.fullmatch(pattern, path) for path in inner)} == set()


@pytest.mark.parametrize("name", ORDINARY)
def test_it_is_still_a_manifest_with_the_same_mounts(name):
    before, after = plain(name), play(name)
    kubernetes_validate.validate(after, VERSIONS[-1], strict=True)
    for each in ("engine", "rankguard"):
        was, has = (mounts(container(pods(document)[0], each)) for document in (before, after))
        assert was.keys() == has.keys()
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pods(after)[0]["volumes"]}
    assert paths["rankguard-dumps-engine"] == paths["rankguard-dumps-rankguard"] + "/engine"
    assert "fieldPath: metadata.namespace" not in str(after)


def test_the_manifest_itself_stays_as_it_is():
    document = plain(ORDINARY[0])
    playable(document, image="x:1", engine_command=["x"], folders=FOLDERS)
    assert document == plain(ORDINARY[0])


def test_a_native_sidecar_is_refused():
    """podman would wait for it to end, for ever."""
    with pytest.raises(ValueError, match="native sidecar"):
        play("vllm-native.yaml")
