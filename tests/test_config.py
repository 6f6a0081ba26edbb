"""The settings: where they may be given, what each place may hold, and what a refusal says."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Loaded, flag, load
from sidecar.model import Action
from sidecar.settings import ENGINE_VARIABLE, Settings

DEFAULTS = Settings()


def write(tmp_path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return str(path)


def refusals(loaded: Loaded) -> list[str]:
    return [str(error) for error in loaded.errors]


def accepted(loaded: Loaded) -> Settings:
    assert refusals(loaded) == []
    return loaded.settings


def refused(loaded: Loaded) -> str:
    """The one line that says why."""
    (line,) = refusals(loaded)
    assert "\n" not in line
    return line


def test_nothing_given_is_the_defaults():
    assert accepted(load({}, {})) == DEFAULTS


def test_a_flag_beats_the_environment_beats_the_file(tmp_path):
    path = write(tmp_path, "engine: sglang\nreap-timeout: 1\nstartup_timeout: 1\n")
    loaded = load({"engine": "generic", "config": path}, {"RANKGUARD_ENGINE": "vllm", "RANKGUARD_REAP_TIMEOUT": "2"})
    settings = accepted(loaded)
    assert settings.engine == "generic"
    assert settings.reap_timeout == 2.0
    assert settings.startup_timeout == 1.0
    assert loaded.where("engine") == "--engine"
    assert loaded.where("reap_timeout") == "RANKGUARD_REAP_TIMEOUT"
    assert loaded.where("startup_timeout") == f"startup_timeout in {path}"


def test_a_flag_is_judged_even_where_the_environment_is_right():
    line = refused(load({"engine": "triton"}, {"RANKGUARD_ENGINE": "vllm"}))
    assert line == "--engine: 'triton' cannot be used: it takes one of auto, sglang, vllm, generic"


GOOD = {
    "engine": "vllm",
    "rank_pattern": r"my_rank_(?P<TP>\d+)",
    "expected_ranks": "8",
    "root_pid": "42",
    "on_rank_death": "capture",
    "captures": "pyspy",
    "death_deadline": "1.5",
    "reap_timeout": "1e1",
    "startup_timeout": "900",
    "exit_grace": "0",
    "on_liveness_failure": "observe",
    "liveness_deadline": "20",
    "health_url": "http://127.0.0.1:9/health",
    "metrics_url": "none",
    "termination_grace_period": "120",
    "probe_period": "5",
    "probe_timeout": "2",
    "probe_failures": "4",
    "stall_timeout": "20",
    "stall_limit": "200",
    "hook_token": "s3cret",
    "pod_group": "llm",
    "termination_log": "/run/last-word",
    "dump_max_age": "none",
    "dump_free_floor": "1Mi",
    "dump_volume_limit": "2Gi",
    "coredump_max_bytes": "3Gi",
    "full_incidents_per_hour": "5",
    "dump_dir": "/somewhere",
    "dump_max_bytes": "500Mi",
    "dump_max_incidents": "7",
    "listen": "[::1]:0",
    "api_listen": "none",
    "api_token_file": "/run/token",
    "kubernetes_events": "false",
    "kubernetes_annotation": "true",
    "after_kill": "delete-pod",
    "after_kill_exit_code": "87",
    "after_kill_per_hour": "1",
    "fleet_switch": "rankguard-system/rankguard.fleet",
    "target_container": "engine,router-2",
    "target_probe_window": "30",
    "service_account_dir": "/run/account",
    "log_format": "json",
    "in_pod": "true",
    "pod_namespace": "inference",
    "pod_name": "llm-0",
    "pod_uid": "a-b-c",
    "node_name": "node.example",
    "mask_features": "pidfd,pidfd_info",
}
READ = Settings(
    engine="vllm",
    rank_pattern=r"my_rank_(?P<TP>\d+)",
    expected_ranks=8,
    root_pid=42,
    on_rank_death=Action.CAPTURE,
    captures=("pyspy",),
    death_deadline=1.5,
    reap_timeout=10.0,
    startup_timeout=900.0,
    exit_grace=0.0,
    on_liveness_failure=Action.OBSERVE,
    liveness_deadline=20.0,
    health_url="http://127.0.0.1:9/health",
    metrics_url="none",
    termination_grace_period=120.0,
    probe_period=5.0,
    probe_timeout=2.0,
    probe_failures=4,
    stall_timeout=20.0,
    stall_limit=200.0,
    hook_token="s3cret",
    pod_group="llm",
    termination_log="/run/last-word",
    dump_max_age=None,
    dump_free_floor=2**20,
    dump_volume_limit=2 * 2**30,
    coredump_max_bytes=3 * 2**30,
    full_incidents_per_hour=5,
    dump_dir="/somewhere",
    dump_max_bytes=500 * 2**20,
    dump_max_incidents=7,
    listen="[::1]:0",
    api_listen=None,
    api_token_file="/run/token",
    kubernetes_events=False,
    kubernetes_annotation=True,
    after_kill="delete-pod",
    after_kill_exit_code=87,
    after_kill_per_hour=1,
    fleet_switch="rankguard-system/rankguard.fleet",
    target_container="engine,router-2",
    target_probe_window=30.0,
    service_account_dir="/run/account",
    log_format="json",
    in_pod=True,
    pod_namespace="inference",
    pod_name="llm-0",
    pod_uid="a-b-c",
    node_name="node.example",
    mask_features=("pidfd", "pidfd_info"),
)


def test_every_setting_is_read_from_every_place(tmp_path):
    """No setting is forgotten in any of the three places, whatever settings there will be."""
    assert set(GOOD) == {field.name for field in fields(Settings)}
    assert accepted(load(GOOD, {})) == READ
    assert accepted(load({}, {f"RANKGUARD_{name.upper()}": value for name, value in GOOD.items()})) == READ
    text = "".join(f"{name.replace('_', '-')}: '{value}'\n" for name, value in GOOD.items())
    assert accepted(load({"config": write(tmp_path, text)}, {})) == READ


def test_the_file_may_use_what_yaml_has(tmp_path):
    text = "captures: [process]\nin_pod: yes\ndeath_deadline: 2\nexpected-ranks: 4\nlisten: null\nroot_pid: ~\n"
    settings = accepted(load({"config": write(tmp_path, text)}, {}))
    assert settings.captures == ("process",)
    assert settings.in_pod is True
    assert settings.death_deadline == 2.0
    assert settings.expected_ranks == 4
    assert settings.listen is None
    assert settings.root_pid is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("engine", "VLLM", "one of auto, sglang, vllm, generic"),
        ("fleet_switch", "no-namespace", "NAMESPACE/NAME"),
        ("fleet_switch", "a/b/c", "NAMESPACE/NAME"),
        ("target_container", "engine, router", "names of containers, comma-separated"),
        ("after_kill", "delete", "one of none, delete-pod, exit"),
        ("after_kill_exit_code", "0", "from 1 to 255"),
        ("target_probe_window", "0", "from 1 to 86400; or none"),
        ("on_rank_death", "die", "one of kill, capture, observe"),
        ("death_deadline", "nan", "from 0 to 600"),
        ("death_deadline", "inf", "from 0 to 600"),
        ("death_deadline", "-1", "from 0 to 600"),
        ("death_deadline", "3s", "seconds"),
        ("death_deadline", "", "seconds"),
        ("reap_timeout", "3601", "from 1 to 3600"),
        ("expected_ranks", "0", "from 1 to 65536"),
        ("expected_ranks", "65537", "from 1 to 65536"),
        ("expected_ranks", "1.5", "a whole number"),
        ("expected_ranks", "none", "a whole number"),
        ("root_pid", "1", "of at least 2"),
        ("root_pid", "self", "a whole number"),
        ("captures", "process,everything", "cuda_coredump, crash_folder; or none"),
        ("mask_features", "epoll", "pidfd, thread_pidfd, pidfd_hup, pidfd_info; or none"),
        ("dump_max_bytes", "many", "500Mi"),
        ("dump_max_bytes", "1Ki", "at least 1048576"),
        ("dump_dir", "", "the path of a folder"),
        ("dump_dir", "a\0b", "NUL"),
        ("in_pod", "maybe", "true or false"),
        ("log_format", "xml", "one of text, json"),
        ("pod_uid", "../..", "letters, digits"),
        ("rank_pattern", "rank_(?P<TP>\\d+", "position 5"),
        ("rank_pattern", "*", "position 0"),
        ("rank_pattern", "a{99999999999999999999}", "too large"),
        ("rank_pattern", ".*", "every process"),
        ("rank_pattern", "", "a regular expression"),
        ("listen", "21400", "HOST:PORT"),
        ("listen", "example.org:80", "HOST:PORT"),
        ("listen", "::1:80", "[::1]:PORT"),
        ("listen", "127.0.0.1:65536", "HOST:PORT"),
        ("listen", "[127.0.0.1]:80", "HOST:PORT"),
        ("api_listen", "127.0.0.1:", "HOST:PORT"),
        ("health_url", "ftp://engine/health", "http:// or https://"),
        ("health_url", "http://", "http:// or https://"),
        ("health_url", "http://engine:port/", "auto; or none"),
        ("metrics_url", "http://engine/a b", "http:// or https://"),
        ("probe_failures", "0", "from 1 to 1000"),
        ("stall_timeout", "0.5", "from 1 to 86400"),
        ("dump_max_age", "10", "or none"),
        ("dump_free_floor", "-1", "500Mi"),
        ("on_liveness_failure", "restart", "one of kill, capture, observe"),
        ("termination_log", "dev/termination-log", "an absolute path"),
        ("termination_log", "/dev/../etc/passwd", "no .. in it"),
        ("termination_log", "/dev/", "an absolute path"),
        ("termination_log", "/", "or none"),
        ("termination_log", "/a\0b", "NUL"),
    ],
)
def test_a_bad_value_is_refused_by_setting_value_and_what_is_allowed(name, value, words):
    loaded = load({name: value}, {})
    line = refused(loaded)
    assert line.startswith(f"{flag(name)}: {value!r} cannot be used: ")
    assert words in line
    actions = ("on_rank_death", "on_liveness_failure")
    assert getattr(loaded.settings, name) == (Action.OBSERVE if name in actions else getattr(DEFAULTS, name))


def test_a_url_with_a_password_is_refused_without_showing_it():
    line = refused(load({"metrics_url": "http://user:pa55word@engine/metrics"}, {}))
    assert line.startswith("--metrics-url: ")
    assert line.endswith("which are not sent: give a URL without them")
    assert "pa55word" not in line


@pytest.mark.parametrize("value", ["", "with space", "a\nb", "ü", "x" * 4097])
def test_a_bad_secret_is_refused_and_not_repeated(value):
    line = refused(load({"hook_token": value}, {}))
    assert line.startswith("--hook-token: '(a secret)' cannot be used: it takes printable text")


@pytest.mark.parametrize(
    "value", [":0", ":21400", "0.0.0.0:1", "127.0.0.1:0", "localhost:80", "[::]:80", "[::1]:65535"]
)
def test_addresses_to_listen_on(value):
    assert accepted(load({"listen": value}, {})).listen == value


@pytest.mark.parametrize("value", ["none", ""])
def test_what_can_be_switched_off(value):
    given = dict.fromkeys(("listen", "api_listen", "captures", "termination_log"), value)
    settings = accepted(load(given, {}))
    assert (settings.listen, settings.api_listen, settings.captures) == (None, None, ())
    assert settings.termination_log is None


def test_lists_may_have_spaces_and_doubles():
    assert accepted(load({"captures": " pyspy , process,pyspy"}, {})).captures == ("pyspy", "process")


def test_any_refusal_means_that_nothing_will_be_killed():
    """In a pod this goes on running: with its defaults for what was refused, what was right kept, and observing."""
    loaded = load({"death_deadline": "x", "engine": "vllm", "on_rank_death": "kill"}, {})
    assert loaded.settings.on_rank_death is Action.OBSERVE
    assert loaded.settings.death_deadline == DEFAULTS.death_deadline
    assert loaded.settings.engine == "vllm"


def test_each_refused_setting_has_its_line_and_its_default():
    """A refused flag does not fall through to the environment: its value is not what was asked for either."""
    loaded = load({"reap_timeout": "x", "exit_grace": "y"}, {"RANKGUARD_REAP_TIMEOUT": "9", "RANKGUARD_ENGINE": "?"})
    assert [line.split(":")[0] for line in refusals(loaded)] == ["RANKGUARD_ENGINE", "--reap-timeout", "--exit-grace"]
    assert loaded.settings.reap_timeout == DEFAULTS.reap_timeout


def test_a_path_longer_than_any_is_refused():
    assert "it takes an absolute path" in refused(load({"termination_log": "/" + "x" * 1024}, {}))


def test_a_value_is_repeated_only_so_far():
    line = refused(load({"engine": "x" * 100_000}, {}))
    assert len(line) < 300


# ---- the environment


def test_an_unknown_variable_is_refused_by_name_with_what_may_have_been_meant():
    line = refused(load({}, {"RANKGUARD_DEATH_DEDLINE": "3"}))
    assert line == "'RANKGUARD_DEATH_DEDLINE' in the environment is no setting; did you mean RANKGUARD_DEATH_DEADLINE?"


def test_the_value_of_an_unknown_variable_is_not_repeated():
    """Someone who guesses RANKGUARD_API_TOKEN puts a secret there."""
    line = refused(load({}, {"RANKGUARD_API_TOKEN": "hunter2"}))
    assert "RANKGUARD_API_TOKEN_FILE" in line
    assert "hunter2" not in line


def test_an_empty_variable_is_one_that_is_not_set():
    assert accepted(load({}, {"RANKGUARD_ROOT_PID": "", "RANKGUARD_LISTEN": "", "RANKGUARD_CONFIG": ""})) == DEFAULTS


def test_a_service_named_rankguard_does_not_break_the_pods_of_its_namespace():
    """The kubelet gives every pod variables for every Service of its namespace; they are no settings."""
    links = {
        "RANKGUARD_SERVICE_HOST": "10.0.0.1",
        "RANKGUARD_SERVICE_PORT": "443",
        "RANKGUARD_SERVICE_PORT_METRICS": "21400",
        "RANKGUARD_PORT": "tcp://10.0.0.1:443",
        "RANKGUARD_PORT_443_TCP": "tcp://10.0.0.1:443",
        "RANKGUARD_PORT_443_TCP_PROTO": "tcp",
        "RANKGUARD_PORT_443_TCP_PORT": "443",
        "RANKGUARD_PORT_443_TCP_ADDR": "10.0.0.1",
        "RANKGUARD_WEBHOOK_SERVICE_HOST": "10.0.0.2",
        "RANKGUARD_WEBHOOK_PORT": "tcp://10.0.0.2:443",
    }
    assert accepted(load({}, links)) == DEFAULTS
    assert "RANKGUARD_PORT" in refused(load({}, {"RANKGUARD_PORT": "9000"}))


def test_the_mark_of_a_wrapped_engine_is_no_setting():
    """`rankguard run -- bash`, and in that shell `rankguard run`: the outer one's mark is in its environment."""
    assert accepted(load({}, {ENGINE_VARIABLE: os.urandom(16).hex()})) == DEFAULTS


def test_the_pods_facts_have_the_usual_names_as_a_fall_back():
    usual = {"POD_NAMESPACE": "prod", "POD_NAME": "llm-0", "POD_UID": "u-1", "NODE_NAME": "n1"}
    settings = accepted(load({}, usual))
    assert (settings.pod.namespace, settings.pod.name, settings.pod.uid, settings.pod.node) == (
        "prod",
        "llm-0",
        "u-1",
        "n1",
    )
    assert accepted(load({}, usual | {"RANKGUARD_POD_NAME": "mine"})).pod_name == "mine"
    # They are not ours: what they hold may be anything, and is no reason to refuse to start.
    assert accepted(load({}, {"POD_NAME": "no/name"})).pod_name == ""


# ---- the file


def test_unknown_keys_are_refused_by_name(tmp_path):
    path = write(tmp_path, "engine: vllm\ndeath-dedline: 3\n")
    loaded = load({"config": path}, {})
    complaint = "its key 'death-dedline' in line 2 is no setting; did you mean death_deadline?"
    assert refused(loaded) == f"--config: {path!r} cannot be used: {complaint}"
    assert loaded.settings.engine == "vllm"


def test_the_wrong_file_is_not_a_thousand_lines(tmp_path):
    lines = refusals(load({"config": write(tmp_path, "".join(f"key_{n}: 1\n" for n in range(1000)))}, {}))
    assert len(lines) == 11
    assert "990 more" in lines[-1]


def test_a_setting_given_twice_is_refused(tmp_path):
    assert "dump_dir a second time in line 2" in refused(
        load({"config": write(tmp_path, "dump-dir: /a\ndump_dir: /b\n")}, {})
    )
    assert "engine a second time in line 3" in refused(
        load({"config": write(tmp_path, "engine: vllm\nlisten: none\nengine: vllm\n")}, {})
    )


def test_the_wrong_file_is_not_read_out(tmp_path):
    """Pointed at a file of secrets, the lines show nothing of it: not a key, not a value, not the place of an error."""
    for text in (
        "s3cr3t-t0ken\n",
        "s3cr3t t0ken: {\n",
        "root:s3cr3t:19000\n",
        "- s3cr3t\n",
        "? [s3cr3t]\n: 1\n",
        "&a *s3cr3t",
    ):
        loaded = load({"config": write(tmp_path, text)}, {})
        assert loaded.errors
        assert "s3cr3t" not in "".join(refusals(loaded)), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine: [vllm\n", "not valid YAML (line 2, column 1)"),
        ("just words", "no mapping"),
        ("- engine\n", "no mapping"),
        ("engine: vllm\n---\nengine: vllm\n", "not valid YAML"),
        ("engine: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("engine: 2026-99-99\n", "a number or date that is none"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("engine: vllm #" + "x" * (1 << 20), "larger than 1048576 bytes"),
    ],
)
def test_a_broken_file_is_one_refusal(tmp_path, text, words):
    assert words in refused(load({"config": write(tmp_path, text)}, {}))


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n"])
def test_an_empty_file_gives_nothing(tmp_path, text):
    assert accepted(load({"config": write(tmp_path, text)}, {})) == DEFAULTS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("death_deadline: yes\n", "True"),
        ("engine: [vllm]\n", "'a list'"),
        ("dump_dir: {a: b}\n", "'a dict'"),
        ("dump_dir:\n", "None"),
        ("pod_name: 5\n", "5"),
        ("captures: {process: yes}\n", "'a dict'"),
        ("captures: [1]\n", "'a list'"),
        ("dump_dir: 2026-01-01\n", "'a date'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path, text, shown):
    path = write(tmp_path, text)
    line = refused(load({"config": path}, {}))
    assert line.startswith(f"{text.split(':')[0]} in {path}: {shown} cannot be used: it takes ")


def test_a_file_that_is_not_there_or_is_none(tmp_path):
    assert "No such file" in refused(load({"config": str(tmp_path / "none")}, {}))
    assert "directory" in refused(load({"config": str(tmp_path)}, {}))
    assert "No such file" in refused(load({"config": ""}, {}))
    assert refused(load({}, {"RANKGUARD_CONFIG": "/none"})).startswith("RANKGUARD_CONFIG: '/none' cannot be used")
    (tmp_path / "latin").write_bytes(b"pod_name: \xe9\n")
    assert "UTF-8" in refused(load({"config": str(tmp_path / "latin")}, {}))


def test_a_fifo_that_nobody_writes_to_does_not_hold_us_up(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert accepted(load({"config": str(tmp_path / "fifo")}, {})) == DEFAULTS


def test_a_file_may_be_a_pipe_whose_writer_is_slow():
    """`--config <(make-settings)`: it is read to its end, not to the first pause."""
    reading, writing = os.pipe()
    with open(reading, "rb"):
        writer = threading.Thread(target=_write_in_two_parts, args=(writing,))
        writer.start()
        try:
            assert accepted(load({"config": f"/dev/fd/{reading}"}, {})).engine == "vllm"
        finally:
            writer.join()


def _write_in_two_parts(fd: int) -> None:
    with open(fd, "wb", buffering=0) as pipe:
        pipe.write(b"listen: none\n")
        subprocess.run(["true"], check=True)  # a while in which the pipe is empty and open
        pipe.write(b"engine: vllm\n")


@given(
    st.dictionaries(
        st.sampled_from([field.name for field in fields(Settings)]) | st.text(max_size=8),
        st.text(max_size=12) | st.integers() | st.floats() | st.booleans() | st.none(),
        max_size=4,
    )
)
def test_whatever_is_given_there_are_settings_and_lines(values):
    """Reading raises nothing: there are always settings to run with, and a line for each thing that was refused."""
    environ = {f"RANKGUARD_{name.upper()}": str(value) for name, value in values.items() if "=" not in name}
    from_environment = load({}, environ)
    assert isinstance(from_environment.settings, Settings)
    assert bool(from_environment.errors) <= (from_environment.settings.on_rank_death is Action.OBSERVE)
    known = {name: value for name, value in values.items() if name in GOOD}
    from_flags = load(known, {})
    assert len(from_flags.errors) <= len(known)
