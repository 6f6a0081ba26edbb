"""Shared memory that a killed engine leaves: removed where that is certain to hurt nobody, else reported.

Where it may be removed is a pod: its own IPC namespace and /dev/shm, and every process in it to be looked at.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from guard_namespace import in_namespace
from guard_watch import watched


@pytest.mark.root
def test_what_the_killed_left_is_removed(tmp_path: Path) -> None:
    """The engine's segment and its semaphore go with it; another of the same kind of name is not touched."""
    with in_namespace("shared_memory", tmp_path, "in a pod", "") as seen:
        assert seen["left"] == [seen["bystander"]]
        assert seen["said"] == {"shared memory removed": ", ".join(sorted(seen["names"]))}


@pytest.mark.root
def test_what_a_stranger_holds_is_kept(tmp_path: Path) -> None:
    """A segment that a living process outside the engine has open stays, and the record says so."""
    with in_namespace("shared_memory", tmp_path, "in a pod", "held by the test") as seen:
        assert sorted(seen["left"]) == sorted([seen["bystander"], seen["names"][0]])
        assert seen["said"]["shared memory left"] == f"{seen['names'][0]}: still in use by a living process"


@pytest.mark.root
def test_where_not_everybody_can_be_seen_it_is_only_reported(tmp_path: Path) -> None:
    """In a PID namespace that is no pod's, others may use the same /dev/shm unseen: nothing is removed."""
    with in_namespace("shared_memory", tmp_path, "", "") as seen:
        assert set(seen["names"]) | {seen["bystander"]} == set(seen["left"])
        assert list(seen["said"]) == ["shared memory left"]
        assert "not every process that shares /dev/shm can be seen" in seen["said"]["shared memory left"]


def test_nothing_is_removed_while_the_engine_runs_on(tmp_path: Path) -> None:
    """After a capture that kills nothing, the engine still needs what it has."""
    with watched(tmp_path, "--on-rank-death", "capture", tp=2, shm=True) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.kill("TP1")
        record = sidecar.incident()
        assert all(Path("/dev/shm", name).exists() for name in engine.shm)
        assert not [entry for entry in record["timeline"] if entry["event"].startswith("shared memory")]
