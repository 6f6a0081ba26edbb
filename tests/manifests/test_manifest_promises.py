"""What a manifest has to get right beyond its schema, each with the damage that a mistake would do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from manifest_files import (
    ENGINE,
    EXAMPLES,
    FOLDER,
    PLAIN,
    SIDECAR,
    built_example,
    command_line,
    container,
    containers,
    environ,
    mounts,
    plain,
    pods,
    volume,
    with_all_options,
)

from sidecar.commands import units
from sidecar.config import load
from sidecar.engines.table import profiles
from sidecar.listening import parse
from sidecar.settings import Settings

DEFAULTS = Settings()
PORT = parse(DEFAULTS.listen or "").port
SEALING = 10  # seconds after --liveness-deadline at which the hook answers at the latest
ENGINES_END = 30  # seconds that an engine should have for its own way down
SHIPPED = (*PLAIN, *(f"{name} with all options" for name in PLAIN), *EXAMPLES, "leaderworkerset's workers")


def shipped(name: str) -> dict[str, Any]:
    """A pod that we ship, by where it is from."""
    if name in EXAMPLES:
        return pods(built_example(name)[0])[0]
    if name == "leaderworkerset's workers":
        return pods(built_example("leaderworkerset")[0])[1]
    file, _, options = name.partition(" ")
    return pods(with_all_options(file) if options else plain(file))[0]


@pytest.fixture
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    return shipped(request.param)


every_pod = pytest.mark.parametrize("pod", SHIPPED, indirect=True)


@every_pod
def test_the_hook_names_the_sidecars_port_by_number(pod):
    """By name it would be looked up in the engine's container, fail, and the engine would be stopped at once."""
    hook = container(pod, ENGINE)["lifecycle"]["preStop"]["httpGet"]
    assert hook == {"path": "/hooks/prestop", "port": PORT}
    assert {"name": "rankguard", "containerPort": PORT} in container(pod, SIDECAR)["ports"]


@every_pod
def test_the_grace_period_holds_the_capture_and_the_engines_own_end(pod):
    """The kubelet kills the engine when it is over, in the middle of a coredump or of a request."""
    needed = DEFAULTS.liveness_deadline + SEALING + ENGINES_END
    assert pod["terminationGracePeriodSeconds"] >= needed
    probe = container(pod, ENGINE).get("livenessProbe")
    if probe is not None:
        assert probe["terminationGracePeriodSeconds"] >= needed
        assert probe["httpGet"] == {"path": "/livez", "port": PORT}
        assert probe["timeoutSeconds"] >= 2
        assert probe["failureThreshold"] * probe["periodSeconds"] >= 60  # the restart of a sidecar, with back-off


@pytest.mark.parametrize("name", PLAIN)
def test_the_sidecar_is_told_the_grace_period(name):
    """Else the doctor could not hold the deadlines against it where the API server may not be asked."""
    (pod,) = pods(plain(name))
    told = load({}, environ(container(pod, SIDECAR))).settings.termination_grace_period
    assert told == pod["terminationGracePeriodSeconds"]


def test_every_file_has_the_liveness_probe_as_an_option():
    assert all("livenessProbe" in container(pods(with_all_options(name))[0], ENGINE) for name in PLAIN)
    assert not any("livenessProbe" in container(pods(plain(name))[0], ENGINE) for name in PLAIN)


@every_pod
def test_every_setting_is_one(pod):
    """In a pod a setting that is refused turns every action into `observe`: nothing would be killed any more."""
    loaded = load({}, {**environ(container(pod, SIDECAR)), "RANKGUARD_IN_POD": "1"})
    assert [str(error) for error in loaded.errors] == []
    assert loaded.settings.pod.namespace == "inference"
    assert "" not in (loaded.settings.pod.name, loaded.settings.pod.uid, loaded.settings.pod.node)
    assert loaded.settings.dump_dir in mounts(container(pod, SIDECAR))


@every_pod
def test_the_volumes_limit_is_what_the_sidecar_is_told(pod):
    """Going over the emptyDir's limit evicts the engine's pod."""
    settings = load({}, environ(container(pod, SIDECAR))).settings
    limit = volume(pod, "rankguard-dumps")["emptyDir"]["sizeLimit"]
    assert settings.dump_volume_limit == units.size(limit)
    assert settings.dump_max_bytes <= 0.8 * settings.dump_volume_limit


@every_pod
def test_the_engine_is_known_and_complete_with_its_gpus(pod):
    """A command line that is not understood has no expected ranks, no probes and no verdict on a hang."""
    engine = container(pod, ENGINE)
    group = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "0", "LWS_LEADER_ADDRESS": "sglang-0.sglang.inference"}
    line = command_line(engine, group)
    profile = next(each for each in profiles("auto", None) if each.is_server(line))
    assert profile.name in engine["image"]
    expected = profile.expected(line, {})
    assert expected is not None
    assert expected.count == int(engine["resources"]["limits"]["nvidia.com/gpu"])
    endpoint = profile.endpoint(line, {})
    assert endpoint is not None
    assert endpoint.health
    assert endpoint.metrics == "/metrics", "without them only the health check speaks of work"
    if "ports" in engine:  # a group's further node serves nobody
        assert engine["ports"] == [{"name": "http", "containerPort": endpoint.port}]
        assert engine["startupProbe"]["httpGet"]["port"] in (endpoint.port, "http")
        if profile.name == "sglang":
            assert engine["startupProbe"]["timeoutSeconds"] > 1, "a healthy SGLang takes a second"


@every_pod
def test_processes_are_shared_and_the_sidecar_comes_with_a_pinned_image_and_no_probe(pod):
    """A moving tag changes what a restart runs; a probe on the sidecar has healthy engines killed or never started."""
    assert pod["shareProcessNamespace"] is True
    assert not {"startupProbe", "readinessProbe", "livenessProbe"} & set(container(pod, SIDECAR))
    assert container(pod, SIDECAR)["imagePullPolicy"] == "IfNotPresent"
    for each in containers(pod):
        _, colon, tag = each["image"].rpartition(":")
        assert colon
        assert any(letter.isdigit() for letter in tag), each["image"]


@every_pod
def test_the_engine_has_one_folder_of_the_dump_volume(pod):
    """It is the volume of --dump-dir, so a coredump is moved by a rename, and the engine sees no incident."""
    engine, sidecar = container(pod, ENGINE), container(pod, SIDECAR)
    (place,) = [mount for mount in engine["volumeMounts"] if mount["name"] == "rankguard-dumps"]
    (whole,) = [mount for mount in sidecar["volumeMounts"] if mount["name"] == "rankguard-dumps"]
    theirs, ours = environ(engine), environ(sidecar)
    assert expanded(place["subPathExpr"], theirs) == expanded(whole["subPathExpr"], ours) + "/engine"
    assert expanded(whole["subPathExpr"], ours) == "inference/engine-5d9c7b6f4-x2x9z"
    assert theirs["CUDA_COREDUMP_FILE"].startswith(place["mountPath"] + "/")
    assert not any("%" in part for part in theirs["CUDA_COREDUMP_FILE"].split("/")[:-1])  # the driver makes no folder


def expanded(expression: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(f"$({name})", value)
    assert "$" not in expression
    return expression


@every_pod
def test_the_environment_is_what_the_collectors_documents_say(pod):
    """A variable that is misspelled or left out is a collector that finds nothing."""
    have = environ(container(pod, ENGINE))
    told = documented("coredumps.md", "CUDA_") | documented("evidence.md", "TORCH_NCCL_")
    assert len(told) == 6
    assert {name: have.get(name) for name in told} == told
    assert have["TORCH_NCCL_DUMP_ON_TIMEOUT"] == have["SPT_NOENV"] == "1"
    assert have["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"].startswith("/tmp/")
    if "sglang" in container(pod, ENGINE)["image"]:
        assert have["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == have["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "false"


def documented(name: str, prefix: str) -> dict[str, str]:
    """The variables that a document has as lines to be copied."""
    lines = (FOLDER.parent / "docs" / name).read_text().splitlines()
    pairs = (line.strip().partition("=") for line in lines if line.startswith(f"    {prefix}"))
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("name", PLAIN)
def test_shared_memory_is_the_same_in_both(name):
    """NCCL needs more than a container's 64 MiB; a volume there is invisible to containers that do not mount it."""
    pod = pods(plain(name))[0]
    found = {mounts(container(pod, each))["/dev/shm"]["name"] for each in (ENGINE, SIDECAR)}
    assert len(found) == 1
    assert volume(pod, found.pop())["emptyDir"]["medium"] == "Memory"


@every_pod
def test_the_sidecars_resources_harm_nobody(pod):
    """A throttled sidecar sees a death late; a limit of storage on it alone would be the limit of the whole pod."""
    resources, engines = (container(pod, name)["resources"] for name in (SIDECAR, ENGINE))
    assert "cpu" not in resources["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"])
    assert ("ephemeral-storage" in resources["limits"]) == ("ephemeral-storage" in engines["limits"])
    assert units.size(resources["limits"]["memory"]) >= 192 * 2**20


@pytest.mark.parametrize("pod", [name for name in SHIPPED if "twin" not in name], indirect=True)
def test_the_full_tier_asks_for_three_capabilities_and_nothing_else(pod):
    """As a user other than root it would have none of them, and one more would be one too many."""
    assert container(pod, SIDECAR)["securityContext"] == {
        "runAsUser": 0,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_twin_has_what_the_engine_has():
    """The same user and the same capabilities, else the kernel refuses ptrace; and what Pod Security's restricted asks
    for."""
    pod = pods(plain("vllm-twin.yaml"))[0]
    assert pod["securityContext"] == {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "runAsNonRoot": True,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    engine, sidecar = (container(pod, name)["securityContext"] for name in (ENGINE, SIDECAR))
    assert engine == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert sidecar == {**engine, "readOnlyRootFilesystem": True}
    assert mounts(container(pod, ENGINE))[environ(container(pod, ENGINE))["HOME"]]["name"] == "home"


def test_the_forms_differ_in_their_form_alone():
    """What is mended in one file and forgotten in the others would be found on somebody's cluster."""
    for engine in ("sglang", "vllm"):
        native, ordinary = (pods(plain(f"{engine}-{form}.yaml"))[0] for form in ("native", "ordinary"))
        moved = copy.deepcopy(native)
        (sidecar,) = moved.pop("initContainers")
        assert sidecar.pop("restartPolicy") == "Always"
        moved["containers"].append(sidecar)
        assert moved == ordinary
    sidecars = [container(pods(plain(f"{engine}-native.yaml"))[0], SIDECAR) for engine in ("sglang", "vllm")]
    assert sidecars[0] == sidecars[1]


def test_the_component_adds_the_sidecar_of_the_plain_files():
    """But for /dev/shm, which is the volume of somebody else's pod, and the grace period, which is somebody else's."""
    ours = container(shipped("deployment"), SIDECAR)
    theirs = copy.deepcopy(container(shipped("vllm-native.yaml"), SIDECAR))
    theirs["volumeMounts"] = [mount for mount in theirs["volumeMounts"] if mount["mountPath"] != "/dev/shm"]
    theirs["env"] = [variable for variable in theirs["env"] if not variable["name"].endswith("GRACE_PERIOD")]
    assert ours == theirs


def test_a_deployment_selects_its_own_pods_and_frees_its_gpus_first():
    """A rolling update of a pod that has all GPUs of its node never ends."""
    for name in PLAIN:
        spec = plain(name)["spec"]
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        assert spec["strategy"] == {"type": "Recreate"}


def test_the_readme_has_every_file():
    text = (FOLDER / "README.md").read_text()
    assert [name for name in PLAIN if f"`{name}`" not in text] == []
