"""`rankguard doctor` as a user meets it: lines, YAML, JSON, exit statuses, bad input, hostile titles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import refusal
from doctor_rig import USER, nothing, process, root_with


def doctor(
    *args: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RANKGUARD_", "KUBERNETES_"))}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "sidecar", "doctor", "--check-timeout", "30", *args],
        capture_output=True, text=True, timeout=100, env=clean | (env or {}), stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def nobody() -> list[str]:
    return ["--engine", "generic", "--rank-pattern", nothing()["rank_pattern"]]


def line_of(text: str, capability: str) -> str:
    (line,) = (line for line in text.splitlines() if line.split()[1:2] == [capability])
    return line


def test_one_line_for_each_and_the_tier(tmp_path: Path) -> None:
    """Every capability of the document has one line; with nothing missing no YAML is shown, and the status is 0."""
    told = doctor("--dump-dir", str(tmp_path), *nobody())
    as_json = doctor("--json", "--dump-dir", str(tmp_path), *nobody())
    assert (told.returncode, told.stderr) == (0, "")
    document = json.loads(as_json.stdout)
    assert document["schema"] == "rankguard.dev/doctor/v1"
    for check in document["checks"]:
        assert line_of(told.stdout, check["capability"]).startswith(check["status"].replace("not_applicable", "n/a"))
        assert check["lost"].endswith(".")
    assert line_of(told.stdout, "volume").startswith("ok")
    assert "Tier: not known yet" in told.stdout
    assert "remedy" not in told.stdout


@pytest.mark.root
def test_what_is_missing_has_its_yaml_below_it(tmp_path: Path) -> None:
    """Once, where several want the same; what is required is named, and the exit status is 1."""
    with process(user=USER) as target:
        told = doctor("--dump-dir", str(tmp_path), "--pid", str(target), prefix=root_with("sys_ptrace"))
        as_json = doctor("--json", "--dump-dir", str(tmp_path), "--pid", str(target), prefix=root_with("sys_ptrace"))
    assert (told.returncode, as_json.returncode) == (1, 1)
    lines = told.stdout.splitlines()
    at = lines.index(line_of(told.stdout, "signals"))
    assert [line.strip() for line in lines[at + 1 : at + 6]] == [
        "lost: The engine is neither frozen nor killed: after a rank's death the rest of it stays.",
        "remedy, in the container rankguard, beside what it adds already:",
        "securityContext:",
        "capabilities:",
        'add: ["KILL", "DAC_OVERRIDE"]',
    ]
    assert told.stdout.count('add: ["KILL", "DAC_OVERRIDE"]') == 1
    assert "remedy: the same as for signals" in told.stdout
    assert "Required, and missing: signals" in told.stdout
    document = json.loads(as_json.stdout)
    assert (document["ok"], document["tier"]) == (False, "none")
    (signals,) = (check for check in document["checks"] if check["capability"] == "signals")
    assert (signals["status"], signals["required"]) == ("missing", True)


@pytest.mark.root
def test_a_hostile_title_writes_nothing_of_its_own(tmp_path: Path) -> None:
    """No escape, no line of its own, and no markup, on the screen and in the document."""
    title = "rank\x1b[2J\x07\nok  signals  fine [bold red]\u202e"
    hostile = subprocess.Popen([title, "600"], executable="/bin/sleep", user=USER)
    try:
        told = doctor("--dump-dir", str(tmp_path), "--pid", str(hostile.pid), prefix=root_with("net_raw"))
        as_json = doctor("--json", "--dump-dir", str(tmp_path), "--pid", str(hostile.pid))
    finally:
        hostile.kill()
        hostile.wait(20)
    for text in (told.stdout, as_json.stdout):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert line_of(told.stdout, "signals").startswith("missing")
    assert "rank\\x1b[2J" in told.stdout
    assert "[bold red]\\u202e" in told.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pid", "1"], "--pid: '1' cannot be used: it takes a process's number, 2 or more"),
        (["--pid", "x"], "--pid: 'x' cannot be used: it takes a process's number, 2 or more"),
        (["--pid", "4194303999"], "--pid: '4194303999' cannot be used: there is no such process in this PID namespace"),
        (["--check-timeout", "soon"], "it takes seconds, a number from 0.1 to 600"),
        (["--termination-grace-period", "-1"], "it takes seconds, a number from 0 to 604800; or none"),
        (["--engine", "triton"], "it takes one of auto, sglang, vllm, generic"),
    ],
)
def test_bad_input_is_one_line(args: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(capfd, "doctor", *args)


def test_bad_input_ends_the_process() -> None:
    told = doctor("--pid", "1")
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1), told


def test_a_bad_setting_in_a_pod_is_said_and_checked_around(tmp_path: Path) -> None:
    """There `run` goes on with its default, so the doctor does too."""
    env = {"RANKGUARD_IN_POD": "1", "RANKGUARD_ENGINE": "triton", "RANKGUARD_DUMP_DIR": str(tmp_path)}
    told = doctor("--rank-pattern", nothing()["rank_pattern"], env=env)
    assert "RANKGUARD_ENGINE: 'triton' cannot be used" in told.stderr
    assert line_of(told.stdout, "volume").startswith("ok")
    assert "--termination-grace-period" in line_of(told.stdout, "grace_period")


def test_the_help_says_what_is_required() -> None:
    text = " ".join(doctor("--help").stdout.split())
    assert "Exit status 1: a required one is missing" in text
    for words in ("--json", "--pid N", "--termination-grace-period SECONDS", "--dump-dir DIR", "--liveness-deadline"):
        assert words in text
    assert "--stall-limit" not in text
