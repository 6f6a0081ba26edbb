"""The benchmarks run. Nothing is asserted about how fast anything is: that is what the benchmarks are for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def smoke(*names: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """A smallest run of these benchmarks: what it said, and the rows of each as they were kept."""
    only = [word for name in names for word in ("--only", name)]
    bench = subprocess.run(
        [sys.executable, "-m", "bench", "--smoke", *only],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert bench.returncode == 0, bench.stdout + bench.stderr
    kept = {name: json.loads((ROOT / "bench" / "results" / f"{name}-smoke.json").read_text()) for name in names}
    return bench.stdout, {name: body["rows"] for name, body in kept.items()}


@pytest.mark.long
def test_a_smallest_run_measures_every_observer_and_shows_the_goals() -> None:
    """A real guard and its peers on three deaths: everyone has seen each of them, and the table and the file say so."""
    said, rows = smoke("observation")
    assert "2 processes" in said
    assert "p99 / bare p99" in said
    (row,) = rows["observation"]
    assert set(row["data"]["seconds"]) == {"guard", "bare loop", "psutil 100 ms", "psutil 1 s"}
    for observer, seconds in row["data"]["seconds"].items():
        assert len(seconds) == 3, observer
        assert all(second is not None and second > 0 for second in seconds), observer
    (goal,) = row["goals"]
    assert goal["met"] == (goal["measured"] <= goal["limit"])


@pytest.mark.long
def test_a_smallest_run_sees_real_hangs_and_the_price_of_asking() -> None:
    """Both hangs of a real engine are found and end with it gone; a healthy one is asked, and its answer is used."""
    _, rows = smoke("hang", "probing")
    kinds = {row["name"]: row["data"]["hangs"] for row in rows["hang"]}
    assert set(kinds) == {"sglang: one rank stopped", "sglang: one rank elsewhere"}
    for kind, hangs in kinds.items():
        for hang in hangs:
            assert 0 < hang["verdict"] < hang["gone"], kind
            assert "TP2" in hang["because"], kind
    asking = rows["probing"][0]["data"]
    assert min(asking["asked"]) > 0
    assert asking["cpu_seconds"]["asking"]["web"] > asking["cpu_seconds"]["not asking"]["web"]


def test_a_smallest_run_has_a_hundred_pods_admitted_at_once() -> None:
    """Over TLS, each with a patch: the client refuses anything else."""
    _, rows = smoke("admission")
    assert [row["data"]["answers"] for row in rows["admission"]] == [3, 100]
    assert all(row["data"]["cpu_seconds"] > 0 for row in rows["admission"])


def test_stillness_is_what_lies_within_the_time_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap of which half was before counts half; one that is under way counts up to now; a short one does not."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.stillness import LEAST, Reader, Writer

    writer = Writer(str(tmp_path / "still"))
    reader = Reader(str(tmp_path / "still"))
    assert not reader.ticking
    begin = time.monotonic()
    for at in (0.0, 1.0, 1.0 + LEAST / 2, 1.5):
        writer.tick(begin + at)
    assert reader.ticking
    part = reader.between(begin + 0.5, begin + 1.5)
    assert abs(part.longest - 0.5) < 1e-6
    assert abs(part.total - 1.0 + LEAST / 2) < 1e-6
    assert abs(reader.between(begin, begin + 4.5).longest - 3.0) < 1e-6


def test_a_smallest_run_explains_ranks_that_have_nothing_in_common() -> None:
    """The real program reads each rank's files back and writes the merged tree; the merge is measured by itself."""
    _, rows = smoke("analysis")
    assert [row["name"] for row in rows["analysis"]] == ["the same code", "they part halfway", "nothing in common"]
    sizes = [row["data"]["bytes"] for row in rows["analysis"]]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert all(row["data"]["merge"][0] > 0 and row["data"]["program"][0] > 0 for row in rows["analysis"])
