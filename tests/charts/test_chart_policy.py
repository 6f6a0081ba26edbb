"""The admission policy makes of a pod what `sidecar.inject` makes of it, as far as it claims to."""

from __future__ import annotations

import copy
from typing import Any

import helm_python
import jsonpatch
import kubernetes_validate
import pytest
import yaml
from cel_policy import Evaluation, Request
from chart_cases import CASES
from helm_chart import CHART, NAMESPACE, NEWEST, render, the

from sidecar.inject.options import Options, load_options
from sidecar.inject.pod import Place, inject
from sidecar.settings import Settings

MANIFESTS = CHART.parents[1] / "manifests"
GPU = {"limits": {"nvidia.com/gpu": "8"}}


def policy(values: dict[str, Any] | None = None) -> dict[str, Any]:
    return the(render({"injection": "policy", **(values or {})}), "MutatingAdmissionPolicy")["spec"]


DEFAULT = policy()


def mutated(pod: dict[str, Any], enforce: str = "", spec: dict[str, Any] = DEFAULT) -> dict[str, Any]:
    """The pod as the API server would have it after the policy."""
    labels = {"pod-security.kubernetes.io/enforce": enforce} if enforce else {}
    evaluation = Evaluation(spec, Request("CREATE", pod, labels=labels))
    if not evaluation.matches():
        return pod
    evaluation.variables()
    (mutation,) = spec["mutations"]
    return jsonpatch.apply_patch(pod, evaluation.value(mutation["jsonPatch"]["expression"]))


def pod(*containers: dict[str, Any], annotations: dict[str, str] | None = None, labels: Any = None, **spec: Any):
    metadata: dict[str, Any] = {"name": "engine-0", "labels": {"rankguard.dev/inject": "true", **(labels or {})}}
    if annotations is not None:
        metadata["annotations"] = annotations
    if not containers:
        containers = ({"name": "engine", "image": "vllm/vllm-openai:v1", "resources": GPU},)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": list(containers), **spec}}


def engine(name: str = "engine", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "registry.example/engine:1", "resources": GPU, **more}


def told(given: dict[str, Any]) -> dict[str, Any]:
    """What two ways of injection have to agree in: the order of an environment's parts is not among it, nor the words
    of a warning."""
    seen = copy.deepcopy(given)
    seen["metadata"]["annotations"].pop("rankguard.dev/warnings", None)
    for container in (*seen["spec"].get("initContainers", []), *seen["spec"]["containers"]):
        if "env" in container:
            container["env"] = {each["name"]: each for each in container["env"]}
        if "volumeMounts" in container:
            container["volumeMounts"] = {each["mountPath"]: each for each in container["volumeMounts"]}
        if "resources" in container:
            container["resources"] = {kind: amounts for kind, amounts in container["resources"].items() if amounts}
    return seen


def manifest(name: str) -> dict[str, Any]:
    """A pod of manifests/ as its user would have written it without us."""
    template = yaml.safe_load((MANIFESTS / name).read_text())["spec"]["template"]
    template["metadata"]["labels"]["rankguard.dev/inject"] = "true"
    spec = template["spec"]
    del spec["shareProcessNamespace"], spec["initContainers"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "rankguard-dumps"]
    (container,) = spec["containers"]
    del container["lifecycle"]
    mounts = container["volumeMounts"]
    container["volumeMounts"] = [mount for mount in mounts if mount["name"] != "rankguard-dumps"]
    container["env"] = [each for each in container["env"] if each["name"].startswith("HF_")]
    return {"apiVersion": "v1", "kind": "Pod", **template}


PROBES = {
    "livenessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5},
    "startupProbe": {"httpGet": {"path": "/health", "port": 8000}, "terminationGracePeriodSeconds": 200},
}
READY = {"httpGet": {"path": "/health", "port": 8000}}
TWIN = {"runAsUser": 1000, "runAsGroup": 1000}
FIXED = {"cpu": "8", "memory": "64Gi"}
PODS = {
    "sglang of the manifests": manifest("sglang-native.yaml"),
    "vllm of the manifests": manifest("vllm-native.yaml"),
    "nothing but a GPU": pod(engine()),
    "annotations of others": pod(annotations={"team": "x"}),
    "a mesh": pod(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "15090"}),
    "a mesh that knows": pod(annotations={"config.linkerd.io/skip-inbound-ports": "21400"}),
    "init containers": pod(engine(), initContainers=[{"name": "fetch", "image": "fetch:1", "command": ["fetch"]}]),
    "the engine is second": pod({"name": "proxy", "image": "proxy:1"}, engine()),
    "two engines": pod(engine("prefill"), {"name": "proxy", "image": "proxy:1"}, engine("decode")),
    "a GPU beside the engine": pod(engine("metrics"), engine("sglang", image="lmsysorg/sglang:v1")),
    "by its command": pod(
        {"name": "x", "image": "x:1", "command": ["python3", "-m", "sglang.launch_server", "--tp", "2"]}
    ),
    "by its image": pod({"name": "x", "image": "x:1"}, {"name": "y", "image": "registry.example/vllm-openai:1"}),
    "named": pod(engine(), {"name": "y", "image": "y:1"}, annotations={"rankguard.dev/container": "y"}),
    "named twice": pod(engine(), {"name": "y", "image": "y:1"}, annotations={"rankguard.dev/container": "y, engine"}),
    "settings": pod(annotations={"rankguard.dev/death-deadline": "5", "rankguard.dev/on-rank-death": "observe"}),
    "probes": pod(engine(**PROBES)),
    "a hook of its own": pod(engine(lifecycle={"preStop": {"sleep": {"seconds": 5}}}, **PROBES)),
    "a hook of its own, and a probe of the port": pod(
        engine(lifecycle={"preStop": {"sleep": {"seconds": 5}}}, livenessProbe={"tcpSocket": {"port": 8000}})
    ),
    "a hook of its own, and a probe of ours": pod(
        engine(
            lifecycle={"preStop": {"sleep": {"seconds": 5}}}, livenessProbe={"httpGet": {"path": "/livez", "port": 1}}
        )
    ),
    "a hook of its own and a probe that never acts": pod(
        engine(lifecycle={"preStop": {"sleep": {"seconds": 5}}}, livenessProbe={"failureThreshold": 100_000, **READY})
    ),
    "more grace than a setting takes": pod(engine(livenessProbe={"terminationGracePeriodSeconds": 1_000_000, **READY})),
    "our hook already": pod(engine(lifecycle={"preStop": {"httpGet": {"path": "/hooks/prestop", "port": 21400}}})),
    "a postStart": pod(engine(lifecycle={"postStart": {"exec": {"command": ["true"]}}})),
    "a message elsewhere": pod(engine(terminationMessagePath="/run/last-words")),
    "shared memory": pod(
        engine(volumeMounts=[{"name": "models", "mountPath": "/models"}, {"name": "shm", "mountPath": "/dev/shm"}]),
        volumes=[{"name": "models", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    ),
    "variables of its own": pod(
        engine(env=[{"name": "CUDA_COREDUMP_PIPE", "value": "/x"}, {"name": "SPT_NOENV", "value": "0"}])
    ),
    "guaranteed": pod(engine(resources={"limits": {**GPU["limits"], **FIXED}, "requests": FIXED})),
    "guaranteed by its limits": pod(engine(resources={"limits": {**GPU["limits"], **FIXED}})),
    "burstable": pod(engine(resources={"limits": {**GPU["limits"], **FIXED}, "requests": {**FIXED, "cpu": "4"}})),
    "a limit of storage": pod(engine(resources={"limits": {**GPU["limits"], "ephemeral-storage": "50Gi"}})),
    "resources of the pod": pod(engine(), resources={"requests": FIXED, "limits": FIXED}),
    "resources of the pod and a limit of storage": pod(
        engine(resources={"limits": {**GPU["limits"], "ephemeral-storage": "50Gi"}}), resources={"limits": FIXED}
    ),
    "a mount that the engine passes on": pod(
        engine(
            securityContext={"privileged": True},
            volumeMounts=[{"name": "shm", "mountPath": "/dev/shm", "mountPropagation": "Bidirectional"}],
        ),
        volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    ),
    "a user": pod(engine(), securityContext=TWIN),
    "a group of pods": pod(engine(), labels={"leaderworkerset.sigs.k8s.io/name": "x"}),
    "a group of one": pod(
        labels={"leaderworkerset.sigs.k8s.io/name": "x"}, annotations={"leaderworkerset.sigs.k8s.io/size": "1"}
    ),
    "a set of jobs": pod(engine(), labels={"jobset.sigs.k8s.io/jobset-name": "x"}),
}


@pytest.mark.parametrize("which", PODS)
def test_it_makes_of_a_pod_what_the_webhook_makes(which):
    given = PODS[which]
    expected = inject(given, Options(), Place(namespace="inference"))
    assert expected.injected, expected.message
    assert told(mutated(given)) == told(expected.pod)


LEVELS = {
    "baseline": ("baseline", pod(engine())),
    "baseline with a user": (
        "baseline",
        pod(engine(securityContext={"runAsUser": 1000}), securityContext={"runAsGroup": 7}),
    ),
    "restricted with a user": (
        "restricted",
        pod(
            engine(securityContext={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}),
            securityContext=TWIN,
        ),
    ),
    "root's twin": ("baseline", pod(engine(securityContext={"runAsUser": 0}))),
    "privileged": ("privileged", pod(engine())),
}


@pytest.mark.parametrize("which", LEVELS)
def test_the_rights_are_what_the_namespace_lets_in(which):
    """One capability too many, and Pod Security refuses the pod."""
    enforce, given = LEVELS[which]
    expected = inject(given, Options(), Place(namespace="inference", enforce=enforce))
    assert expected.injected, expected.message
    assert told(mutated(given, enforce)) == told(expected.pod)


STORED = engine(resources={"limits": {**GPU["limits"], "ephemeral-storage": "50Gi"}})
REFUSED = {  # by the API server, with a little less care: the values, the namespace's level, the pod
    "a hostPath where Pod Security is enforced": (CASES["folders of the nodes"], "baseline", pod(STORED)),
    "a hostPath elsewhere": (CASES["folders of the nodes"], "privileged", pod(STORED)),
    "a volume smaller than the request": ({"sidecar": {"volumeSizeLimit": "1Gi"}}, "", pod(STORED)),
    "a limit of its own": (
        {
            "sidecar": {
                "resources": {"requests": {"memory": "256Mi"}, "limits": {"memory": None, "ephemeral-storage": "30Gi"}}
            }
        },
        "",
        pod(STORED),
    ),
    "a limit of its own, where nobody has one": (
        {"sidecar": {"resources": {"limits": {"ephemeral-storage": "30Gi"}}}},
        "",
        pod(engine(resources={"limits": {**GPU["limits"], **FIXED}})),
    ),
    "a claim and a pod with resources": (
        {"sidecar": {"volume": "claim", "volumeClaim": "dumps"}},
        "",
        pod(engine(), resources={"limits": FIXED}),
    ),
    "the twin of who may nearly all": (
        {"sidecar": {"rights": "twin"}},
        "",
        pod(engine(securityContext={"runAsUser": 0, "capabilities": {"add": ["CAP_SYS_ADMIN"]}})),
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_it_adds_is_not_refused(which):
    """A sum above the pod's, a request above its limit, a volume that the level forbids: the engine would not start."""
    values, enforce, given = REFUSED[which]
    config = the(render({**values, "injection": "webhook"}), "ConfigMap", "-webhook")
    options = load_options(yaml.safe_load(config["data"]["options.yaml"]))
    expected = inject(given, options, Place(namespace="inference", enforce=enforce))
    assert expected.injected, expected.message
    made = mutated(given, enforce, policy(values))
    assert told(made) == told(expected.pod)
    kubernetes_validate.validate(made, NEWEST, strict=True)


SKIPPED = {
    "StaticPod": pod(annotations={"kubernetes.io/config.mirror": "x"}),
    "Windows": pod(engine(), os={"name": "windows"}),
    "HostPID": pod(engine(), hostPID=True),
    "ProcessesNotShared": pod(engine(), shareProcessNamespace=False),
    "HostNetworkWithoutPort": pod(engine(), hostNetwork=True),
    "SignalsPidOne": pod(engine(lifecycle={"preStop": {"exec": {"command": ["sh", "-c", "sleep 5; kill -TERM 1"]}}})),
    "InitSystem": pod(engine(command=["/init"])),
    "BadAnnotation": pod(annotations={"rankguard.dev/container": "other"}),
    "NoTarget": pod({"name": "x", "image": "x:1"}),
    "PortTaken": pod(engine(ports=[{"containerPort": 21400}])),
}


def test_the_port_for_people_is_not_taken_from_the_engine():
    """The sidecar starts first: an engine that listens on the same port would not come up. The webhook steps aside."""
    skipped = mutated(pod(engine(ports=[{"containerPort": 21401}])))["metadata"]["annotations"]["rankguard.dev/skipped"]
    assert skipped.startswith("PortTaken: ")


def test_a_one_in_another_line_is_no_signal_to_pid_1():
    script = "trap 'kill $child' TERM\nvllm serve --tp 1 &\nchild=$!; wait"
    assert "rankguard.dev/injected" in mutated(pod(engine(command=["sh", "-c", script])))["metadata"]["annotations"]


@pytest.mark.parametrize("reason", SKIPPED)
def test_it_leaves_alone_what_the_webhook_leaves_alone(reason):
    """With the same word for it, in the same annotation, and nothing else changed."""
    given = SKIPPED[reason]
    expected = inject(given, Options(), Place(namespace="inference"))
    assert (expected.injected, expected.reason) == (False, reason)
    made = mutated(given)
    skipped = made["metadata"]["annotations"].pop("rankguard.dev/skipped")
    assert skipped.startswith(f"{reason}: ")
    assert made == {**given, "metadata": {**given["metadata"], "annotations": given["metadata"].get("annotations", {})}}


def test_a_user_that_is_not_known_is_left_alone_where_it_matters():
    skipped = mutated(pod(engine()), "restricted")["metadata"]["annotations"]["rankguard.dev/skipped"]
    assert skipped.startswith("UserUnknown: ")


@pytest.mark.parametrize("word", ["rights", "volume-claim", "port", "image", "listen", "hook-token"])
def test_what_it_cannot_do_for_one_pod_it_says(word):
    """A wish that is passed over in silence would be found at the incident."""
    given = pod(engine(), annotations={f"rankguard.dev/{word}": "x"})
    made = mutated(given)["metadata"]["annotations"]["rankguard.dev/skipped"]
    assert made.startswith("BadAnnotation: ")
    assert "webhook" in made


@pytest.mark.parametrize("which", PODS)
def test_twice_is_once_and_the_result_is_a_pod(which):
    once = mutated(PODS[which])
    assert mutated(once) == once
    kubernetes_validate.validate(once, NEWEST, strict=True)


@pytest.mark.parametrize(
    "case", ["image by digest", "sidecar", "claims", "folders of the nodes", "no tokens", "nothing injects"]
)
def test_the_values_arrive(case):
    """The same as those of the webhook's options."""
    values = copy.deepcopy({key: value for key, value in CASES[case].items() if key != "injection"})
    values.get("sidecar", {}).pop("form", None)
    text = the(render({**values, "injection": "webhook"}), "ConfigMap", "-webhook")["data"]["options.yaml"]
    options = load_options(yaml.safe_load(text))
    given = pod(engine())
    expected = inject(given, options, Place(namespace="inference"))
    assert told(mutated(given, spec=policy(values))) == told(expected.pod)


def test_it_is_one_mutation_that_can_keep_no_pod_from_starting():
    """Of two under Ignore one can fail and the other be applied: a hook with no sidecar stops an engine at once."""
    assert DEFAULT["failurePolicy"] == "Ignore"
    assert DEFAULT["reinvocationPolicy"] == "IfNeeded"
    (mutation,) = DEFAULT["mutations"]
    assert mutation["patchType"] == "JSONPatch"
    expression = mutation["jsonPatch"]["expression"]
    assert len(expression) < 50_000  # the API server's parser takes twice that
    assert expression.count("\n+ ") < 125  # and of terms in a row as well
    constraints = DEFAULT["matchConstraints"]
    assert constraints["objectSelector"] == {"matchLabels": {"rankguard.dev/inject": "true"}}
    (excluded,) = constraints["namespaceSelector"]["matchExpressions"]
    assert excluded["values"] == ["kube-system", NAMESPACE]
    objects = render({"injection": "policy"})
    assert (
        the(objects, "MutatingAdmissionPolicyBinding")["spec"]["policyName"]
        == the(objects, "MutatingAdmissionPolicy")["metadata"]["name"]
    )
    assert {each["kind"] for each in objects} == {
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "Pod",
    }  # and no server


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [({"form": "ordinary"}, "native sidecars only"), ({"settings": {"listen": ":1"}}, "one port")],
)
def test_values_that_it_cannot_follow_are_refused(sidecar, words):
    with pytest.raises(helm_python.HelmRenderError, match=words):
        policy({"sidecar": sidecar})


def test_its_grace_is_the_deadlines():
    made = mutated(pod(engine(**PROBES)), spec=policy({"sidecar": {"settings": {"liveness-deadline": 90}}}))
    assert made["spec"]["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] == 105
    assert Settings().liveness_deadline == 60.0, "the template has this as its default"
