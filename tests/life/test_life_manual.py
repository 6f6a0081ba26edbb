"""A capture that a person asks for harms nobody, and hides nothing."""

from __future__ import annotations

from pathlib import Path

from life_parts import hanging_pyspy, watched
from sidecar_process import events_of, eventually, load, running

from sidecar.commands.capture import capture


def test_captured_and_let_go(tmp_path: Path) -> None:
    """`rankguard capture`: stacks of every rank in a record of its own, and everything runs on."""
    with watched(tmp_path / "dumps", "--api-listen", "127.0.0.1:0") as (engine, sidecar):
        assert capture(f"http://{sidecar.wait('listening')['api_listen']}", None) == 0
        record = sidecar.incident()
        assert record["reason"] == "Manual"
        assert {a["rank"] for a in record["artifacts"] if a["kind"] == "pyspy_text" and a["status"] == "captured"} >= {
            "TP0", "TP1", "server",
        }  # fmt: skip
        assert "let go" in events_of(record)
        assert record["termination"] is None
        assert all(running(process.identity) for process in engine.alive())
        assert len(engine.alive()) == len(engine.processes)


def test_a_rank_that_dies_meanwhile(tmp_path: Path) -> None:
    """A real failure during such a capture is an incident of its own: the engine is killed, as was asked for."""
    with (
        hanging_pyspy(tmp_path) as python,
        watched(tmp_path / "dumps", "--api-listen", "127.0.0.1:0", python=python) as (engine, sidecar),
    ):
        assert capture(f"http://{sidecar.wait('listening')['api_listen']}", None) == 0
        sidecar.wait("frozen")
        engine.kill("TP1")
        assert engine.wait_gone() == []

        def records() -> list[dict[str, object]]:
            found = [load(folder) for folder in sidecar.incidents()]
            return found if len(found) == 2 and all(record["sealed"] for record in found) else []

        manual, died = eventually(records, "two sealed incidents")
        assert (manual["reason"], manual["failures"]) == ("Manual", [])
        assert died["reason"] == "RankDied"
        assert died["failures"][0]["rank"] == "TP1"
