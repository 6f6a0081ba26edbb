"""Which processes are ranks, and how many there should be, as read from real processes."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
from guard_troupe import Troupe, labels_of
from guard_watch import Scout, beside, held_by_guard, stands_by, watched
from sidecar_process import PROC, eventually, identity_of, kill_identity, running, state_of

from sidecar.demo.standin import StandIn


def test_a_title_that_comes_late_and_changes(tmp_path: Path) -> None:
    """A vLLM worker is untitled, then bare, then named: the same process all along, and the incident has its last
    name, without the empty arguments that a title leaves behind it.
    """
    with watched(tmp_path, engine="vllm", tp=2, title_when="fifo") as (engine, sidecar):
        engine.wait_for("spawned")
        worker = engine.find("TP0")
        assert sidecar.wait("rank", pid=worker.pid)["rank"].startswith("untitled")
        engine.tell("title")
        bare = sidecar.wait("rank", pid=worker.pid, title="VLLM::Worker")
        assert bare["rank"] in ("worker", "worker#2")
        engine.tell("title")
        engine.wait_ready()
        assert sidecar.wait("rank", pid=worker.pid, title="VLLM::Worker_TP0")["rank"] == "TP0"
        assert PROC.cmdline(worker.pid).endswith(b"\0\0\0"), "this kind of title leaves NULs"
        sidecar.wait_serving()
        engine.kill("TP0")
        record = sidecar.incident()
        assert [(failure["rank"], failure["pid"]) for failure in record["failures"]] == [("TP0", worker.pid)]


def test_exec_under_an_unchanged_pid(tmp_path: Path) -> None:
    """`bash -c "…; exec …"`, the usual entrypoint: the shell's pid and start time are the server's in the end."""
    shell = ("bash", "-c", 'true; exec "$@"', "bash")
    with watched(tmp_path, prefix=shell, tp=2, start_when="fifo") as (engine, sidecar):
        engine.wait_for("starting")
        before = identity_of(engine.process.pid)
        sidecar.wait("rank", pid=before.pid, rank="root")
        engine.tell("start")
        engine.wait_ready()
        assert sidecar.wait("rank", pid=before.pid, rank="server")["role"] == "server"
        assert engine.find("server").identity == before
        sidecar.wait_serving()
        engine.kill("TP1")
        assert labels_of(sidecar.incident()["failures"]) == ["TP1"]
        assert engine.wait_gone() == []


def test_short_lived_helpers_are_no_ranks(tmp_path: Path) -> None:
    """What a start-up calls (lscpu, file, a shell, a spawned child that does its work) comes and goes: no incident."""
    with watched(tmp_path, tp=2, title_when="fifo", helpers=True) as (engine, sidecar):
        engine.wait_for("spawned")
        helpers = {process.pid for process in engine.processes if process.role in ("helper", "resource_tracker")}
        assert len(helpers) == 4
        detokenizer = engine.find("detokenizer").pid
        eventually(lambda: detokenizer in held_by_guard(sidecar), "it is watched")
        engine.tell("title", "TP0")
        engine.tell("title", "TP1")
        engine.tell("exit", "detokenizer", "0")  # still untitled: a spawned child that has done its work
        sidecar.wait("helper ended")
        sidecar.wait("watching", state="serving")
        assert helpers.isdisjoint(line["pid"] for line in sidecar.events("rank"))
        stands_by(sidecar)
        engine.kill("TP1")
        record = sidecar.incident()
        assert labels_of(record["failures"]) == ["TP1"]
        assert record["reason"] == "RankDied"
        assert engine.wait_gone() == []


def test_a_rank_that_appears_and_dies_between_two_looks(tmp_path: Path) -> None:
    """Nobody saw it, so it is no death; but there are fewer ranks than expected: RankMissing, and the engine goes."""
    code = """
def brief():
    order()
    rank("TP2", lambda: os._exit(1))
    os.wait()
    say("over")
    wait()
rank("TP0"); rank("TP1")
fork(brief, "brief")
wait()
"""
    flags = ("--expected-ranks", "3", "--startup-timeout", "1")
    with Troupe(code) as troupe, beside(tmp_path, troupe.pid, *flags) as sidecar:
        troupe.await_labels("TP0", "TP1", "brief")
        sidecar.wait("rank", rank="TP1")
        guard = identity_of(sidecar.worker("guard"))
        kill_identity(guard, signal.SIGSTOP)
        try:
            eventually(lambda: state_of(guard) == "T", "the guard stopped")
            troupe.order("now")
            troupe.await_labels("TP2", "over")
        finally:
            kill_identity(guard, signal.SIGCONT)
        record = sidecar.incident()
        assert record["reason"] == "RankMissing"
        assert record["failures"] == []
        assert record["decision"]["because"] == ["2 of 3 ranks (told: 3) after 1 s"]
        assert "TP2" not in {line["rank"] for line in sidecar.events("rank")}
        troupe.wait_gone()


@pytest.mark.parametrize(
    ("told", "in_command_line", "because"),
    [
        (None, True, "1 of 2 ranks (--tp-size 2) after 1 s"),
        (3, True, "1 of 3 ranks (told: 3) after 1 s"),
        (2, False, "1 of 2 ranks (told: 2) after 1 s"),
    ],
)
def test_where_the_expected_number_is_from(
    told: int | None, in_command_line: bool, because: str, tmp_path: Path
) -> None:
    """The engine's own command line says how many ranks there should be; a number that a person tells is stronger.
    One that has left before anybody looked is not there.
    """
    flags = ["--startup-timeout", "1", *(["--expected-ranks", str(told)] if told else [])]
    with StandIn(tp=2, title_when="fifo", tp_in_cmdline=in_command_line) as engine:
        engine.wait_for("spawned")
        engine.tell("title", "TP0")
        engine.tell("title", "detokenizer")
        engine.tell("exit", "TP1", "0")
        eventually(lambda: not running(engine.find("TP1").identity), "it has left")
        with beside(tmp_path, engine.process.pid, *flags) as sidecar:
            record = sidecar.incident()
            assert (record["reason"], record["failures"]) == ("RankMissing", [])
            assert record["decision"]["because"] == [because]
            assert engine.wait_gone() == []


def test_an_engine_that_gives_no_titles(tmp_path: Path) -> None:
    """Without setproctitle a rank stays a spawned child of its server for ever: it counts once the time for titles is
    over, and its death is an incident.
    """
    with watched(tmp_path, "--startup-timeout", "1", tp=2, title_when="never") as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        engine.kill("TP1")
        record = sidecar.incident()
        assert record["reason"] == "RankDied"
        assert [failure["pid"] for failure in record["failures"]] == [engine.find("TP1").pid]
        assert engine.wait_gone() == []


def test_all_ranks_are_up_in_time(tmp_path: Path) -> None:
    """With every expected rank there, the start-up limit means nothing any more."""
    with watched(tmp_path, "--startup-timeout", "1", tp=2) as (engine, sidecar):
        engine.wait_ready()
        sidecar.wait_serving()
        since = datetime.fromisoformat(sidecar.events("rank")[0]["time"]).timestamp()
        eventually(lambda: time.time() - since > 2.3, "the limit has passed, and the check after it")
        assert sidecar.events("rank missing") == []
        assert sidecar.incidents() == []
        assert len(engine.alive()) == len(engine.processes)


def test_a_rank_that_init_has_inherited_is_found() -> None:
    """Schedulers get reparented to PID 1: a rank is known by its own title, and not by whose child it is."""
    with Troupe('fork(lambda: rank("TP0"))\nwait()') as troupe, Scout(None) as scout:
        troupe.await_labels("TP0")
        pid = troupe.pid_of("TP0")
        eventually(lambda: getattr(PROC.stat(pid), "ppid", 0) != troupe.pid, "inherited")
        rank = scout.rank(pid)
        assert (rank.rank.partition("#")[0], rank.role) == ("TP0", "scheduler")


def test_what_a_rank_forks_is_no_rank_by_the_rank_s_title() -> None:
    """Between fork and exec a rank's compiler has its title: not a rank at first sight, and none once it has its own
    command line, however late that comes. Otherwise its end would be a rank's death.
    """
    code = """
def act():
    order()
    if not os.fork():
        say("copy")
        order()
        os.execv("/bin/sleep", ["sleep", "60"])
    wait()
rank("TP0", act)
wait()
"""
    with Troupe(code) as troupe, Scout(identity_of(troupe.pid)) as scout:
        troupe.await_labels("TP0")
        scout.rank(troupe.pid_of("TP0"))
        troupe.order("fork")
        troupe.await_labels("copy")
        copy = troupe.identities["copy"]
        scout.discovery.look(time.monotonic())
        assert copy.pid in scout.census.table
        assert copy not in scout.discovery.ranks
        assert scout.rank(copy.pid).rank == "TP0#2", "a copy that stays may be a rank to be"
        troupe.order("exec")

        def dropped() -> bool:
            scout.discovery.look(time.monotonic())
            return copy in {rank.identity for rank in scout.discovery.take_dropped()}

        eventually(dropped, "it is none once it has said what it is")
        assert [rank.identity for rank in scout.discovery.ranks.values()].count(troupe.identities["TP0"]) == 1


def test_with_a_root_a_stranger_is_no_rank() -> None:
    """Bound to one tree, a process with a rank's title outside it means nothing."""
    with Troupe("rank('TP0')\nwait()") as stranger, StandIn(tp=1) as engine:
        stranger.await_labels("TP0")
        engine.wait_ready()
        with Scout(engine.find("server").identity) as scout:
            scout.rank(engine.find("scheduler").pid, lambda rank: rank.rank == "scheduler")
            assert stranger.pid_of("TP0") in scout.census.table
            assert stranger.pid_of("TP0") not in {identity.pid for identity in scout.discovery.ranks}
