"""An engine that the kubelet stops by its own probe, with no hook that calls us: Rankguard decides first."""

from __future__ import annotations

from pathlib import Path

from life_parts import await_metric
from liveness_parts import alive


def test_it_hangs_and_fails_its_health_check(tmp_path: Path) -> None:
    """Limits that would take a day are shortened while the health check fails, and so is the time for evidence."""
    patient = ("--stall-timeout", "80000", "--stall-limit", "80000", "--liveness-deadline", "60")
    with alive(tmp_path / "dumps", *patient, "--target-probe-window", "10", engine="sglang") as (engine, sidecar):
        engine.work("hang", "TP1", running=2)
        record = sidecar.incident(60.0)
        assert record["reason"] in ("EngineStalled", "LivenessFailed")
        assert record["decision"]["deadline"] == 4.0
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        assert engine.wait_gone(20) == []
        await_metric(sidecar, 1, "terminations_total")
