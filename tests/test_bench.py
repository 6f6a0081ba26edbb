"""The benchmarks run. Nothing is asserted about how fast anything is: that is what the benchmarks are for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_smallest_run_measures_every_observer_and_shows_the_goals() -> None:
    """A real guard and its peers on three deaths: everyone has seen each of them, and the table and the file say so."""
    bench = subprocess.run(
        [sys.executable, "-m", "bench", "--smoke", "--only", "observation"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert bench.returncode == 0, bench.stdout + bench.stderr
    assert "2 processes" in bench.stdout
    assert "p99 / bare p99" in bench.stdout
    result = json.loads((ROOT / "bench" / "results" / "observation-smoke.json").read_text())
    (row,) = result["rows"]
    assert set(row["data"]["seconds"]) == {"guard", "bare loop", "psutil 100 ms", "psutil 1 s"}
    for observer, seconds in row["data"]["seconds"].items():
        assert len(seconds) == 3, observer
        assert all(second is not None and second > 0 for second in seconds), observer
    (goal,) = row["goals"]
    assert goal["met"] == (goal["measured"] <= goal["limit"])
