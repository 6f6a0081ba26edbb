"""A rank dies in a real pod: evidence on the volume, exit 137, the engine back, and what Prometheus sees of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pod_specs import engine, pod, sidecar
from pods import Pod, artifacts, sealed
from sidecar_process import eventually

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]


@pytest.mark.parametrize(("looks", "survivors"), [
    ("sglang", {"server", "TP0", "TP1", "TP2", "detokenizer"}),
    ("vllm", {"server", "TP0", "TP1", "TP2", "engine_core"}),
])  # fmt: skip
def test_a_killed_rank_is_captured_and_the_container_is_back(
    play: Play, dumps: Path, looks: str, survivors: set[str]
) -> None:
    """A rank gets SIGKILL: the stacks of all survivors are on the volume, the engine's container ends with 137 and runs
    again, and a scrape from outside the pod shows the death and the new ranks.
    """
    with play(pod(dumps, engine("--engine", looks, "--tp", "4"), sidecar())) as running:
        running.wait_serving(4)
        running.rank("TP3").kill()
        (record,) = sealed(dumps)
        assert record["reason"] == "RankDied"
        assert [(f["rank"], f["cause"], f["signal"], f["first"]) for f in record["failures"]] == [
            ("TP3", "sigkill", 9, True)
        ]
        assert survivors <= artifacts(record, "pyspy_json").keys()
        assert survivors <= artifacts(record, "process").keys()
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        running.wait_serving(4, times=2)
        assert running.exits("engine") == [137]
        assert running.restarts("rankguard") == 0
        values = eventually(
            lambda: (
                (m := running.metrics())["rankguard_rank_up"].get(
                    ("TP3", "scheduler" if looks == "sglang" else "worker")
                )
                and m
            ),
            "the new rank in the metrics",
        )
        assert values["rankguard_rank_deaths_total"]["sigkill",] == 1
        assert values["rankguard_incidents_total"]["RankDied",] == 1
