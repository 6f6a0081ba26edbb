"""The viewer's totals over a volume: they count pods that are gone, and never fall."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dump_folders import age, count, incident, put
from sidecar_process import eventually
from view_rig import Viewer

from sidecar.model import Reason

DEATHS = "rankguard_volume_rank_deaths_total"


def prune(volume: Path) -> str:
    argv = [sys.executable, "-m", "sidecar", "incidents", "prune", "--pods-gone-for", "1d", "--dump-dir", str(volume)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def test_totals_over_a_volume_never_fall(tmp_path):
    """Through a prune of dead pods, a folder that somebody removed by hand, a counters file that begins at 0 again, and
    a viewer that is started again after the prune."""
    for name, deaths in (("llm-0", 2), ("llm-1", 3), ("llm-2", 5)):
        pod = tmp_path / "prod" / name
        count(pod, f"uid-{name}", deaths)
        put(pod, incident(50, pod=f"prod/{name}"))
    put(tmp_path / "test" / "llm-9", incident(1, reason=Reason.ENGINE_STALLED, pod="test/llm-9"))
    count(tmp_path / "test" / "llm-9", "uid-9", 0)
    (tmp_path / "test" / "llm-9" / ".counters-bad.json").write_text("{")
    age(tmp_path / "prod" / "llm-0", 48)
    age(tmp_path / "prod" / "llm-1", 48)
    with Viewer(tmp_path) as viewer:
        first = eventually(lambda: (m := viewer.metrics()).get((DEATHS, "sigkill", "prod")) and m, "the first look", 60)
        assert first[DEATHS, "sigkill", "prod"] == 10
        assert first[DEATHS, "sigkill", "test"] == 0  # every cause from 0: an alert needs it to rise from
        assert first["rankguard_volume_incidents", "prod", "RankDied"] == 3
        assert first["rankguard_volume_incidents", "test", "EngineStalled"] == 1
        assert first["rankguard_volume_pods", "prod"] == 3
        assert first["rankguard_volume_bytes", "prod"] > 30_000
        assert first["rankguard_volume_free_bytes",] > 0
        assert first["rankguard_volume_broken_counters",] == 1
        assert first["rankguard_volume_readable",] == 1

        prune(tmp_path)
        count(tmp_path / "prod" / "llm-3", "uid-3", 1)
        seen = eventually(
            lambda: (m := viewer.metrics())["rankguard_volume_incidents", "prod", "RankDied"] == 1
            and m[DEATHS, "sigkill", "prod"] != 10 and m, "the look after the prune", 60,
        )  # fmt: skip
        assert seen[DEATHS, "sigkill", "prod"] == 11
        shutil.rmtree(tmp_path / "prod" / "llm-2")
        count(tmp_path / "prod" / "llm-3", "uid-3", 0)
        count(tmp_path / "prod" / "llm-4", "uid-4", 4)
        done = eventually(lambda: (m := viewer.metrics())[DEATHS, "sigkill", "prod"] != 11 and m, "one more look", 60)
        assert done[DEATHS, "sigkill", "prod"] >= 11
        eventually(lambda: viewer.metrics()[DEATHS, "sigkill", "prod"] == 15, "all deaths there ever were", 60)
    with Viewer(tmp_path) as viewer:
        again = eventually(lambda: (m := viewer.metrics()).get((DEATHS, "sigkill", "prod")) and m, "a look", 60)
        assert again[DEATHS, "sigkill", "prod"] == 9  # 5 of the pruned, 4 on the volume; the rest went by hand


def test_a_volume_that_is_gone_is_said_and_survived(tmp_path):
    """Nothing is claimed to be 0; the API says what is wrong, and both come back with the volume."""
    volume = tmp_path / "volume"
    count(volume / "prod" / "llm-0", "uid-0", 1)
    put(volume / "prod" / "llm-0", incident(1))
    with Viewer(volume) as viewer:
        eventually(lambda: viewer.metrics().get((DEATHS, "sigkill", "prod")) == 1, "the first look", 60)
        volume.rename(tmp_path / "away")
        gone = eventually(lambda: not (m := viewer.metrics())["rankguard_volume_readable",] and m, "no volume", 60)
        assert gone[DEATHS, "sigkill", "prod"] == 1
        answer = viewer.incidents()
        assert (answer.status_code, answer.json()) == (
            503, {"error": "the dump folder cannot be read: No such file or directory"},
        )  # fmt: skip
        assert viewer.client.get(f"http://127.0.0.1:{viewer.port}/healthz").text == "ok\n"
        (tmp_path / "away").rename(volume)
        eventually(lambda: viewer.metrics()["rankguard_volume_readable",], "the volume again", 60)
        assert len(viewer.rows()) == 1
    assert viewer.end() == 0
