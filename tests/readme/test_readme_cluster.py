"""The README's commands for a cluster, as far as they can be tried without one; tests/e2e runs them in a real one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_line import parsed, values
from readme_blocks import ROOT, blocks, of

VERSIONS = ("1.29", kubernetes_validate.latest_version())
COMMANDS = [command for block in of("cluster") for command in block.commands]
EXAMPLE = ROOT / "examples" / "stand-in.yaml"
CHART = "charts/rankguard"
HERE = Path(__file__).resolve().parent


def words(program: str) -> list[list[str]]:
    """The commands that begin with this program, taken apart as a shell does it, without its name."""
    return [shlex.split(command)[1:] for command in COMMANDS if command.split()[0] == program]


def test_they_are_of_two_programs() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"helm", "kubectl"}
    assert len(words("helm")) >= 5
    assert len(words("kubectl")) >= 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.split()[0] == "kubectl"])
def test_kubectl_takes_them(command: str, tmp_path: Path) -> None:
    """The real kubectl understands each, to the point where it looks for the cluster, which is not there."""
    config = tmp_path / "config"
    config.write_text(json.dumps(_nowhere()))
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={"PATH": path, "HOME": str(tmp_path), "KUBECONFIG": str(config)}, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "was refused" in done.stderr or "connection refused" in done.stderr, done.stderr


def _nowhere() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.split()[0] == "helm"])
def test_helm_takes_them(command: str, tmp_path: Path) -> None:
    """Helm's own engine, to the point where it looks for the cluster."""
    config = tmp_path / "config"
    config.write_text(json.dumps(_nowhere()))
    done = subprocess.run(
        [sys.executable, HERE / "helm_line.py", *shlex.split(command)[1:]], cwd=ROOT, stdin=subprocess.DEVNULL,
        env={**os.environ, "KUBECONFIG": str(config)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "HelmKubeError" in done.stderr, done.stderr
    assert "connection refused" in done.stderr


def test_kubectl_is_known_to_refuse_what_is_wrong(tmp_path: Path) -> None:
    """So that the test above is worth something: a mistake is told before the cluster is looked for."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    for wrong in (["wait", "--fro=x", "pod/a"], ["gett", "pods"]):
        done = subprocess.run(
            [kubectl, *wrong], env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
        )
        assert "unknown" in done.stderr


def test_what_runs_in_the_sidecar_is_a_command_of_ours() -> None:
    """Behind `kubectl exec … -c rankguard --`: the command is there, with these options."""
    inside = [line[line.index("--") + 1 :] for line in words("kubectl") if "--" in line and "rankguard" in line]
    assert len(inside) >= 3
    for command in inside:
        assert command[0] == "rankguard"
        assert "Usage: rankguard " in help_of(*command[1:])


@pytest.mark.parametrize("line", [line for line in words("helm") if line[0] in ("install", "upgrade")], ids=" ".join)
def test_the_chart_renders_with_what_is_set(line: list[str]) -> None:
    """Each --set is allowed by the chart's schema and has its effect: rights in the namespaces that are listed."""
    told = parsed(line)
    given = values(told.set)
    assert told.chart == CHART
    with helm_python.Chart.load(ROOT / CHART) as chart:
        chart.validate_schema(given)
        rendered = chart.render(given, name=told.release, namespace=told.namespace, is_install=True)
    documents = [one for text in rendered.values() if "kind:" in text for one in yaml.safe_load_all(text) if one]
    roles = {one["metadata"]["namespace"] for one in documents if one["kind"] == "Role"}
    assert set(given["sidecar"]["namespaces"]) <= roles


def test_the_helm_lines_fit_together() -> None:
    """One release in one namespace, installed first and uninstalled at the end; the objects named elsewhere are its."""
    told = [parsed(line) for line in words("helm")]
    assert {(one.release, one.namespace) for one in told} == {("rankguard", "rankguard-system")}
    assert told[0].command == "install"
    (last,) = (block for block in of("cluster", "end"))
    assert "helm uninstall" in last.text
    with helm_python.Chart.load(ROOT / CHART) as chart:
        rendered = chart.render(values(told[0].set), name="rankguard", namespace="rankguard-system", is_install=True)
    documents = [one for text in rendered.values() if "kind:" in text for one in yaml.safe_load_all(text) if one]
    there = {(one["kind"].lower(), one["metadata"]["name"]) for one in documents}
    for line in words("kubectl"):
        if line[0] == "patch":
            assert (line[1], line[2]) in there
            assert json.loads(line[line.index("--patch") + 1]).keys() == {"data"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_is_valid_and_is_what_the_commands_speak_of(version: str) -> None:
    deployment = yaml.safe_load(EXAMPLE.read_text())
    kubernetes_validate.validate(deployment, version, strict=True)
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"] == {"app": "stand-in", "rankguard.dev/inject": "true"}
    (engine,) = template["spec"]["containers"]
    named = [word for line in words("kubectl") for word in line]
    assert {"deploy/stand-in", "deployment/stand-in", "app=stand-in", "examples/stand-in.yaml"} <= set(named)
    assert engine["name"] in [line[line.index("-c") + 1] for line in words("kubectl") if "-c" in line]


def test_the_example_gets_a_sidecar() -> None:
    """By the very function that the webhook calls, with the chart's own settings."""
    from sidecar.inject.options import load_options
    from sidecar.inject.pod import Place, inject

    template = yaml.safe_load(EXAMPLE.read_text())["spec"]["template"]
    result = inject(template, load_options({}), Place(namespace="default"))
    assert result.injected, result.message
    assert result.pod["spec"]["initContainers"][0]["name"] == "rankguard"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_parts_of_pods_are_valid(version: str) -> None:
    """Each block of YAML, in the smallest pod that it can be a part of; annotations are settings that there are."""
    from sidecar.settings import Settings

    parts = [block for block in blocks() if block.language == "yaml"]
    assert len(parts) >= 2
    for block in parts:
        assert block.words == ("pod",)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}
        _laid_over(pod, yaml.safe_load(block.text))
        kubernetes_validate.validate(pod, version, strict=True)
        for name in pod["metadata"].get("annotations", {}):
            assert name.removeprefix("rankguard.dev/").replace("-", "_") in Settings.__dataclass_fields__


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _laid_over(below[key], value)
        else:
            below[key] = value


def test_the_other_ways_are_there() -> None:
    """Commands in the text: `rankguard inject -f`, `rankguard view`, and the chart with the policy."""
    for command in ("inject", "view", "doctor"):
        assert f"Usage: rankguard {command}" in help_of(command)
    with helm_python.Chart.load(ROOT / CHART) as chart:
        chart.validate_schema({"injection": "policy"})


def help_of(*command: str) -> str:
    """What `--help` says behind this command. Raises `AssertionError` where there is none, or no such option."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *command, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
