"""Checks beside each other: one that hangs, ends or fails is told as that, and holds up none of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from doctor_rig import ROOT

RUN = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from sidecar.doctor import running

def hangs(step):
    step("open a pipe that nobody writes to")
    os.open(sys.argv[2], os.O_RDONLY)

def answers(step):
    step("think")
    return ["x" * 200000]

def is_ended(step):
    step("end")
    os.kill(os.getpid(), signal.SIGKILL)

def fails(step):
    raise ValueError("no good")

forks = running.run([hangs, answers, is_ended, fails], float(sys.argv[3]))
told = [{"answer": f.answer and len(f.answer[0]), "step": f.step, "failure": f.failure, "pid": f.pid} for f in forks]
try:
    os.waitpid(forks[0].pid, 0)  # it was sent SIGKILL, so this returns
except ChildProcessError:
    pass  # it was quick, and has been collected
print(json.dumps(told))
"""


def test_each_ends_as_it_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN, str(ROOT), str(tmp_path / "pipe"), "3"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    hung, answered, ended, failed = json.loads(ran.stdout)
    assert (hung["answer"], hung["failure"]) == (None, "")
    assert hung["step"] == "open a pipe that nobody writes to"
    assert answered["answer"] == 200000
    assert "ended without an answer" in ended["failure"]
    assert failed["failure"] == "the check failed: ValueError: no good"
