"""Each rule of docs/injection.md, with the damage that a mistake would do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from inject_pods import (
    GPU,
    a_pod,
    annotated,
    container,
    done,
    engine,
    environ,
    injected,
    mounts,
    settings,
    sidecar,
    volume,
)

from sidecar.errors import UsageError
from sidecar.inject.options import Options, load_options
from sidecar.inject.pod import ClaimState, Place, inject, wanted_claim

ISTIO, LINKERD = "traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports"
FULL = {"drop": ["ALL"], "add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]}


# -- the sidecar ------------------------------------------------------------------------------------------------------


def test_native_is_first_and_has_no_probe_at_all():
    """It is there before the engine; a startupProbe that fails would keep the engine from starting."""
    pod = injected(a_pod(spec={"initContainers": [{"name": "fetch", "image": "x:1"}]}))
    first, second = pod["spec"]["initContainers"]
    assert (first["name"], first["restartPolicy"], second["name"]) == ("rankguard", "Always", "fetch")
    assert not {"startupProbe", "readinessProbe", "livenessProbe"} & set(first)
    assert pod["spec"]["shareProcessNamespace"] is True
    assert "fsGroup" not in str(pod)
    assert "terminationGracePeriodSeconds" not in pod["spec"]


def test_ordinary_on_request():
    pod = injected(annotated(a_pod(), form="ordinary"))
    assert [each["name"] for each in pod["spec"]["containers"]] == ["engine", "rankguard"]
    assert "restartPolicy" not in sidecar(pod)
    assert "initContainers" not in pod["spec"]


@pytest.mark.parametrize(
    ("spec", "place"), [({"restartPolicy": "Never"}, {}), ({}, {"owner_kind": "Job"}), ({}, {"owner_kind": "JobSet"})]
)
def test_never_ordinary_where_the_pod_is_to_end(spec, place):
    """An ordinary sidecar runs for ever, and so would the Job."""
    result = done(a_pod(spec=spec), {"form": "ordinary"}, **place)
    assert sidecar(result.pod)["restartPolicy"] == "Always"
    assert any("keep the pod from ending" in line for line in result.warnings)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, ""),
        ({"image": "registry.example:5000/a/rankguard@sha256:" + "0" * 64}, ""),
        ({"image": "rankguard:latest"}, "another one each time"),
        ({"image": "registry.example:5000/rankguard"}, "another one each time"),
        ({"image-pull-policy": "Always"}, "registry cannot be reached"),
    ],
)
def test_an_image_that_moves_is_warned_of(options, warned):
    """A native sidecar whose image cannot be had keeps the engine from starting."""
    result = done(a_pod(), options)
    assert sidecar(result.pod)["image"] == options.get("image", Options().image)
    assert [line for line in result.warnings if warned and warned in line] == list(result.warnings)
    assert bool(result.warnings) == bool(warned)


# -- resources --------------------------------------------------------------------------------------------------------


def test_no_limit_of_cpu_by_default():
    """A throttled sidecar sees a death late."""
    assert sidecar(injected(a_pod()))["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi", "ephemeral-storage": "5Gi"},
        "limits": {"memory": "192Mi"},
    }


@pytest.mark.parametrize(
    "resources",
    [
        {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}},
        {"limits": {"cpu": "8", "memory": "64Gi"}, "requests": {"cpu": "8000m", "memory": "65536Mi"}},
    ],
)
def test_a_guaranteed_pod_stays_so(resources):
    """Else the engine would be among the first to go when memory is short."""
    result = sidecar(injected(a_pod(resources=resources)))["resources"]
    assert result["requests"].items() >= {"cpu": "1", "memory": "192Mi"}.items()
    assert {name: result["limits"][name] for name in ("cpu", "memory")} == {"cpu": "1", "memory": "192Mi"}


def test_a_pod_is_not_guaranteed_for_its_engine_alone():
    whole = {"limits": {"cpu": "8", "memory": "64Gi"}}
    pod = injected(a_pod({"name": "proxy", "image": "proxy:1"}, resources=whole))
    assert "cpu" not in sidecar(pod)["resources"]["limits"]


def test_under_the_pods_own_resources_it_has_none():
    """The API server refuses a pod whose containers ask for more than the pod does."""
    both = {"requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"cpu": "8", "memory": "64Gi"}}
    assert sidecar(injected(a_pod(spec={"resources": both})))["resources"] == {"requests": {"ephemeral-storage": "5Gi"}}


@pytest.mark.parametrize(
    ("limit", "options", "expected"),
    [
        (None, {}, None),  # ours alone would be the limit of the whole pod, the engine's too
        ("100Gi", {}, "20Gi"),  # else the dumps would take their room from the engine
        ("100Gi", {"volume-size-limit": "50Gi"}, "50Gi"),
        ("100Gi", {"volume": "claim", "volume-claim": "dumps"}, "256Mi"),
    ],
)
def test_a_limit_of_storage_only_where_somebody_has_one(limit, options, expected):
    resources = copy.deepcopy(GPU)
    if limit:
        resources["limits"]["ephemeral-storage"] = limit
    given = sidecar(injected(a_pod(resources=resources), options))["resources"]
    assert given["limits"].get("ephemeral-storage") == expected
    assert given["requests"]["ephemeral-storage"] == ("256Mi" if "volume-claim" in options else "5Gi")


# -- the volume -------------------------------------------------------------------------------------------------------


def test_an_empty_dir_with_a_limit_that_the_sidecar_knows():
    """Going over it evicts the engine's pod."""
    pod = injected(annotated(a_pod(), volume_size_limit="7Gi"))
    assert volume(pod, "rankguard-dumps")["emptyDir"] == {"sizeLimit": "7Gi"}
    assert settings(pod).dump_volume_limit == 7 * 2**30
    assert mounts(sidecar(pod))["/var/lib/rankguard"]["subPathExpr"] == "$(POD_NAMESPACE)/$(POD_NAME)"


@pytest.mark.parametrize(
    ("claims", "kind", "warned"),
    [
        (None, "persistentVolumeClaim", ""),
        ({"dumps": ClaimState.OK}, "persistentVolumeClaim", ""),
        ({"dumps": ClaimState.MISSING}, "emptyDir", "there is no claim"),
        ({"dumps": ClaimState.NOT_SHARED}, "emptyDir", "ReadWriteMany"),
    ],
)
def test_a_claim_that_is_not_there_is_not_waited_for(claims, kind, warned):
    """The pod would stay Pending."""
    pod = annotated(a_pod(), volume_claim="dumps")
    assert wanted_claim(pod["metadata"]["annotations"], Options()) == "dumps"
    result = done(pod, claims=claims)
    assert kind in volume(result.pod, "rankguard-dumps")
    assert [line for line in result.warnings if warned in line] == list(result.warnings)
    assert bool(result.warnings) == bool(warned)
    assert (settings(result.pod).dump_volume_limit is None) == (kind == "persistentVolumeClaim")


@pytest.mark.parametrize(("enforce", "kind"), [("", "hostPath"), ("baseline", "emptyDir")])
def test_a_host_path_only_where_pod_security_lets_it_in(enforce, kind):
    options = {"volume": "host-path", "volume-host-path": "/data/dumps"}
    result = done(a_pod(securityContext={"runAsUser": 0, "runAsGroup": 0}), options, enforce=enforce)
    assert kind in volume(result.pod, "rankguard-dumps")
    assert any("Pod Security" in line for line in result.warnings) == bool(enforce)


def test_names_that_are_taken_are_not_taken_again():
    """A volume or a variable of the user's that has our name stays the user's."""
    theirs = [{"name": "rankguard-dumps", "emptyDir": {}}, {"name": "rankguard-token", "emptyDir": {}}]
    env = [{"name": "POD_NAME", "value": "mine"}, {"name": "SPT_NOENV", "value": "0"}]
    pod = injected(a_pod(spec={"volumes": theirs}, env=env))
    names = [each["name"] for each in pod["spec"]["volumes"]]
    assert names == ["rankguard-dumps", "rankguard-token", "rankguard-dumps-2", "rankguard-token-2"]
    assert mounts(sidecar(pod))["/var/lib/rankguard"]["name"] == "rankguard-dumps-2"
    assert environ(engine(pod)).items() >= {"POD_NAME": "mine", "SPT_NOENV": "0"}.items()


def test_a_group_loses_an_empty_dir():
    """A LeaderWorkerSet deletes the pod on every kill."""
    labels = {"leaderworkerset.sigs.k8s.io/name": "vllm"}
    pod = a_pod()
    pod["metadata"]["labels"] |= labels
    assert any("deletes its pods" in line for line in done(pod).warnings)
    assert done(pod, {"volume": "claim", "volume-claim": "dumps"}).warnings == ()


# -- the engine -------------------------------------------------------------------------------------------------------


def test_the_engine_sees_one_folder_and_only_for_cuda():
    pod = injected(a_pod())
    place = mounts(engine(pod))["/var/lib/rankguard/engine"]
    assert place["subPathExpr"] == "$(RANKGUARD_POD_NAMESPACE)/$(RANKGUARD_POD_NAME)/engine"
    assert environ(engine(pod))["CUDA_COREDUMP_FILE"].startswith("/var/lib/rankguard/engine/")
    for pod in (injected(a_pod(), {"engine-environment": False}),
                injected(a_pod(env=[{"name": "CUDA_COREDUMP_FILE", "value": "/x/y"}]))):  # fmt: skip
        assert "/var/lib/rankguard/engine" not in mounts(engine(pod))
        assert "RANKGUARD_POD_NAME" not in environ(engine(pod))
    assert environ(engine(injected(a_pod(), {"engine-environment": False}))) == {}


@pytest.mark.parametrize(
    ("more", "scratch"),
    [
        ({}, "/tmp/"),
        ({"securityContext": {"readOnlyRootFilesystem": True}}, "/var/lib/rankguard/engine/"),
        ({"securityContext": {"readOnlyRootFilesystem": True}, "volumeMounts": [{"name": "t", "mountPath": "/tmp/"}]},
         "/tmp/"),
    ],
)  # fmt: skip
def test_pipes_are_where_the_engine_may_write(more, scratch):
    values = environ(engine(injected(a_pod(**more))))
    assert values["CUDA_COREDUMP_PIPE"].startswith(scratch)
    assert values["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"].startswith(scratch)


def test_shared_memory_is_the_same_in_both():
    """Containers share /dev/shm only as long as none of them mounts a volume there."""
    shm = {"name": "dshm", "mountPath": "/dev/shm"}
    pod = injected(a_pod(volumeMounts=[shm], spec={"volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]}))
    assert mounts(sidecar(pod))["/dev/shm"] == shm
    assert "/dev/shm" not in mounts(sidecar(injected(a_pod())))


def test_shared_memory_is_not_mounted_as_only_the_privileged_may():
    """The API server refuses a pod with mountPropagation: Bidirectional in a container that is not privileged."""
    shm = {"name": "shm", "mountPath": "/dev/shm", "mountPropagation": "Bidirectional"}
    pod = injected(a_pod(volumeMounts=[shm], securityContext={"privileged": True}))
    assert mounts(sidecar(pod))["/dev/shm"]["mountPropagation"] == "HostToContainer"
    assert mounts(container(pod, "engine"))["/dev/shm"] == shm


def test_the_hook_is_called_by_number_and_with_the_token():
    """By name it would be looked up in the engine's container, fail, and the engine would be stopped at once."""
    pod = injected(a_pod(), token="s3cret")
    assert engine(pod)["lifecycle"]["preStop"]["httpGet"] == {
        "path": "/hooks/prestop",
        "port": 21400,
        "httpHeaders": [{"name": "X-Rankguard-Token", "value": "s3cret"}],
    }
    assert settings(pod).hook_token == "s3cret"
    assert sidecar(pod)["ports"] == [{"name": "rankguard", "containerPort": 21400}]
    other = injected(annotated(a_pod(), hook_token="mine", port="31400"), token="s3cret")
    call = engine(other)["lifecycle"]["preStop"]["httpGet"]
    assert (call["port"], call["httpHeaders"][0]["value"]) == (31400, "mine")
    assert (settings(other).listen, settings(other).hook_token) == (":31400", "mine")


def test_a_hook_of_the_users_is_kept_and_said():
    """Then the kubelet does not call us, and we have to be done before it acts: it tells how long that is."""
    own = {"preStop": {"exec": {"command": ["sleep", "10"]}}}
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5, "failureThreshold": 4}
    result = done(a_pod(lifecycle=own, livenessProbe=probe))
    assert engine(result.pod)["lifecycle"] == own
    assert engine(result.pod)["livenessProbe"] == probe
    assert any("keeps its own preStop hook" in line for line in result.warnings)
    assert environ(sidecar(result.pod))["RANKGUARD_TARGET_PROBE_WINDOW"] == "16"  # 3 periods, and a second's time-out
    assert "RANKGUARD_TERMINATION_GRACE_PERIOD" not in environ(sidecar(result.pod))


@pytest.mark.parametrize(
    "probe", [{"tcpSocket": {"port": 8000}}, {"httpGet": {"path": "/livez", "port": 21400}}], ids=["port", "ours"]
)
def test_a_probe_that_finds_no_hang_hurries_nobody(probe):
    """An open port does not end a busy engine, and /livez only says what we have found: there is time to be sure."""
    result = done(a_pod(lifecycle={"preStop": {"sleep": {"seconds": 5}}}, livenessProbe=probe))
    assert "RANKGUARD_TARGET_PROBE_WINDOW" not in environ(sidecar(result.pod))


def test_a_hook_to_us_is_no_hook_of_the_users():
    header = [{"name": "x-rankguard-token", "value": "own"}]
    own = {"preStop": {"httpGet": {"path": "/hooks/prestop", "port": 21400, "httpHeaders": header}}}
    result = done(a_pod(lifecycle=own), token="other")
    assert engine(result.pod)["lifecycle"] == own
    assert settings(result.pod).hook_token == "own"
    assert result.warnings == ()


def test_probes_have_the_time_of_a_hook_where_they_say_none():
    """The probe's own value governs a liveness kill; on the pod it would make every deletion slower."""
    probes = {"livenessProbe": {"httpGet": {"port": 1}}, "startupProbe": {"httpGet": {"port": 1}},
              "readinessProbe": {"httpGet": {"port": 1}}}  # fmt: skip
    pod = injected(annotated(a_pod(**probes), liveness_deadline="30.5"))
    graces = {name: engine(pod)[name].get("terminationGracePeriodSeconds") for name in probes}
    assert graces == {"livenessProbe": 46, "startupProbe": 46, "readinessProbe": None}
    assert "terminationGracePeriodSeconds" not in pod["spec"]
    assert settings(pod).termination_grace_period == 46
    assert settings(injected(a_pod())).termination_grace_period is None  # no probe: the kubelet never gives it up


def test_a_shorter_time_of_the_users_stays_and_is_said():
    result = done(a_pod(livenessProbe={"httpGet": {"port": 1}, "terminationGracePeriodSeconds": 10}))
    assert engine(result.pod)["livenessProbe"]["terminationGracePeriodSeconds"] == 10
    assert settings(result.pod).termination_grace_period == 10
    assert any("evidence may be cut" in line for line in result.warnings)


@pytest.mark.parametrize(
    "more",
    [
        {"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}, "livenessProbe": {"failureThreshold": 100_000}},
        {"livenessProbe": {"terminationGracePeriodSeconds": 1_000_000}},
    ],
)
def test_a_probe_that_never_acts_makes_no_setting_that_is_refused(more):
    """With a setting that `run` refuses the sidecar would only observe."""
    settings(injected(a_pod(**more)))  # which refuses it


def test_liveness_only_where_asked_for_and_never_in_place_of_another():
    assert "livenessProbe" not in engine(injected(a_pod()))
    probe = engine(injected(annotated(a_pod(), liveness="true")))["livenessProbe"]
    assert probe["httpGet"] == {"path": "/livez", "port": 21400}
    assert probe["timeoutSeconds"] >= 2
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60  # the restart of a sidecar, with back-off
    assert probe["terminationGracePeriodSeconds"] == 75
    own = {"httpGet": {"path": "/health", "port": 8000}, "terminationGracePeriodSeconds": 100}
    result = done(annotated(a_pod(livenessProbe=own), liveness="true"))
    assert engine(result.pod)["livenessProbe"] == own
    assert any("keeps its own livenessProbe" in line for line in result.warnings)


def test_another_termination_log_is_handed_over():
    assert settings(injected(a_pod(terminationMessagePath="/tmp/why"))).termination_log == "/tmp/why"
    assert "RANKGUARD_TERMINATION_LOG" not in environ(sidecar(injected(a_pod())))
    result = done(a_pod(terminationMessagePath="/tmp/../why"))
    assert settings(result.pod).termination_log == "/dev/termination-log"
    assert any("terminationMessagePath" in line for line in result.warnings)


def test_variables_from_elsewhere_are_warned_of():
    result = done(a_pod(envFrom=[{"configMapRef": {"name": "x"}}]))
    assert any("envFrom" in line for line in result.warnings)


# -- rights -----------------------------------------------------------------------------------------------------------

TWIN = {"runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize(
    ("enforce", "wanted", "own", "user", "capabilities", "warned"),
    [
        ("", "auto", {}, 0, FULL, ""),
        ("privileged", "auto", TWIN, 0, FULL, ""),
        ("", "twin", TWIN, 1000, {"drop": ["ALL"]}, ""),
        ("", "twin", {}, 0, FULL, "user is not known"),
        ("", "signals", {}, 0, {"drop": ["ALL"], "add": ["KILL"]}, ""),
        ("baseline", "auto", {}, 0, {"drop": ["ALL"], "add": ["KILL"]}, ""),
        ("baseline", "auto", TWIN, 1000, {"drop": ["ALL"]}, ""),
        ("baseline", "full", {}, 0, {"drop": ["ALL"], "add": ["KILL"]}, "enforces"),
        ("baseline", "auto", {"runAsUser": 0, "runAsGroup": 0}, 0, None, ""),
        ("restricted", "auto", TWIN, 1000, {"drop": ["ALL"]}, ""),
        ("restricted", "signals", TWIN, 1000, {"drop": ["ALL"]}, "enforces"),
        ("what is this", "full", TWIN, 1000, {"drop": ["ALL"]}, "enforces"),
        ("baseline", "auto", {"runAsUser": 5}, 5, None, "group is not known"),
    ],
)
def test_the_tier_is_what_pod_security_lets_in(enforce, wanted, own, user, capabilities, warned):
    """It refuses the whole pod for one capability too many; and added ones do nothing for another user than root."""
    result = done(a_pod(securityContext=own), {"rights": wanted}, enforce=enforce)
    security = sidecar(result.pod)["securityContext"]
    assert (security["runAsUser"], security["runAsNonRoot"]) == (user, user != 0)
    assert security.get("capabilities") == capabilities
    assert security["allowPrivilegeEscalation"] is False
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert [line for line in result.warnings if warned in line] == list(result.warnings)
    assert bool(result.warnings) == bool(warned)


def test_the_twin_is_a_twin_of_the_pods_user_too():
    pod = injected(a_pod(spec={"securityContext": {"runAsUser": 7, "runAsGroup": 8}}), enforce="restricted")
    assert (sidecar(pod)["securityContext"]["runAsUser"], sidecar(pod)["securityContext"]["runAsGroup"]) == (7, 8)


def test_a_twin_with_sys_admin_is_one_that_the_api_server_takes():
    """It refuses allowPrivilegeEscalation: false beside it."""
    own = {"runAsUser": 0, "runAsGroup": 0, "capabilities": {"add": ["SYS_ADMIN", "IPC_LOCK"]}}
    security = sidecar(injected(a_pod(securityContext=own), {"rights": "twin"}))["securityContext"]
    assert security["capabilities"] == {"add": ["SYS_ADMIN", "IPC_LOCK"]}
    assert "allowPrivilegeEscalation" not in security


# -- the net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("istio", "linkerd", "expected"),
    [
        (None, None, ("21400", "21400")),
        ("8080", "9000-9002,7", ("8080,21400", "9000-9002,7,21400")),
        ("21400, 1", "21000-22000", ("21400, 1", "21000-22000")),
    ],
)
def test_the_port_is_left_out_of_meshes(istio, linkerd, expected):
    """The kubelet has no certificate; what others excluded stays excluded."""
    pod = a_pod()
    theirs = {ISTIO: istio, LINKERD: linkerd}
    pod["metadata"]["annotations"] = {name: value for name, value in theirs.items() if value}
    after = injected(pod)["metadata"]["annotations"]
    assert (after[ISTIO], after[LINKERD]) == expected


def test_host_network_takes_a_port_that_is_not_declared():
    """A declared port is the node's there: a second pod would stay Pending. The port for people moves, too."""
    refused = done(a_pod(spec={"hostNetwork": True}))
    assert (refused.injected, refused.reason) == (False, "HostNetworkWithoutPort")
    pod = injected(annotated(a_pod(spec={"hostNetwork": True}), port="31400"))
    assert "ports" not in sidecar(pod)
    assert (settings(pod).listen, settings(pod).api_listen) == (":31400", "127.0.0.1:31401")
    assert engine(pod)["lifecycle"]["preStop"]["httpGet"]["port"] == 31400


def test_a_port_that_the_pod_has_is_somebody_elses():
    """The hook would call another program."""
    assert done(a_pod(ports=[{"containerPort": 21400}])).reason == "PortTaken"
    pod = injected(a_pod(ports=[{"containerPort": 21401}]))
    assert settings(pod).api_listen == "127.0.0.1:21402"


@pytest.mark.parametrize("listen", ["none", "127.0.0.1:21400"])
def test_nobody_is_to_call_what_does_not_listen(listen):
    """Else every stop would begin with a failed hook. And where we are not called, we have to be done before."""
    result = done(annotated(a_pod(livenessProbe={"exec": {"command": ["true"]}}), listen=listen))
    assert environ(sidecar(result.pod))["RANKGUARD_TARGET_PROBE_WINDOW"] == "21"
    assert "lifecycle" not in engine(result.pod)
    assert "ports" not in sidecar(result.pod)
    assert any("no preStop hook" in line for line in result.warnings)


def test_a_token_for_the_sidecar_alone():
    pod = injected(a_pod({"name": "proxy", "image": "proxy:1"}))
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert mounts(sidecar(pod))[path]["readOnly"] is True
    assert all(path not in mounts(container(pod, name)) for name in ("engine", "proxy"))
    sources = volume(pod, mounts(sidecar(pod))[path]["name"])["projected"]["sources"]
    assert sources[1]["configMap"]["optional"] is True  # a pod that waits for it would never start
    assert path not in mounts(sidecar(injected(a_pod(), {"api-token": False})))


def test_nvml_on_request():
    values = environ(sidecar(injected(annotated(a_pod(), nvml="true"))))
    assert values.items() >= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}.items()
    assert not [name for name in environ(sidecar(injected(a_pod()))) if name.startswith("NVIDIA")]


# -- the group --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "place", "variables"),
    [
        ({}, {}, []),
        ({"leaderworkerset.sigs.k8s.io/name": "x"}, {},
         ["metadata.labels['leaderworkerset.sigs.k8s.io/name']",
          "metadata.labels['leaderworkerset.sigs.k8s.io/group-index']"]),
        ({}, {"owner_kind": "LeaderWorkerSet", "group_size": 1}, []),
        ({"jobset.sigs.k8s.io/jobset-name": "x"}, {}, ["metadata.labels['jobset.sigs.k8s.io/jobset-name']"]),
        ({}, {"owner_kind": "JobSet"}, ["metadata.labels['jobset.sigs.k8s.io/jobset-name']"]),
    ],
)  # fmt: skip
def test_the_groups_name_is_in_the_labels(labels, place, variables):
    pod = a_pod()
    pod["metadata"]["labels"] |= labels
    entries = sidecar(injected(pod, **place))["env"]
    paths = [entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in entries if "valueFrom" in entry]
    assert [path for path in paths if "labels" in path] == variables
    assert ("RANKGUARD_POD_GROUP" in {entry["name"] for entry in entries}) == bool(variables)


# -- which container --------------------------------------------------------------------------------------------------


def test_the_annotation_names_the_target():
    second = {"name": "other", "image": "y:1"}
    pod = injected(annotated(a_pod(second), container="other"))
    assert "lifecycle" in container(pod, "other")
    assert engine(pod) == a_pod()["spec"]["containers"][0]
    both = injected(annotated(a_pod(second), container="other, engine"))
    assert environ(sidecar(both))["RANKGUARD_TARGET_CONTAINER"] == "engine,other"


SHELL = ["/bin/bash", "-c"]


@pytest.mark.parametrize(
    ("others", "target"),
    [
        ([{"name": "b", "resources": {"limits": {"amd.com/gpu": 1}}}, {"name": "a", "image": "x/vllm:1"}], "b"),
        ([{"name": "b", "resources": {"limits": {"nvidia.com/gpu": "0"}}}, {"name": "a", "image": "x/vllm:1"}], "a"),
        ([{"name": "b", "image": "proxy:1"}, {"name": "a", "command": ["python3", "-m", "sglang.launch_server"]}], "a"),
        ([{"name": "b"}, {"name": "a", "command": [*SHELL, "cd /x && exec env A=1 vllm serve m --port 1"]}], "a"),
        ([{"name": "b"}, {"name": "a", "command": ["torchrun", "--nproc-per-node", "8", "serve.py"]}], "a"),
        ([{"name": "b", "args": ["grep vllm"]}, {"name": "a", "image": "lmsysorg/sglang:v1"}], "a"),
        ([{"name": "b", "command": [*SHELL, "echo vllm serve"]}, {"name": "a", "image": "x/vllm:1"}], "a"),
    ],
)  # fmt: skip
def test_the_target_is_found(others, target):
    """Who asks for a GPU, else by the command, else by the image; a word somewhere in a line is no engine."""
    pod = a_pod()
    pod["spec"]["containers"] = others
    after = injected(pod)
    assert environ(sidecar(after))["RANKGUARD_TARGET_CONTAINER"] == target
    assert [each["name"] for each in after["spec"]["containers"] if "lifecycle" in each] == [target]


# -- who is left alone ------------------------------------------------------------------------------------------------


def signals(*command: str) -> dict[str, Any]:
    return a_pod(lifecycle={"preStop": {"exec": {"command": list(command)}}})


def with_labels(labels: dict[str, str]) -> dict[str, Any]:
    pod = a_pod()
    pod["metadata"]["labels"] = labels
    return pod


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (with_labels({}), "NoLabel"),
        (with_labels({"rankguard.dev/inject": "false"}), "OptedOut"),
        (with_labels({"rankguard.dev/inject": "yes"}), "BadLabel"),
        (a_pod({"name": "rankguard", "image": "mine:1"}), "AlreadyInjected"),
        (a_pod(spec={"hostPID": True}), "HostPID"),
        (a_pod(spec={"os": {"name": "windows"}}), "Windows"),
        (a_pod(spec={"nodeSelector": {"kubernetes.io/os": "windows"}}), "Windows"),
        (a_pod(spec={"shareProcessNamespace": False}), "ProcessesNotShared"),
        (signals("kill", "-TERM", "1"), "SignalsPidOne"),
        (signals("/bin/sh", "-c", "sleep 5; kill -s QUIT 1 || true"), "SignalsPidOne"),
        (signals("sh", "-c", "kill -- -1"), "SignalsPidOne"),
        (signals("python3", "-c", "import os; os.kill(1, 15)"), "SignalsPidOne"),
        (signals("sh", "-c", "cat /proc/1/environ"), "SignalsPidOne"),
        (a_pod(command=["bash", "-c", "trap 'kill -TERM 1' TERM; vllm serve m"]), "SignalsPidOne"),
        (a_pod({"name": "x", "livenessProbe": {"exec": {"command": ["kill", "-0", "1"]}}}), "SignalsPidOne"),
        (a_pod(command=["/init"]), "InitSystem"),
        (a_pod(command=["sh", "-c", "exec s6-svscan /etc/s6"]), "InitSystem"),
        (a_pod(resources={}, image="proxy:1"), "NoTarget"),
        (annotated(a_pod(), death_deadlin="5"), "BadAnnotation"),
        ({"spec": {"containers": [{"name": "x", "env": "no list"}]}}, "NotAPod"),
    ],
)  # fmt: skip
def test_who_is_left_alone_and_why(pod, reason):
    """The pod comes as it would have, but for the reason."""
    before = copy.deepcopy(pod)
    result = done(pod)
    assert (result.injected, result.reason) == (False, reason)
    assert result.message
    left = copy.deepcopy(result.pod)
    if reason != "NotAPod":
        said = left["metadata"]["annotations"].pop("rankguard.dev/skipped")
        assert said == f"{reason}: {result.message}"
        if "annotations" not in before["metadata"]:
            del left["metadata"]["annotations"]
    assert left == before


@pytest.mark.parametrize(
    "pod",
    [
        signals("sh", "-c", "kill -TERM 12; kill $(pidof vllm); kill -1 4711"),
        signals("cp", "/init", "/tmp/1"),
        signals("sh", "-c", "cat /proc/123/status"),
        a_pod(command=["tini", "--", "vllm", "serve", "m"], args=["--name", "init"]),
    ],
)
def test_who_looks_like_it_and_is_not(pod):
    assert done(pod).reason == "Injected"


@pytest.mark.parametrize(
    ("annotations", "line"),
    [
        ({"death_deadline": "5x"}, "rankguard.dev/death-deadline: '5x' cannot be used: it takes seconds, a number"),
        ({"death_deadlin": "5"}, "is no setting of `run`; did you mean death-deadline?"),
        ({"pod_name": "x"}, "is set by injection itself"),
        ({"stall_limit": "5"}, "it takes at least --stall-timeout, 30"),
        ({"api_listen": ":21401"}, "beyond loopback it takes a token"),
        ({"container": "nobody"}, "the pod has no container 'nobody', but engine"),
        ({"form": "sidecar"}, "it takes one of native, ordinary"),
        ({"volume": "claim"}, "volume: claim needs volume-claim"),
        ({"volume_host_path": "/a/../b"}, "an absolute path with no .."),
        ({"port": "70000"}, "a number from 1 to 65535"),
        ({"port": "1234", "listen": ":1234"}, "leave one of them out"),
        ({"dump_dir": "here"}, "an absolute path"),
        ({"liveness": "yes"}, "it takes true or false"),
        ({"image": "Not An Image"}, "an image's name"),
    ],
)
def test_an_annotation_that_is_wrong_is_said_and_replaced_by_nothing(annotations, line):
    """With the words of `rankguard run` itself, where it is a setting of that."""
    result = done(annotated(a_pod(), **annotations))
    assert result.reason == "BadAnnotation"
    assert line in result.message


@pytest.mark.parametrize("word", ["A=b ", "env ", '"a;b" ', "';"])
def test_a_command_that_nobody_can_read_holds_nobody_up(word):
    """Others wait for their answers meanwhile: what grows with the square of a command's length would take minutes."""
    long = "x; kill $pid; " + word * (300_000 // len(word))
    assert done(a_pod(command=["sh", "-c", long])).reason == "CommandTooLong"
    assert done(a_pod(command=["sh", "-c", long.replace("kill", "stop")])).injected


@pytest.mark.parametrize(
    "annotations",
    [{"rankguard.dev/container": "x" * 200_000}, {"others/note": "x" * 262_100}, {"others/note": "é" * 131_000}],
)
def test_what_it_writes_down_keeps_no_pod_out(annotations):
    """The API server refuses a pod whose annotations have more than 256 KiB together."""
    pod = a_pod()
    pod["metadata"]["annotations"] = dict(annotations)
    result = done(pod, token="t")
    assert result.injected or result.reason == "BadAnnotation"
    assert sum(len(f"{k}{v}".encode()) for k, v in result.pod["metadata"]["annotations"].items()) <= 256 * 1024
    assert annotations.items() <= result.pod["metadata"]["annotations"].items()


def test_annotations_set_any_setting_and_beat_the_installation():
    options = {"settings": {"death-deadline": 7, "on_rank_death": "capture", "captures": ["process", "pyspy"]}}
    pod = injected(annotated(a_pod(), death_deadline="5", log_format="json"), options)
    got = settings(pod)
    assert (got.death_deadline, got.on_rank_death, got.log_format) == (5.0, "capture", "json")
    assert got.captures == ("process", "pyspy")
    assert settings(injected(annotated(a_pod(), dump_dir="/data/x"))).dump_dir == "/data/x"
    assert "/data/x" in mounts(sidecar(injected(annotated(a_pod(), dump_dir="/data/x"))))


def test_old_words_of_ours_go_when_they_are_not_true_any_more():
    """A template copied from a pod that was skipped."""
    pod = a_pod()
    pod["metadata"]["annotations"] = {"rankguard.dev/skipped": "x", "rankguard.dev/warnings": "y", "mine": "z"}
    after = injected(pod)["metadata"]["annotations"]
    assert after["mine"] == "z"
    assert after["rankguard.dev/injected"]
    assert not {"rankguard.dev/skipped", "rankguard.dev/warnings"} & set(after)


@pytest.mark.parametrize("thing", [None, 3, [], "pod", {}, {"spec": None}, {"spec": {"containers": [{}]}},
                                   {"kind": "Service", "spec": {"containers": [{"name": "x"}]}}])  # fmt: skip
def test_what_is_no_pod_is_none(thing):
    result = inject(thing, Options(), Place())
    assert (result.injected, result.reason) == (False, "NotAPod")


def test_options_say_every_mistake():
    wrong = {"imag": "x", "form": "odd", "settings": {"death-deadline": "x", "in-pod": True}, "volume": "claim",
             "resources": {"limits": {"cpu": "a lot"}}}  # fmt: skip
    with pytest.raises(UsageError) as refusal:
        load_options(wrong)
    lines = str(refusal.value).split("\n")
    assert len(lines) == 5
    assert lines[0] == "imag is no option; did you mean image?"
    assert "settings: death-deadline: 'x' cannot be used: it takes seconds" in str(refusal.value)
    assert load_options({"volume_size_limit": "5Gi"}) == load_options({"volume-size-limit": "5Gi"})
