"""The README's commands for a host, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import yaml
from readme_blocks import ROOT, metrics, of

HERE = Path(__file__).resolve().parent
SCRIPTS = sysconfig.get_path("scripts")
UNSHARE = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")


def environment(*first: Path) -> dict[str, str]:
    """`first` are folders whose programs come before all others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
    path = os.pathsep.join([*map(str, first), SCRIPTS, os.environ["PATH"]])
    return {**clean, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.mark.long
@pytest.mark.root
def test_what_is_said_to_run_on_a_host_runs(tmp_path: Path) -> None:
    """Rankguard starts the engine; in the other terminal each command ends well, in the order of the page: there is an
    incident, it is listed, shown and bundled, and the two ports answer. Stopped, both are gone, with no failure.
    """
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    (stays,) = (block.text.strip() for block in of("host", "stays"))
    commands = [command for block in of("host", but=("stays",)) for command in block.commands]
    assert len(commands) >= 7
    driver = [*UNSHARE, sys.executable, str(HERE / "host_session.py"), stays, *commands]
    done = subprocess.run(
        driver, cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    *results, stayed = json.loads(done.stdout)
    for result in results:
        assert result["status"] == 0, result
    said = {result["text"].replace(" --dump-dir incidents", ""): result["out"] for result in results}
    assert "Manual" in said["rankguard incidents list"]
    assert "Timeline" in said["rankguard incidents show latest"]
    scrape = said["curl --silent http://127.0.0.1:21400/metrics"]
    there = set(re.findall(r"^# TYPE (\w+) ", scrape, re.MULTILINE))
    assert len(metrics()) > 15
    assert {name for name in metrics() if name not in there and f"{name}_total" not in there} == set()
    assert stayed["status"] == 128 + signal.SIGTERM
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "incidents").glob("*/incident.json"))
    assert (record["reason"], record["sealed"]) == ("Manual", True)
    with tarfile.open(tmp_path / "incident.tar.gz") as bundle:
        assert any(name.endswith("incident.json") for name in bundle.getnames())


@pytest.mark.root
def test_the_command_that_kills_a_rank_kills_that_rank(tmp_path: Path) -> None:
    """In the example's container it finds the one process titled so: not itself, and no other rank."""
    deployment = yaml.safe_load((ROOT / "examples" / "stand-in.yaml").read_text())
    (engine,) = deployment["spec"]["template"]["spec"]["containers"]
    command = [sys.executable, *engine["command"][1:], "--die-with-stdin"]
    (kill,) = (block.text.strip() for block in of("cluster", "kill"))
    # `kubectl exec … -- COMMAND` is COMMAND here.
    (tmp_path / "kubectl").write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    (tmp_path / "kubectl").chmod(0o755)
    driver = [*UNSHARE, sys.executable, "-c", _KILLED, json.dumps(command), kill]
    done = subprocess.run(
        driver, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    status, left = json.loads(done.stdout)
    assert status == 0
    assert sorted(left) == ["TP0", "TP2", "TP3", "detokenizer", "server"]


_KILLED = """
import json, subprocess, sys, threading
engine = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
ready = next(line for line in map(json.loads, engine.stdout) if line["event"] == "ready")
status = subprocess.run(["bash", "-euo", "pipefail", "-c", sys.argv[2]], stdin=subprocess.DEVNULL).returncode
def state(process):
    try:
        return open(f"/proc/{process['pid']}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
(victim,) = [process for process in ready["processes"] if process["label"] == "TP1"]
while state(victim) not in "ZX":
    threading.Event().wait(0.01)
others = ("resource_tracker", "helper")
alive = [p["label"] for p in ready["processes"] if state(p) not in "ZX" and p["role"] not in others]
print(json.dumps([status, alive]))
engine.stdin.close()
engine.wait()
"""


def test_the_makefile_has_the_targets() -> None:
    """`make -n` takes each; and `make demo` is `rankguard demo`, which a test of its own runs."""
    targets = [command for block in of("dev") for command in block.commands]
    assert {"make demo", "make test", "make e2e"} <= set(targets)
    for command in targets:
        words = command.split()
        assert words[0] == "make"
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            check=False, env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if command == "make demo":
            assert done.stdout.strip().splitlines()[-1].endswith("bin/rankguard demo")


def test_the_image_is_built_of_this_dockerfile() -> None:
    """What it makes is what the tests with pods run; here: the name is the one that the examples use."""
    (command,) = (command for block in of("build") for command in block.commands)
    image = re.search(r"-t (\S+) \.$", command)
    assert image is not None
    assert f"image: {image[1]}" in (ROOT / "examples" / "stand-in.yaml").read_text()
    assert (ROOT / "Dockerfile").exists()
