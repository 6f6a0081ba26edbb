"""What holds for every pod: nothing of the user's is lost or changed, twice is once, and the API server takes it."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inject_pods import LABEL, environ, sidecar
from inject_pods import settings as settings_of

from sidecar.inject.options import Options, load_options
from sidecar.inject.patch import json_patch
from sidecar.inject.pod import ClaimState, Place, inject

VERSIONS = ("1.29", kubernetes_validate.latest_version())  # the first with native sidecars, and the newest known
# What is ours on a container that is not: everything else has to stay.
OF_THE_ENGINE = {"env", "volumeMounts", "lifecycle", "livenessProbe", "startupProbe"}
OURS = "rankguard.dev/"
MESHES = ("traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports")


VOLUMES = ("dshm", "rankguard-dumps", "models")
SIZES = ("1", "500m", "2", "4Gi", "64Gi", "100Mi")
WORDS = ("bash", "-c", "vllm serve m", "python3", "-m", "sglang.launch_server", "sleep 1; true", "ü")
NAMES = ("CUDA_COREDUMP_FILE", "SPT_NOENV", "POD_NAME", "RANKGUARD_POD_NAME", "A", "B")
PATHS = ("/dev/shm", "/tmp", "/models", "/var/lib/rankguard/engine")
HOOKS = (
    {"exec": {"command": ["sleep", "5"]}},
    {"httpGet": {"path": "/x", "port": 1}},
    {"httpGet": {"path": "/hooks/prestop", "port": 21400}},
)


class Pods:
    """Pods as people write them: anything may be missing, or named as ours. One for each number, so that many are made
    in the time in which hypothesis would draw one value by value."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def some(self, **values: Any) -> dict[str, Any]:
        """Each of these or not. A function is asked for its value, of a tuple one is chosen."""
        return {name: self.one(value) for name, value in values.items() if self.random.random() < 0.5}

    def one(self, value: Any) -> Any:
        value = value() if callable(value) else self.random.choice(value) if isinstance(value, tuple) else value
        return copy.deepcopy(value)

    def few(self, values: tuple[str, ...]) -> list[str]:
        return self.random.sample(values, self.random.randint(0, 3))

    def amounts(self) -> dict[str, Any]:
        gpu = {"nvidia.com/gpu": "2"} if self.random.random() < 0.4 else {}
        return {name: self.one(SIZES) for name in self.few(("cpu", "memory", "ephemeral-storage"))} | gpu

    def probe(self) -> dict[str, Any]:
        numbers = self.some(periodSeconds=(1, 10), failureThreshold=(1, 180), timeoutSeconds=(1, 25))
        return {"httpGet": {"path": "/health", "port": 8000}, **numbers}

    def mortal(self) -> dict[str, Any]:
        return self.probe() | self.some(terminationGracePeriodSeconds=(10, 300))

    def container(self, name: str) -> dict[str, Any]:
        image = self.one(("vllm/vllm-openai:v1", "proxy:2", "lmsysorg/sglang:v2"))
        return {"name": name, "image": image} | self.some(
            command=lambda: self.few(WORDS),
            args=lambda: self.few(WORDS),
            env=lambda: [{"name": name, "value": f"my {name}"} for name in self.few(NAMES)],
            envFrom=[{"configMapRef": {"name": "x"}}],
            ports=([{"containerPort": 8000}], [{"containerPort": 21401}]),
            volumeMounts=lambda: [{"name": self.one(VOLUMES), "mountPath": path} for path in self.few(PATHS)],
            resources=lambda: self.some(limits=self.amounts, requests=self.amounts),
            securityContext=lambda: self.some(
                runAsUser=(0, 1000), runAsGroup=(0, 1000), readOnlyRootFilesystem=(True, False),
                capabilities=({"drop": ["ALL"]}, {"add": ["IPC_LOCK"]}, {"add": ["SYS_ADMIN"]}),
            ),
            terminationMessagePath=("/dev/termination-log", "/tmp/why"),
        )  # fmt: skip

    def whole_container(self, name: str) -> dict[str, Any]:
        return self.container(name) | self.some(
            livenessProbe=self.mortal,
            startupProbe=self.mortal,
            readinessProbe=self.probe,
            lifecycle=lambda: self.some(preStop=HOOKS, postStart=HOOKS[:2]),
        )

    def pod(self) -> dict[str, Any]:
        keys = (f"{OURS}death-deadline", f"{OURS}liveness", f"{OURS}nvml", "mine", *MESHES)
        more = self.some(**{"leaderworkerset.sigs.k8s.io/name": "g"})
        metadata = {"name": "p", "labels": {**LABEL, **more}} | self.some(
            annotations=lambda: {key: self.one(("5", "true", "8080")) for key in self.few(keys)}
        )
        spec = {"volumes": [{"name": name, "emptyDir": {}} for name in VOLUMES]} | self.some(
            initContainers=lambda: [self.container("fetch")],
            restartPolicy=("Always", "OnFailure", "Never"),
            terminationGracePeriodSeconds=(0, 900),
            securityContext={"runAsUser": 5, "fsGroup": 6},
            serviceAccountName="inference",
            tolerations=[{"operator": "Exists"}],
        )
        names = self.one((["engine"], ["engine", "proxy"], ["proxy", "engine"]))
        spec["containers"] = [self.whole_container(name) for name in names]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def options(self) -> Options:
        volume = self.one(
            ({}, {"volume": "claim", "volume-claim": "c"}, {"volume": "host-path", "volume-host-path": "/d"})
        )
        return load_options(
            volume | self.some(
                form=("native", "ordinary"), rights=("auto", "full", "twin", "signals"), liveness=(True, False),
                nvml=(True, False), **{"engine-environment": (True, False), "api-token": (True, False),
                                       "volume-size-limit": ("1Gi", "20Gi")},
            )
        )  # fmt: skip

    def place(self) -> Place:
        return Place(
            enforce=self.one(("", "privileged", "baseline", "restricted")),
            owner_kind=self.one(("", "Job", "LeaderWorkerSet")),
            claims=self.one((None, {"c": ClaimState.MISSING}, {"c": ClaimState.OK})),
            token=self.one(("", "token")),
        )


CASES = st.integers(0, 2**32 - 1).map(Pods).map(lambda made: (made.pod(), made.options(), made.place()))


@settings(max_examples=150)
@given(CASES)
def test_nothing_of_the_users_is_lost_or_changed(case):
    pod, options, place = case
    before = copy.deepcopy(pod)
    after = inject(pod, options, place).pod
    assert pod == before
    assert gone(before, after) == []


def gone(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the user had and has no more, or has otherwise."""
    lost = [f"metadata.{key}" for key in before["metadata"] if key != "annotations"
            and before["metadata"][key] != after["metadata"][key]]  # fmt: skip
    had, has = (each["metadata"].get("annotations") or {} for each in (before, after))
    lost += [key for key in had if key not in MESHES and had[key] != has.get(key)]
    lost += [key for key in MESHES if key in had and not has[key].startswith(had[key])]
    lost += [f"a new annotation {key}" for key in has if key not in had and not key.startswith(OURS)
             and key not in MESHES]  # fmt: skip
    spec, now = before["spec"], after["spec"]
    ours = {"containers", "initContainers", "volumes", "shareProcessNamespace"}
    lost += [f"spec.{key}" for key in spec.keys() | now.keys() if key not in ours and spec.get(key) != now.get(key)]
    for kind in ("initContainers", "containers"):
        kept = [each for each in now.get(kind) or [] if each["name"] != "rankguard"]
        theirs = spec.get(kind) or []
        assert [each["name"] for each in kept] == [each["name"] for each in theirs]
        for was, has in zip(theirs, kept, strict=True):
            lost += [f"{was['name']}.{line}" for line in changed(was, has)]
    names = [each["name"] for each in now["volumes"]]
    lost += [] if now["volumes"][: len(spec["volumes"])] == spec["volumes"] else ["spec.volumes"]
    assert len(set(names)) == len(names)
    return lost


def changed(was: dict[str, Any], has: dict[str, Any]) -> list[str]:
    lines = [key for key in was.keys() | has.keys() if key not in OF_THE_ENGINE and was.get(key) != has.get(key)]
    for key in ("env", "volumeMounts"):
        old, new = was.get(key) or [], has.get(key) or []
        lines += [] if new[: len(old)] == old else [key]
        paths = [entry.get("mountPath") or entry["name"] for entry in new]
        assert len(set(paths)) == len(paths)
    for key in ("livenessProbe", "startupProbe"):
        old, new = was.get(key), has.get(key)
        if old is not None:
            added = new.keys() - old.keys()
            same = {**new, **old} == new and added <= {"terminationGracePeriodSeconds"}
            lines += [] if same else [key]
    hooks = was.get("lifecycle") or {}
    lines += [name for name in hooks if has["lifecycle"].get(name) != hooks[name]]
    return lines


@settings(max_examples=100)
@given(CASES)
def test_twice_is_once(case):
    """The webhook is asked again when another one has changed the pod."""
    pod, options, place = case
    once = inject(pod, options, place).pod
    again = inject(once, options, place)
    assert again.pod == once
    assert not again.injected


@settings(max_examples=12)
@given(CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_server_takes_it(version, case):
    """With nothing that its schemas do not know; and `rankguard run` takes its environment."""
    pod, options, place = case
    kubernetes_validate.validate(pod, version, strict=True)
    result = inject(pod, options, place)
    kubernetes_validate.validate(result.pod, version, strict=True)
    if result.injected:
        settings_of(result.pod)
        assert ("RANKGUARD_HOOK_TOKEN" in environ(sidecar(result.pod))) <= bool(place.token)


@settings(max_examples=60)
@given(CASES)
def test_the_patch_makes_the_pod(case):
    pod, options, place = case
    after = inject(pod, options, place).pod
    assert jsonpatch.apply_patch(pod, json_patch(pod, after)) == after
    assert json_patch(after, after) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(CASES, st.data())
def test_whatever_stands_in_a_pod_nothing_is_raised(case, data):
    """One value of it is replaced by anything at all."""
    pod, _, _ = case
    places = [path for path in paths(pod) if path]
    *way, last = data.draw(st.sampled_from(places))
    inside = pod
    for step in way:
        inside = inside[step]
    inside[last] = data.draw(JSON)
    before = copy.deepcopy(pod)
    result = inject(pod, Options(), Place())
    assert pod == before
    assert result.message


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, inner in items for deeper in paths(inner, (*path, key)))]
