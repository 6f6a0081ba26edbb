"""What is set wrong or not there yet: one line and an exit on a command line, and a watch that goes on in a pod."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from life_parts import Ranks, ask, await_metric, metric
from sidecar_process import Sidecar, eventually, load, running


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--death-deadline", "soon"), "--death-deadline"),
        (("--rank-pattern", "rank(", "--engine", "generic"), "--rank-pattern"),
        (("--root-pid", "4194303"), "--root-pid"),
    ],
)
def test_on_a_command_line(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    """One line that names the setting and its value, exit 2, before anything is watched."""
    command = [sys.executable, "-m", "sidecar", "run", "--dump-dir", str(tmp_path), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert named in run.stderr
    assert arguments[1] in run.stderr
    assert run.stdout == ""


def test_a_bad_setting_in_a_pod(tmp_path: Path) -> None:
    """Its default, observe, a metric and a line: a rank's death is recorded, and the engine is left alone."""
    with (
        Ranks() as engine,
        Sidecar(
            tmp_path / "dumps", "--in-pod", "--death-deadline", "soon", "--on-rank-death", "kill", *engine.flags,
        ) as sidecar,
    ):  # fmt: skip
        ranks = engine.start()
        sidecar.wait_serving()
        await_metric(sidecar, 1, "config_errors")
        assert any("death-deadline" in line.get("because", "") for line in sidecar.events("setting refused"))
        engine.kill(1)
        await_metric(sidecar, 1, "rank_deaths_total")
        assert running(ranks[0])
        engine.kill(0)  # its end is the incident's
        record = sidecar.incident()
        assert record["decision"]["action"] == "observe"
        assert record["termination"] is None


def test_a_busy_port_in_a_pod(tmp_path: Path) -> None:
    """It is tried again while the watch goes on, and served once it is free."""
    with socket.create_server(("127.0.0.1", 0)) as busy, Ranks() as engine:
        port = busy.getsockname()[1]
        engine.start()
        with Sidecar(
            tmp_path / "dumps", "--in-pod", "--captures", "none", *engine.flags, listen=f"127.0.0.1:{port}"
        ) as sidecar:
            sidecar.wait_serving()
            engine.kill(1)
            sidecar.incident()
            sidecar.wait("cannot listen; trying again")
            busy.close()
            sidecar.wait("listening", process="web")
            assert ask(port, "/healthz")[0] == 200
            _, text = ask(port, "/metrics")
            assert re.search(r'^rankguard_incidents_total\{reason="RankDied"\} 1.0$', text, re.MULTILINE)
            assert "rankguard_config_errors 0.0" in text  # a port that is not free yet is no wrong setting


def test_a_dump_folder_in_a_pod_that_comes_later(tmp_path: Path) -> None:
    """No folder can be made there: the watch goes on, the kill happens, the loss is told; later the records come."""
    blocked = tmp_path / "not-mounted-yet"
    blocked.write_text("a file in its place")
    with Ranks() as engine, Sidecar(blocked / "dumps", "--in-pod", "--captures", "none", *engine.flags) as sidecar:
        ranks = engine.start()
        sidecar.wait("watching", state="serving")
        engine.kill(1)
        assert engine.collect() == [-9, -9]
        assert not running(ranks[0])
        sidecar.wait("lost")
        eventually(lambda: metric(sidecar, "records_lost_total") > 0, "the loss counted")
        assert metric(sidecar, "rank_deaths_total") == 1
        assert metric(sidecar, "config_errors") == 0
        blocked.unlink()
        seen = len(sidecar.lines)
        engine.start()
        sidecar.wait("watching", state="serving", after=seen)
        engine.kill(0)
        eventually(
            lambda: any(load(f)["sealed"] and f.name.endswith("tp0") for f in sidecar.incidents()),
            f"the second record\n{sidecar.log()}",
        )
