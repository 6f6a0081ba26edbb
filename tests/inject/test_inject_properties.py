"""What holds for every pod: nothing of the user's is lost or changed, twice is once, and the API server takes it."""

from __future__ import annotations

import copy
from typing import Any

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


def sometimes(key: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), values.map(lambda value: {key: value}))


@st.composite
def merged(draw: st.DrawFn, *parts: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for part in parts:
        value |= draw(part)
    return value


IDS = st.integers(0, 70000)
PORTS = st.sampled_from((80, 8000, 21401, 30000))
SIZES = st.sampled_from(("1", "500m", "2", "4Gi", "64Gi", "100Mi"))
WORDS = st.sampled_from(
    ("bash", "-c", "vllm serve m", "python3", "-m", "sglang.launch_server", "sleep 1; true", "x", "ü")
)
TARGETS = ("CUDA_COREDUMP_FILE", "SPT_NOENV", "POD_NAME", "RANKGUARD_POD_NAME", "A", "B")
PROBES = merged(
    st.just({"httpGet": {"path": "/health", "port": 8000}}),
    sometimes("periodSeconds", st.integers(1, 60)),
    sometimes("failureThreshold", st.integers(1, 200)),
    sometimes("timeoutSeconds", st.integers(1, 30)),
)
GRACE = sometimes("terminationGracePeriodSeconds", st.integers(1, 300))
HOOKS = st.sampled_from(
    ({"exec": {"command": ["sleep", "5"]}}, {"httpGet": {"path": "/x", "port": 1}}, {"sleep": {"seconds": 3}},
     {"httpGet": {"path": "/hooks/prestop", "port": 21400}})
)  # fmt: skip
SECURITY = merged(
    sometimes("runAsUser", IDS),
    sometimes("runAsGroup", IDS),
    sometimes("runAsNonRoot", st.booleans()),
    sometimes("readOnlyRootFilesystem", st.booleans()),
    sometimes("capabilities", st.sampled_from(({"drop": ["ALL"]}, {"add": ["IPC_LOCK"]}, {"add": ["SYS_ADMIN"]}))),
)
AMOUNTS = st.dictionaries(st.sampled_from(("cpu", "memory", "ephemeral-storage")), SIZES)
RESOURCES = merged(
    sometimes("limits", st.one_of(AMOUNTS, AMOUNTS.map(lambda some: {**some, "nvidia.com/gpu": "2"}))),
    sometimes("requests", AMOUNTS),
)
ENV = st.lists(st.sampled_from(TARGETS), unique=True, max_size=3).map(
    lambda names: [{"name": name, "value": f"my {name}"} for name in names]
)
VOLUMES = ("dshm", "rankguard-dumps", "models")
MOUNTS = st.lists(
    st.sampled_from(("/dev/shm", "/dev/shm/", "/tmp", "/models", "/var/lib/rankguard/engine")), unique=True, max_size=3
).map(lambda paths: [{"name": VOLUMES[at % 3], "mountPath": path} for at, path in enumerate(paths)])


def containers(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return merged(
        st.just({"name": name}),
        st.sampled_from(("vllm/vllm-openai:v1", "proxy:2", "lmsysorg/sglang:v2")).map(lambda image: {"image": image}),
        sometimes("command", st.lists(WORDS, min_size=1, max_size=4)),
        sometimes("args", st.lists(WORDS, max_size=3)),
        sometimes("env", ENV),
        sometimes("envFrom", st.just([{"configMapRef": {"name": "x"}}])),
        sometimes("ports", PORTS.map(lambda port: [{"containerPort": port}])),
        sometimes("volumeMounts", MOUNTS),
        sometimes("resources", RESOURCES),
        sometimes("securityContext", SECURITY),
        sometimes("livenessProbe", merged(PROBES, GRACE)),
        sometimes("startupProbe", merged(PROBES, GRACE)),
        sometimes("readinessProbe", PROBES),
        sometimes("lifecycle", merged(sometimes("preStop", HOOKS), sometimes("postStart", HOOKS))),
        sometimes("terminationMessagePath", st.sampled_from(("/dev/termination-log", "/tmp/why"))),
    )


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """Pods as people write them: anything may be missing, null, or named as ours."""
    metadata = draw(
        merged(
            st.just({"name": "p"}),
            st.sampled_from((LABEL, {**LABEL, "leaderworkerset.sigs.k8s.io/name": "g"})).map(lambda x: {"labels": dict(x)}),
            sometimes(
                "annotations",
                st.dictionaries(
                    st.sampled_from((f"{OURS}death-deadline", f"{OURS}liveness", f"{OURS}nvml", "mine", *MESHES)),
                    st.sampled_from(("5", "true", "8080")),
                ),
            ),
        )
    )  # fmt: skip
    names = draw(st.sampled_from((("engine",), ("engine", "proxy"), ("proxy", "engine"))))
    spec = draw(
        merged(
            st.just({"volumes": [{"name": name, "emptyDir": {}} for name in VOLUMES]}),
            sometimes("initContainers", containers("fetch").map(lambda c: [without(c, "lifecycle", "probes")])),
            sometimes("hostNetwork", st.booleans()),
            sometimes("restartPolicy", st.sampled_from(("Always", "OnFailure", "Never"))),
            sometimes("terminationGracePeriodSeconds", st.integers(0, 900)),
            sometimes("securityContext", st.fixed_dictionaries({"runAsUser": IDS, "fsGroup": IDS})),
            sometimes("serviceAccountName", st.just("inference")),
            sometimes("tolerations", st.just([{"operator": "Exists"}])),
        )
    )
    spec["containers"] = [draw(containers(name)) for name in names]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def without(container: dict[str, Any], *_: str) -> dict[str, Any]:
    """An init container, which has neither probes nor hooks."""
    return {key: value for key, value in container.items() if "Probe" not in key and key != "lifecycle"}


OPTIONS = merged(
    sometimes("form", st.sampled_from(("native", "ordinary"))),
    sometimes("rights", st.sampled_from(("auto", "full", "twin", "signals"))),
    sometimes("volume-size-limit", st.sampled_from(("1Gi", "20Gi"))),
    st.sampled_from(({}, {"volume": "claim", "volume-claim": "c"}, {"volume": "host-path", "volume-host-path": "/d"})),
    *(sometimes(name, st.booleans()) for name in ("liveness", "nvml", "engine-environment", "api-token")),
).map(load_options)
PLACES = st.builds(
    Place,
    enforce=st.sampled_from(("", "privileged", "baseline", "restricted")),
    owner_kind=st.sampled_from(("", "Job", "LeaderWorkerSet")),
    claims=st.sampled_from((None, {"c": ClaimState.MISSING}, {"c": ClaimState.OK})),
    token=st.sampled_from(("", "token")),
)


@settings(max_examples=150)
@given(pods(), OPTIONS, PLACES)
def test_nothing_of_the_users_is_lost_or_changed(pod, options, place):
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
            lines += (
                [] if {**new, **old} == new and new.keys() - old.keys() <= {"terminationGracePeriodSeconds"} else [key]
            )
    hooks = was.get("lifecycle") or {}
    lines += [name for name in hooks if has["lifecycle"].get(name) != hooks[name]]
    return lines


@settings(max_examples=100)
@given(pods(), OPTIONS, PLACES)
def test_twice_is_once(pod, options, place):
    """The webhook is asked again when another one has changed the pod."""
    once = inject(pod, options, place).pod
    again = inject(once, options, place)
    assert again.pod == once
    assert not again.injected


@settings(max_examples=60)
@given(pods(), OPTIONS, PLACES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_server_takes_it(version, pod, options, place):
    """With nothing that its schemas do not know; and `rankguard run` takes its environment."""
    kubernetes_validate.validate(pod, version, strict=True)
    result = inject(pod, options, place)
    kubernetes_validate.validate(result.pod, version, strict=True)
    if result.injected:
        settings_of(result.pod)
        assert ("RANKGUARD_HOOK_TOKEN" in environ(sidecar(result.pod))) <= bool(place.token)


@settings(max_examples=60)
@given(pods(), OPTIONS, PLACES)
def test_the_patch_makes_the_pod(pod, options, place):
    import jsonpatch

    after = inject(pod, options, place).pod
    assert jsonpatch.apply_patch(pod, json_patch(pod, after)) == after
    assert json_patch(after, after) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(pods(), st.data())
def test_whatever_stands_in_a_pod_nothing_is_raised(pod, data):
    """One value of it is replaced by anything at all."""
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
