"""Several of ours end at once, or again at once, or cannot come back for a while: no death is lost, no kill either."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from life_parts import assert_killed_once, new_worker, watched
from process_cgroup import entering, process_limit
from sidecar_process import eventually, identity_of, kill_identity, running

KINDS = ("guard", "web", "recorder")


def test_all_but_the_supervisor_twice_in_a_row(tmp_path: Path) -> None:
    """The rank dies with all of them; the second time they are killed as soon as they are there."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        first = [identity_of(sidecar.worker(kind)) for kind in KINDS]
        for identity in first:
            kill_identity(identity)
        engine.kill("TP1")
        second = [new_worker(sidecar, kind, old) for kind, old in zip(KINDS, first, strict=True)]
        for identity in second:
            kill_identity(identity)
        assert_killed_once(engine, sidecar)


@pytest.mark.parametrize("seed", [1, 2])
def test_anybody_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Six of them, picked by chance, one after the other, with a death among them. The picks are the same each time."""
    chance = random.Random(seed)
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        at = chance.randrange(6)
        for turn in range(6):
            if turn == at:
                engine.kill("TP1")
            pid = eventually(lambda: sidecar.worker(chance.choice(KINDS)), "one of them")
            try:
                kill_identity(identity_of(pid))
            except AssertionError:  # it has just left
                continue
        assert_killed_once(engine, sidecar)
        assert sidecar.process.poll() is None


def test_a_guard_that_hangs_at_rest(tmp_path: Path) -> None:
    """A rank dies while it stands still: its heartbeat has stopped, so another one comes, and sees the death."""
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard, signal.SIGSTOP)
        engine.kill("TP1")
        sidecar.wait("guard killed", 60.0, because="its heartbeat has stopped")
        new_worker(sidecar, "guard", guard)
        assert_killed_once(engine, sidecar)
        assert not running(guard)


@pytest.mark.root
def test_a_death_while_no_guard_can_be_started(tmp_path: Path) -> None:
    """From the first to the last moment of it there is none: the next one knows who it was, and of what."""
    with (
        process_limit() as cgroup,
        watched(tmp_path / "dumps", "--captures", "process", python=entering(cgroup, tmp_path / "start")) as (
            engine,
            sidecar,
        ),
    ):
        guard = identity_of(sidecar.worker("guard"))
        rank = next(rank.identity for rank in engine.ranks if rank.label == "TP1")
        (cgroup / "pids.max").write_text("1")
        kill_identity(guard)
        sidecar.wait("cannot start", what="guard")
        engine.kill("TP1")
        eventually(lambda: not running(rank), "the rank dead")
        (cgroup / "pids.max").write_text("max")
        assert_killed_once(engine, sidecar)
