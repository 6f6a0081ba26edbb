"""`kubectl describe pod` says why: the line in the engine's termination log, as the kubelet would read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pod_specs import PYTHON, engine, pod, sidecar
from pods import Pod, sealed
from sidecar_process import eventually
from soak import EATER

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]
SMALL = ("--tp", "2", "--light", "--no-detokenizer")
KUBELET_READS = 4096  # bytes, the last of the file


@pytest.fixture
def message(tmp_path: Path) -> Path:
    """The file that the kubelet makes for a container and mounts at /dev/termination-log."""
    file = tmp_path / "termination-log"
    file.touch()
    file.chmod(0o666)
    return file


def with_message(dumps: Path, message: Path, *containers: dict[str, Any]) -> dict[str, Any]:
    containers[0]["volumeMounts"] = [{"name": "message", "mountPath": "/dev/termination-log"}]
    volume = {"name": "message", "hostPath": {"path": str(message), "type": "File"}}
    return pod(dumps, *containers, volumes=[volume])


@pytest.mark.parametrize(("uid", "captures"), [(0, "process,pyspy"), (1000, "process,pyspy"), (1000, "none")])
def test_what_died_and_where_the_evidence_is(play: Play, dumps: Path, message: Path, uid: int, captures: str) -> None:
    """Whoever the engine runs as: beside what the application wrote there itself, one line of ours that names the rank,
    the signal and the incident; with evidence to take it is there before the kill.
    """
    message.write_text("the engine's own words")
    container = engine(*SMALL, securityContext={"runAsUser": uid})
    with play(with_message(dumps, message, container, sidecar(settings={"captures": captures}))) as running:
        running.wait_serving(2)
        running.rank("TP1").kill(11)
        (record,) = sealed(dumps)
        own, ours = message.read_text()[-KUBELET_READS:].rstrip("\n").split("\n")
        assert own == "the engine's own words"
        assert "TP1 was killed by signal 11 (SIGSEGV)" in ours
        assert record["id"] in ours
        steps = [entry["event"] for entry in record["timeline"]]
        assert "told the kubelet" in steps
        if captures != "none":
            assert steps.index("told the kubelet") < steps.index("killed")
        running.wait_serving(2, times=2)
        assert running.lines("no termination log") == []


def test_out_of_memory_where_there_was_only_exit_137(play: Play, dumps: Path, message: Path) -> None:
    """A rank is killed for memory: the line says so, and what the container's limit was."""
    container = engine(*SMALL, resources={"limits": {"memory": "300Mi"}})
    with play(with_message(dumps, message, container, sidecar())) as running:
        running.wait_serving(2)
        rank = running.rank("TP0")
        Path(f"/proc/{rank.identity.pid}/oom_score_adj").write_text("1000")
        running.exec("engine", PYTHON, "-c", EATER, str(rank.inside), check=False)
        sealed(dumps)
        said = eventually(message.read_text, "the line")
        assert "TP0 was killed by the kernel for memory (container limit 300 MiB)" in said
        assert said.count("\n") <= 1


def test_the_whole_container_dies_at_once(play: Play, dumps: Path, message: Path) -> None:
    """The entrypoint is killed, and with it everything that could be looked through: the line is there all the same."""
    with play(with_message(dumps, message, engine(*SMALL), sidecar())) as running:
        running.wait_serving(2)
        for seen in running.processes("engine"):
            seen.kill()
        (record,) = sealed(dumps)
        assert record["id"] in eventually(message.read_text, "the line")
        assert "signal 9" in message.read_text()


def test_a_file_that_leads_elsewhere(play: Play, dumps: Path) -> None:
    """A hostile container puts a link where the log should be: nothing is written through it, in its container or in
    ours, and the kill happens.
    """
    shell = (
        "rm -f /dev/termination-log; ln -s /var/lib/rankguard/victim /dev/termination-log;"
        f" exec {PYTHON} -m sidecar.demo.engine {' '.join(SMALL)}"
    )
    (dumps / "victim").write_text("mine")
    with play(pod(dumps, engine(shell=shell), sidecar())) as running:
        running.wait_serving(2)
        running.rank("TP0").kill()
        sealed(dumps)
        assert running.lines("no termination log")
        assert (dumps / "victim").read_text() == "mine"
        running.wait_serving(2, times=2)
        assert running.exits("engine") == [137]
