"""The settings: their defaults, pinned, and their way from process to process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import Action, PodInfo
from sidecar.settings import Launch, Settings, launch_from_fd, launch_to_fd

# A change here is a change of what users get, and belongs into CHANGELOG.md.
DEFAULTS = {
    "engine": "auto",
    "rank_pattern": None,
    "expected_ranks": None,
    "root_pid": None,
    "on_rank_death": Action.KILL,
    "on_liveness_failure": Action.KILL,
    "captures": (
        "process", "pyspy", "metrics", "nccl_ras", "flight_recorder", "nvml", "pyspy_native", "cuda_coredump",
    ),
    "death_deadline": 3.0,
    "liveness_deadline": 60.0,
    "reap_timeout": 60.0,
    "startup_timeout": 600.0,
    "exit_grace": 5.0,
    "health_url": "auto",
    "metrics_url": "auto",
    "termination_grace_period": None,
    "probe_period": 10.0,
    "probe_timeout": 5.0,
    "probe_failures": 3,
    "stall_timeout": 30.0,
    "stall_limit": 300.0,
    "hook_token": None,
    "pod_group": "",
    "termination_log": "/dev/termination-log",
    "dump_dir": "/var/lib/rankguard",
    "dump_max_bytes": 10 * 1024**3,
    "dump_max_incidents": 200,
    "dump_max_age": 30 * 86400.0,
    "dump_free_floor": 64 * 2**20,
    "dump_volume_limit": None,
    "coredump_max_bytes": 4 * 2**30,
    "full_incidents_per_hour": 6,
    "listen": ":21400",
    "api_listen": "127.0.0.1:21401",
    "api_token_file": None,
    "kubernetes_events": True,
    "kubernetes_annotation": False,
    "after_kill": "none",
    "after_kill_exit_code": 86,
    "after_kill_per_hour": 2,
    "fleet_switch": "",
    "target_container": "",
    "target_probe_window": None,
    "service_account_dir": "/var/run/secrets/kubernetes.io/serviceaccount",
    "log_format": "text",
    "in_pod": False,
    "pod_namespace": "",
    "pod_name": "",
    "pod_uid": "",
    "node_name": "",
    "mask_features": (),
}  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def other(value: Any) -> Any:
    """A value of the same type that is not the default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Action):
        return Action.OBSERVE
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, tuple):
        return ("one", "two")
    return f"{value} é \udcff"


def carried(launch: Launch) -> Launch:
    fd = launch_to_fd(launch)
    try:
        return launch_from_fd(fd)
    finally:
        os.close(fd)


def test_every_default():
    assert {name: getattr(Settings(), name) for name in FIELDS} == DEFAULTS


def test_the_defaults_of_a_launch():
    assert Launch(settings=Settings()) == Launch(
        settings=Settings(), command=(), config_errors=(), listen_fds={}, python="", package_root="", engine_marker=""
    )


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described_and_its_default_is_allowed(name):
    """A help text, and a default within the setting's own limits: a setting left alone is never a bad one."""
    field, default = FIELDS[name], DEFAULTS[name]
    metadata = field.metadata
    assert metadata["help"].endswith((".", ")."))
    if default is not None and "minimum" in metadata:
        assert metadata["minimum"] <= default <= metadata.get("maximum", default)
    if "choices" in metadata:
        assert set(default if isinstance(default, tuple) else [str(default)]) <= set(metadata["choices"])
    if "seconds" in field.name or name.endswith(("timeout", "deadline", "grace")):
        assert isinstance(default, float)


def test_settings_cannot_be_changed():
    """One value for all processes: nothing changes it after it was parsed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().engine = "vllm"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings("vllm")  # type: ignore[misc]


def test_the_pod_is_what_was_told():
    told = Settings(pod_namespace="ns", pod_name="name", pod_uid="uid", node_name="node")
    assert told.pod == PodInfo(namespace="ns", name="name", uid="uid", node="node")
    assert Settings().pod == PodInfo()


def test_the_defaults_come_back():
    assert carried(Launch(settings=Settings())) == Launch(settings=Settings())


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_comes_back(name):
    """Equal, and of the same type: a tuple stays a tuple, an `Action` an `Action`, and only this one differs."""
    value = other(DEFAULTS[name])
    assert value != DEFAULTS[name]
    back = carried(Launch(settings=Settings(**{name: value}))).settings
    assert {n: getattr(back, n) for n in FIELDS} == DEFAULTS | {name: value}
    assert type(getattr(back, name)) is type(value)


@pytest.mark.parametrize("action", Action)
def test_each_action_comes_back(action):
    assert carried(Launch(settings=Settings(on_rank_death=action))).settings.on_rank_death is action


FULL = Launch(
    settings=Settings(**{name: other(value) for name, value in DEFAULTS.items()}),
    command=("bash", "-c", "exec x\n", "\udcff", ""),
    config_errors=("one", "two"),
    listen_fds={"listen": (7, 8), "api_listen": ()},
    python="/opt/python",
    package_root="/opt/rank guard",
    engine_marker="marker",
    root_start=4711,
)


def test_a_launch_comes_back_whole():
    """The command with bytes that no text holds, the sockets by setting, and all the rest; hashable tuples again."""
    assert carried(FULL) == FULL
    assert set(dataclasses.asdict(FULL)) == {f.name for f in dataclasses.fields(Launch)}
    assert not any(getattr(FULL, f.name) == f.default for f in dataclasses.fields(Launch))


def test_it_can_be_read_again_and_again_and_in_other_processes():
    """A worker that is started anew reads the same value; reading does not move a position that others share."""
    fd = launch_to_fd(FULL)
    try:
        assert launch_from_fd(fd) == launch_from_fd(fd) == FULL
        source = (
            "import sys\nfrom sidecar.settings import launch_from_fd\n"
            "launch = launch_from_fd(int(sys.argv[1]))\n"
            "print(launch.settings.on_rank_death, launch.listen_fds['listen'], ascii(launch.command[-2]))"
        )
        root = Path(__file__).resolve().parents[1]
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-S", "-c", source, str(fd)], env={"PYTHONPATH": str(root)}, pass_fds=[fd],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert (done.stdout, done.stderr) == ("observe (7, 8) '\\udcff'\n", "")
        # It needs no help to survive an exec, unlike what Python opens otherwise.
        assert os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_a_launch_bigger_than_a_page_comes_back_whole():
    big = dataclasses.replace(FULL, command=("x",) * 100_000)
    assert carried(big) == big
