"""A real sidecar beside real ranks of torch.distributed: a hang, a slow job that is none, a rank that raises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sidecar_process import Sidecar, eventually
from torch_job import TorchJob

PY_SPY = str(Path(sys.executable).with_name("py-spy"))
PERIODS = ("--stall-timeout", "3", "--probe-period", "0.5", "--probe-timeout", "2", "--liveness-deadline", "20")


def watch(job: TorchJob, dump_dir: Path, *arguments: str) -> Sidecar:
    """A sidecar that attaches to this job alone."""
    return Sidecar(
        dump_dir, "--engine", "generic", "--root-pid", str(job.agent.pid), "--health-url", job.url("/health"),
        "--metrics-url", job.url("/metrics"), *PERIODS, *arguments,
    )  # fmt: skip


def captured(record: dict[str, Any], kind: str) -> set[str]:
    """The ranks of which there is an artifact of this kind."""
    return {a["rank"] for a in record["artifacts"] if a["kind"] == kind and a["status"] == "captured"}


def stack_of(folder: Path, record: dict[str, Any], kind: str, rank: str) -> str:
    [artifact] = [a for a in record["artifacts"] if (a["kind"], a["rank"]) == (kind, rank)]
    return (folder / artifact["path"]).read_text()


def test_a_rank_that_does_not_enter_the_collective(tmp_path: Path) -> None:
    """A real hang: stuck, by positive evidence, with the odd rank named; both snapshots; then everything is gone."""
    with TorchJob(tmp_path / "job") as job, watch(job, tmp_path / "dump") as sidecar:
        sidecar.wait_serving()
        job.tell("block")
        record = sidecar.incident(60)
        folder = sidecar.incidents()[0]
        assert record["reason"] == "EngineStalled", sidecar.log()
        assert record["verdict"]["liveness"] == "stuck"
        assert record["verdict"]["odd"] == ["RANK1"]
        for kind in ("pyspy_json", "pyspy_text", "pyspy2_json", "pyspy2_text"):
            assert captured(record, kind) >= {"RANK0", "RANK1", "RANK2"}, kind
        assert "wait_for_a_lock" in stack_of(folder, record, "pyspy_text", "RANK1")
        for rank in ("RANK0", "RANK2"):
            assert "all_reduce" in stack_of(folder, record, "pyspy_text", rank)
            assert "all_reduce" in stack_of(folder, record, "pyspy2_text", rank)
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        eventually(lambda: not job.alive(), "everything gone")


def test_slow_steps_are_no_hang(tmp_path: Path) -> None:
    """Steps of a second, watched over several stall timeouts: no incident, and nothing is killed."""
    with TorchJob(tmp_path / "job", seconds=1.0) as job, watch(job, tmp_path / "dump") as sidecar:
        sidecar.wait_serving()
        first = job.steps()
        eventually(lambda: job.steps() >= first + 8, "eight more steps", 60)
        assert sidecar.incidents() == []
        assert len(job.alive()) == 4
        assert sidecar.stop() == 0


def test_a_rank_that_raises(tmp_path: Path) -> None:
    """A death as ever: the first failure has the exception's status, and the survivors' stacks are saved."""
    with TorchJob(tmp_path / "job", seconds=1.0) as job, watch(job, tmp_path / "dump") as sidecar:
        sidecar.wait_serving()
        job.tell("raise")
        record = sidecar.incident(60)
        assert record["reason"] == "RankDied", sidecar.log()
        [first] = [failure for failure in record["failures"] if failure["first"]]
        assert (first["rank"], first["exit_code"], first["cause"]) == ("RANK2", 1, "exit_nonzero")
        assert captured(record, "pyspy_json") >= {"RANK0", "RANK1"}
        eventually(lambda: not job.alive(), "everything gone")


@pytest.mark.parametrize("native", [False, True])
def test_py_spy_reads_a_rank_with_torch_loaded(tmp_path: Path, native: bool) -> None:
    """Plain stacks show the Python function of the collective; native ones the library under it as well."""
    with TorchJob(tmp_path / "job") as job:
        job.tell("block")
        job.wait_still()
        command = [PY_SPY, "dump", "--json", "--pid", str(job.ranks[0].pid), *(["--native"] if native else [])]
        dump = subprocess.run(command, capture_output=True, timeout=100)
        assert dump.returncode == 0, dump.stderr
        threads = json.loads(dump.stdout)
        [main] = [thread for thread in threads if thread["os_thread_id"] == job.ranks[0].pid]
        frames = main["frames"]
        assert "all_reduce" in [frame["name"] for frame in frames]
        assert "train_step" in [frame["name"] for frame in frames]
        assert any("libtorch" in (frame["module"] or "") for frame in frames) is native
