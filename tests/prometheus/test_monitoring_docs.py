"""What docs/monitoring.md and the runbooks tell people to do can be done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from monitoring_files import PAGE, ROOT, RULES, RUNBOOKS, page_expressions
from prepare_prometheus import Programs
from prometheus_process import Prometheus

PAGES = sorted(RUNBOOKS.glob("*.md"))
TOOLS = ("kubectl ", "helm ", "rankguard ")
# Options in the text that are not ours: of SGLang and of kubectl.
FOREIGN = {"--mem-fraction-static", "--delete-emptydir-data", "--previous", "--metric-labels-allowlist"}
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"


def blocks(page: Path) -> list[str]:
    """The indented blocks of a runbook: commands, a line each, or one query."""
    return re.findall(r"((?:^ {7}\S.*\n(?: {8,}\S.*\n)*)+)", page.read_text(), re.MULTILINE)


def commands() -> list[str]:
    """Each different command line of all runbooks, those in the text too."""
    found = [line.strip() for page in PAGES for block in blocks(page) for line in block.splitlines()]
    found += [text for page in PAGES for text in re.findall(r"`((?:kubectl|rankguard) [^`]+)`", page.read_text())]
    return sorted({line for line in found if line.startswith(TOOLS) and line != "kubectl describe"})


def queries() -> list[str]:
    return [block for page in PAGES for block in blocks(page) if not block.strip().startswith(TOOLS)]


@pytest.mark.parametrize("command", commands())
def test_commands_in_runbooks_exist(command: str) -> None:
    """With `--help` behind it each tool checks the verb and every option, and does nothing."""
    words = shlex.split(command)
    outer, _, inner = (part.strip() for part in command.partition(" -- "))
    if words[0] == "rankguard":
        outer, inner = "", command
    if words[0] == "kubectl":
        accepted([str(KUBECTL), *shlex.split(outer)[1:]])
    elif words[0] == "helm":
        assert words[:2] == ["helm", "test"]
    if inner:
        assert inner.startswith("rankguard ")
        accepted([sys.executable, "-m", "sidecar", *shlex.split(inner)[1:]])


def accepted(command: list[str]) -> None:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, (command, done.stderr)
    if "kubectl" in command[0]:
        verb = next(word for word in command[1:] if word != "-n" and word != "NAMESPACE")
        assert f"kubectl {verb} " in done.stdout


def test_settings_and_values_that_are_named_exist() -> None:
    """Each `--option` is one of `rankguard run`, each `value.of.the.chart` is in values.yaml."""
    told = subprocess.run(
        [sys.executable, "-m", "sidecar", "run", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    values = yaml.safe_load((ROOT / "charts" / "rankguard" / "values.yaml").read_text())
    for page in [*PAGES, PAGE]:
        text = re.sub(r"^ {7}.*$|^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for quoted in re.findall(r"`([^`\n]+)`", text):
            for option in set(re.findall(r"(?<!\S)--[a-z-]+", quoted)) - FOREIGN:
                assert f"{option} " in told or f"{option}\n" in told or option == "--api-versions", (page.name, option)
            path = re.match(r"[a-z][A-Za-z]*(\.[A-Za-z]+)+", quoted)
            if path and path[0].partition(".")[0] in values and "/" not in quoted:
                found = values
                for key in path[0].split("."):
                    assert key in found, (page.name, quoted)
                    found = found[key]


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, PAGE]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_scrape_configs_are_ones_of_prometheus(programs: Programs, tmp_path: Path) -> None:
    """Each in docs/monitoring.md, beside the rules as they are shipped."""
    shutil.copy(RULES, tmp_path)
    found = [text for text in fenced("yaml") if "scrape_configs:" in text]
    assert len(found) == 2
    for text in found:
        # Debian builds Prometheus without the discovery of Kubernetes; all else of the file is checked.
        text = text.replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: []")
        (tmp_path / "prometheus.yml").write_text(text)
        done = subprocess.run(
            [programs.promtool, "check", "config", "prometheus.yml"],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        labels = {"namespace", "pod", "node", "container"}
        assert all(f"target_label: {label}" in text or f"{label}: " in text for label in labels)


def test_queries_are_understood(programs: Programs, tmp_path: Path) -> None:
    found = queries()
    assert len(found) >= 8
    assert len(page_expressions()) >= 6
    with Prometheus(programs, tmp_path / "prometheus", {}) as prometheus:
        for query in [*found, *page_expressions()]:
            prometheus.query(query)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
