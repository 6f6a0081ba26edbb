"""A rank dies, whichever and whenever: one incident, the right first failure, and nothing of the engine is left."""

from __future__ import annotations

import os
import select
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from guard_troupe import Troupe, killed_pids, labels_of
from guard_watch import beside, held_by_guard, stands_by, watched
from sidecar_process import PROC, Sidecar, events_of, eventually, identity_of, kill_identity, running, state_of

from sidecar.demo.standin import StandIn


def all_gone(engine: StandIn, record: dict[str, Any], reason: str, rank: str) -> None:
    """What every such incident promises."""
    assert engine.wait_gone() == []
    assert record["reason"] == reason
    first = [failure for failure in record["failures"] if failure["first"]]
    assert labels_of(first) == [rank]
    assert record["failures"][0] == first[0]
    assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
    assert record["termination"]["survivors"] == []


@pytest.mark.parametrize(
    ("masked", "end", "expected"),
    [
        ("", "9", (None, 9, "sigkill")),
        ("thread_pidfd", "11", (None, 11, "sigsegv")),
        ("pidfd_hup,thread_pidfd", "exit 1", (1, None, "exit_nonzero")),
        ("pidfd_info,pidfd_hup", "exit 0", (0, None, "unknown")),
        ("pidfd", "9", (None, 9, "sigkill")),
    ],
)
def test_the_third_rank_of_four(masked: str, end: str, expected: tuple[Any, ...], tmp_path: Path) -> None:
    """Any rank's death, by any end and on any kernel, is its incident, and nobody of the engine outlives it."""
    flags = ["--mask-features", masked] if masked else []
    # What a kernel without PIDFD_GET_INFO has not read before the reaping is unknown, and is so in `why_unknown`.
    reap = "pidfd_info" not in masked and masked != "pidfd"
    with watched(tmp_path, "--exit-grace", "0.3", *flags, tp=4, reap=reap) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        if end.startswith("exit"):
            engine.tell("exit", "TP2", end.split()[1])
        else:
            engine.kill("TP2", int(end))
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "TP2")
        failure = record["failures"][0]
        assert (failure["exit_code"], failure["signal"], failure["cause"]) == expected
        assert (failure["pid"], failure["role"]) == (engine.find("TP2").pid, "scheduler")
        everyone = {process.pid for process in engine.processes} - {failure["pid"]}
        assert killed_pids(record) - {failure["pid"]} == everyone


@pytest.mark.parametrize("titled", [False, True], ids=["untitled", "titled"])
def test_a_death_during_the_start(titled: bool, tmp_path: Path) -> None:
    """A rank that dies before all are up is a rank all the same, and before its title too: a spawned child of the
    server.
    """
    with watched(tmp_path, tp=2, title_when="fifo") as (engine, sidecar):
        engine.wait_for("spawned")
        pid = engine.find("TP1").pid
        if titled:
            engine.tell("title", "TP1")
            label = sidecar.wait("rank", pid=pid, rank="TP1")["rank"]
        else:
            label = sidecar.wait("rank", pid=pid)["rank"]
            assert label.startswith("untitled")
        stands_by(sidecar)
        assert sidecar.events("watching")[-1]["state"] == "starting"
        engine.kill("TP1")
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", label)
        assert record["failures"][0]["pid"] == pid


def test_two_deaths_in_one_moment(tmp_path: Path) -> None:
    """Two ranks die before the guard has looked: one incident, the first is the root cause, the other is cascade."""
    with watched(tmp_path, tp=4) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        kill_in_one_look(sidecar, engine, "TP3", "TP1")
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "TP3")
        assert labels_of(record["failures"]) == ["TP3", "TP1"]
        assert [failure["first"] for failure in record["failures"]] == [True, False]
        assert [line.get("cascade", False) for line in sidecar.events("rank died")] == [False, True]


def test_two_deaths_in_one_moment_with_nothing_to_capture(tmp_path: Path) -> None:
    """A death before the kill is no doing of ours, even where the kill follows at once: it is in the record."""
    with watched(tmp_path, "--captures", "none", tp=4) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        kill_in_one_look(sidecar, engine, "TP3", "TP1")
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "TP3")
        assert labels_of(record["failures"]) == ["TP3", "TP1"]


def kill_in_one_look(sidecar: Sidecar, engine: StandIn, *labels: str) -> None:
    """Kill these in this order while the guard stands still, so that it finds them all in its next look."""
    guard = identity_of(sidecar.worker("guard"))
    eventually(lambda: state_of(guard) == "S", "the guard between two looks")
    kill_identity(guard, signal.SIGSTOP)
    try:
        eventually(lambda: state_of(guard) == "T", "the guard stopped")
        for label in labels:
            engine.kill(label)
            eventually(lambda label=label: not running(engine.find(label).identity), f"{label} dead")
    finally:
        kill_identity(guard, signal.SIGCONT)


def test_1_gib_is_seen_before_the_pidfd_tells(tmp_path: Path) -> None:
    """The failure's time is before the moment at which a bare pidfd becomes readable."""
    with watched(tmp_path, tp=1, memory_mib=1024, detokenizer=False) as (engine, sidecar):
        engine.wait_ready(60)
        sidecar.wait_serving()
        rank = engine.find("scheduler").pid
        # Threads that came after the rank was found are picked up within a second.
        eventually(lambda: held_by_guard(sidecar) & set(PROC.threads(rank)[1:]), "a thread watched")
        bare = os.pidfd_open(rank)
        try:
            engine.kill("scheduler")
            assert select.select([bare], [], [], 30)[0]
            told = time.time()
        finally:
            os.close(bare)
        failure = sidecar.incident()["failures"][0]
        assert failure["seen_by"] in ("thread pidfd", "stat")
        assert failure["signal"] == 9
        assert datetime.fromisoformat(failure["observed_at"]).timestamp() < told


def test_a_zombie_leader_with_live_threads(tmp_path: Path) -> None:
    """A rank whose main thread has ended works no more, though no pidfd ever says so: it is the incident, and its
    threads are killed.
    """
    with watched(tmp_path, "--exit-grace", "0.3", tp=2) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.tell("leader-exit", "TP1")
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "TP1")
        assert record["failures"][0]["seen_by"] == "stat"
        assert engine.find("TP1").pid in killed_pids(record)


def test_a_zombie_that_nobody_collects_is_gone_and_said_to_be_one(tmp_path: Path) -> None:
    """A zombie holds nothing, so nobody waits for it; the outcome says that it is still in the table."""
    with watched(tmp_path, tp=1, reap=False, detokenizer=False) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.kill("scheduler")
        assert sidecar.wait("gone")["outcome"] == "exited_unreaped"
        assert state_of(engine.find("server").identity) == "Z"
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "scheduler")
        assert record["termination"]["outcome"] == "exited_unreaped"


@pytest.mark.parametrize("engine_name", ["sglang", "vllm"])
def test_a_server_killed_while_its_ranks_stay(engine_name: str, tmp_path: Path) -> None:
    """Ranks that their server has left to init, and that are deaf to SIGTERM: EngineExited, and none of them stays."""
    with watched(tmp_path, engine=engine_name, tp=2, ignore_sigterm=True) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        for rank in engine.ranks:
            kill_identity(rank.identity, signal.SIGTERM)
        engine.kill("server")
        record = sidecar.incident()
        all_gone(engine, record, "EngineExited", "server")
        assert record["failures"][0]["signal"] == 9
        assert {rank.pid for rank in engine.ranks} <= killed_pids(record)


def test_vllm_server_that_leaves_with_0_after_its_worker_was_killed(tmp_path: Path) -> None:
    """The engine ends itself and its server says 0: that is still the worker's failure, and no clean stop."""
    options = {"server_behaviour": "vllm", "reaction": 0.05, "grace": 0.3}
    with watched(tmp_path, "--on-rank-death", "observe", engine="vllm", tp=2, **options) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.kill("TP1")
        assert engine.process.wait(30) == 0
        assert engine.wait_gone() == []
        record = sidecar.incident()
        assert record["reason"] == "RankDied"
        assert record["failures"][0]["rank"] == "TP1"
        assert record["failures"][0]["signal"] == 9
        assert [failure["rank"] for failure in record["failures"] if failure["first"]] == ["TP1"]
        assert record["termination"] is None
        assert "engine stopped" not in [line["event"] for line in sidecar.lines]


@pytest.mark.parametrize("flags", [(), ("--engine", "generic")], ids=["auto", "generic"])
def test_torchrun_ranks_in_sessions_of_their_own(flags: tuple[str, ...], tmp_path: Path) -> None:
    """The agent's group holds none of its ranks: all die all the same. A rank's environment says how many there are."""
    with watched(tmp_path, *flags, engine="generic", tp=3, own_sessions=True) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        assert sidecar.events("watching")[-1]["expected"] == 3
        engine.kill("RANK2")
        record = sidecar.incident()
        all_gone(engine, record, "RankDied", "RANK2")
        assert "killed" in events_of(record)


def test_a_rank_whose_parent_has_left_it_to_init(tmp_path: Path) -> None:
    """Once a member, always a member: a rank that init has inherited is watched and its death is the incident."""
    code = """
def middle():
    rank("TP0")
    order()
rank("TP1")
fork(middle, "middle")
wait()
"""
    with Troupe(code) as troupe, beside(tmp_path, troupe.pid, "--expected-ranks", "2") as sidecar:
        troupe.await_labels("TP0", "TP1", "middle")
        sidecar.wait_serving()
        troupe.order("leave")
        orphan = troupe.identities["TP0"]
        eventually(lambda: not running(troupe.identities["middle"]), "its parent gone")
        kill_identity(orphan)
        record = sidecar.incident()
        assert (record["reason"], labels_of(record["failures"])) == ("RankDied", ["TP0"])
        troupe.wait_gone()
