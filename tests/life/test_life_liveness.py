"""An engine that lives and does not work is found and ended, with the evidence; one that works is left alone."""

from __future__ import annotations

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from life_parts import Ranks, ask, await_metric, hanging_pyspy, metric, new_worker, port_of, stopped
from liveness_parts import (
    STALL_LIMIT,
    STALL_TIMEOUT,
    WATCHING,
    alive,
    assert_all_there,
    assert_ended,
    assert_two_snapshots,
    assert_untouched,
    await_probe,
    await_verdict,
    both,
    debugger,
    from_the_start,
    outlast,
    status,
)
from sidecar_process import Sidecar, events_of, eventually, identity_of, kill_identity, load, state_of

from sidecar.demo.standin import StandIn

# Always ended.


def test_a_rank_is_stopped_while_requests_run(tmp_path: Path) -> None:
    """Within the stall timeout, whatever /health says: vLLM's says 200, SGLang's fails."""
    with both(tmp_path) as pairs:
        for engine, _ in pairs:
            engine.work("serve", running=3)
            engine.kill(engine.ranks[1].label, signal.SIGSTOP)
        for engine, sidecar in pairs:
            rank = engine.ranks[1].label
            record = assert_ended(engine, sidecar, "stuck", [rank])
            assert f"{rank} is stopped (state T)" in record["summary"]
            assert "3 requests run" in record["verdict"]["because"][0]
            assert record["verdict"]["since_seconds"] < STALL_LIMIT
            assert_two_snapshots(engine, record)
        assert not pairs[1][1].events("the engine's health check failed")


def test_a_rank_is_stopped_while_idle(tmp_path: Path) -> None:
    """SGLang with no request at all: the health check is one."""
    with alive(tmp_path / "dumps", engine="sglang") as (engine, sidecar):
        engine.kill("TP1", signal.SIGSTOP)
        record = assert_ended(engine, sidecar, "stuck", ["TP1"])
        assert "the health check failed" in record["summary"]


def test_a_rank_hangs_elsewhere_than_the_others(tmp_path: Path) -> None:
    """The record names it and says where each stands; two snapshots show that nobody moved."""
    with both(tmp_path, tp=3) as pairs:
        for engine, _ in pairs:
            engine.work("hang", engine.ranks[1].label, running=3)
        for engine, sidecar in pairs:
            rank = engine.ranks[1].label
            record = assert_ended(engine, sidecar, "stuck", [rank])
            assert record["verdict"]["since_seconds"] < STALL_LIMIT
            assert record["id"].endswith(f"-enginestalled-{rank.lower().replace('_', '-')}")
            assert f"{rank} is in " in record["summary"]
            assert "all_reduce" in record["summary"]
            note = assert_two_snapshots(engine, record)
            assert note.endswith("did not move")
            path = next(a["path"] for a in record["artifacts"] if a["kind"] == "pyspy_text" and a["rank"] == rank)
            assert "result" in (sidecar.incidents()[0] / path).read_text()


def test_all_ranks_spin(tmp_path: Path) -> None:
    """Not before the stall limit: until then it may be one long kernel."""
    with both(tmp_path) as pairs:
        for engine, _ in pairs:
            engine.work("spin", running=2)
        for engine, sidecar in pairs:
            record = assert_ended(engine, sidecar, "stuck")
            assert record["verdict"]["since_seconds"] >= STALL_LIMIT
            assert "synchronize" in record["summary"]


def test_nobody_listens_any_more(tmp_path: Path) -> None:
    """Refused while the ranks are at rest: it is dead, though all its processes live."""
    with both(tmp_path) as pairs:
        for engine, _ in pairs:
            engine.tell("close-port")
        for engine, sidecar in pairs:
            record = assert_ended(engine, sidecar, "dead")
            assert "the health check failed" in record["summary"]
            assert "at rest" in record["summary"]


def test_an_engine_that_says_that_it_is_over(tmp_path: Path) -> None:
    """vLLM's 503. It needs no other evidence, and no stall timeout."""
    long = ("--stall-timeout", "60", "--stall-limit", "60")
    with alive(tmp_path / "dumps", *long, engine="vllm") as (engine, sidecar):
        engine.tell("declare-dead")
        record = assert_ended(engine, sidecar, "dead")
        assert "503" in record["summary"]


# Never ended.


def test_an_engine_at_work_is_left_alone(tmp_path: Path) -> None:
    """Serving, idle, in a prefill longer than the stall timeout, while a kernel is compiled, in a debugger's hands."""
    with both(tmp_path, "--stall-limit", "15") as pairs:
        for engine, _ in pairs:
            engine.work("serve")
        outlast(1.5 * STALL_TIMEOUT, *pairs)
        for engine, _ in pairs:
            engine.work("prefill", running=2)
        outlast(2.5 * STALL_TIMEOUT, *pairs)
        assert all(status(s)["liveness"]["no_progress_seconds"] > 2 * STALL_TIMEOUT for _, s in pairs)
        for engine, _ in pairs:
            engine.work("compile", running=2)
        for _, sidecar in pairs:
            await_verdict(sidecar, "compiling")
        outlast(2 * STALL_TIMEOUT, *pairs)
        assert [status(s)["liveness"]["verdict"] for _, s in pairs] == ["compiling"] * 2
        for engine, _ in pairs:
            engine.work("serve")
        (sglang, watching), (vllm, other) = pairs
        rank = sglang.ranks[1]
        vllm.work("idle")
        with debugger(sglang, rank.label):
            assert state_of(rank.identity) == "t"
            outlast(2 * STALL_TIMEOUT, *pairs)
            assert "a debugger has TP1" in status(watching)["liveness"]["because"]
        await_verdict(other, "idle")
        assert "a debugger has TP1" not in status(watching)["liveness"]["because"] or await_verdict(watching, "busy")
        assert_untouched(sglang, watching)


def test_what_says_nothing_of_its_ranks(tmp_path: Path) -> None:
    """Nobody listens and no rank is up: that is a start, however long; after its first answer all counts. A further
    node's server says 200 whatever happens (SGLang), so it is not asked at all.
    """
    second_node = {"tp_in_cmdline": False, "prefix": [sys.executable, "-c", SECOND_NODE]}
    with (
        from_the_start(tmp_path / "loading", engine="sglang", title_when="fifo") as (loading, of_loading),
        from_the_start(tmp_path / "further", engine="sglang", **second_node) as (further, of_further),
    ):
        loading.wait_for("spawned")
        further.wait_ready()
        of_further.wait_serving()
        further.work("serve")
        further.kill("TP1", signal.SIGSTOP)
        await_probe(of_loading, "refused")
        outlast(STALL_LIMIT + STALL_TIMEOUT, (loading, of_loading), (further, of_further))
        said = status(of_further)["liveness"]
        assert (said["up"], said["health_url"], said["metrics_url"]) == (False, None, None)
        assert stopped([further.find("TP1").identity])

        said = status(of_loading)["liveness"]
        assert (said["up"], said["last_probe"]["answer"]) == (False, "refused")
        loading.tell("title")
        loading.wait_ready()
        of_loading.wait_serving()
        of_loading.wait("the engine answers")
        loading.kill("TP1", signal.SIGSTOP)
        assert_ended(loading, of_loading, "stuck", ["TP1"])


# Starts what follows as the engine's second node.
SECOND_NODE = """
import sys
from sidecar.demo import engine
plain = engine.server_command
engine.server_command = lambda *given: [*plain(*given), "--nnodes", "2", "--node-rank", "1"]
sys.argv = sys.argv[3:]
engine.main()
"""


# What is done about it.


def test_captured_and_let_run(tmp_path: Path) -> None:
    """The engine is left as it is. /livez says 200 until the deadline of the captures, then 503 until it works again.
    One hang is one incident, however long; the next one is another.
    """
    arguments = ("--on-liveness-failure", "capture", "--liveness-deadline", "3")
    with alive(tmp_path / "dumps", *arguments, engine="vllm") as (engine, sidecar):
        port, rank = port_of(sidecar), engine.ranks[1]
        engine.work("serve")
        engine.kill(rank.label, signal.SIGSTOP)
        first = sidecar.wait("liveness failed")["incident"]
        polled = 0
        while not sidecar.events("let go"):
            answer = ask(port, "/livez")[0]
            assert answer == 200 or sidecar.events("let go"), sidecar.log()
            polled += 1
        assert polled > 1
        sidecar.wait("livez", answer="failed")
        eventually(lambda: ask(port, "/livez")[0] == 503, "a /livez that fails")
        assert_all_there(engine)
        assert stopped([process.identity for process in engine.alive()]) == [rank.identity]
        outlasted = status(sidecar)["uptime_seconds"] + STALL_TIMEOUT
        eventually(lambda: status(sidecar)["uptime_seconds"] > outlasted, "some time")
        assert ask(port, "/livez")[0] == 503
        engine.kill(rank.label, signal.SIGCONT)
        sidecar.wait("livez", answer="ok")
        eventually(lambda: ask(port, "/livez")[0] == 200, "a /livez that passes")
        record = assert_ended(engine, sidecar, "stuck", [rank.label], gone=False)
        assert record["id"] == first
        assert record["decision"]["action"] == "capture"

        engine.work("hang", rank.label)
        eventually(lambda: len(sidecar.events("liveness failed")) == 2, f"the second hang\n{sidecar.log()}")
        eventually(lambda: len(sidecar.incidents()) == 2, "its incident")
        second = eventually(lambda: (r := load(sidecar.incidents()[1]))["sealed"] and r, "its record")
        assert second["verdict"]["odd"] == [rank.label] or second["verdict"]["liveness"] == "stuck"
        assert_all_there(engine)
        await_metric(sidecar, 2, "liveness_failures_total", probe="progress")


def test_only_observed(tmp_path: Path) -> None:
    """Recorded, and nothing of the engine is signalled or looked into."""
    with alive(tmp_path / "dumps", "--on-liveness-failure", "observe", tp=3, engine="sglang") as (engine, sidecar):
        engine.work("hang", "TP1", running=2)
        sidecar.wait("liveness failed")
        record = eventually(lambda: sidecar.incidents() and load(sidecar.incidents()[0]), "the incident")
        assert record["decision"]["action"] == "observe"
        assert record["verdict"]["odd"] == ["TP1"]
        assert record["artifacts"] == []
        engine.work("serve")  # each rank makes a step
        assert not sidecar.events("frozen")
        assert_all_there(engine)
        assert len(sidecar.incidents()) == 1
        assert metric(sidecar, "liveness_failures_total", probe="progress") == 1


# While the evidence is taken: a py-spy that never answers keeps that going until the deadline.


def stop_a_rank(engine: StandIn, sidecar: Sidecar) -> str:
    """Until it is found. Returns the incident's id."""
    engine.work("serve")
    engine.kill(engine.ranks[1].label, signal.SIGSTOP)
    return str(sidecar.wait("liveness failed")["incident"])


def test_a_pyspy_that_never_answers(tmp_path: Path) -> None:
    """It costs the deadline and nothing else."""
    with (
        hanging_pyspy(tmp_path) as python,
        alive(tmp_path / "dumps", python=python, engine="vllm") as (engine, sidecar),
    ):
        stop_a_rank(engine, sidecar)
        record = assert_ended(engine, sidecar, "stuck", [engine.ranks[1].label])
        taken = {(a["kind"], a["status"]) for a in record["artifacts"]}
        assert ("process", "captured") in taken
        assert ("pyspy_text", "timed_out") in taken, taken


def test_a_rank_dies_while_captured_only(tmp_path: Path) -> None:
    """A death is another matter: an incident of its own, and the engine is killed."""
    arguments = ("--on-liveness-failure", "capture", "--liveness-deadline", "60")
    with (
        hanging_pyspy(tmp_path) as python,
        alive(tmp_path / "dumps", *arguments, python=python, engine="vllm") as (engine, sidecar),
    ):
        first = stop_a_rank(engine, sidecar)
        sidecar.wait("captured", status="captured")
        engine.kill(engine.ranks[0].label)
        assert engine.wait_gone(30) == [], sidecar.log()
        await_metric(sidecar, 1, "terminations_total")
        eventually(lambda: [load(i)["sealed"] for i in sidecar.incidents()] == [True, True], "two records")
        stalled, died = (load(folder) for folder in sidecar.incidents())
        assert (stalled["id"], stalled["reason"], stalled["termination"]) == (first, "EngineStalled", None)
        assert died["reason"] == "RankDied"
        assert died["failures"][0]["rank"] == engine.ranks[0].label
        assert metric(sidecar, "incidents_total") == 2
        assert metric(sidecar, "rank_deaths_total") == 1


def test_a_rank_dies_before_the_kill(tmp_path: Path) -> None:
    """It was stuck and now is certain to be over: no more time than after any death, one incident, both told."""
    arguments = ("--liveness-deadline", "60", "--death-deadline", "0.5")
    with (
        hanging_pyspy(tmp_path) as python,
        alive(tmp_path / "dumps", *arguments, python=python, engine="vllm") as (engine, sidecar),
    ):
        stop_a_rank(engine, sidecar)
        sidecar.wait("captured", status="captured")
        engine.kill(engine.ranks[0].label)
        record = assert_ended(engine, sidecar, "stuck", [engine.ranks[1].label])
        assert [failure["rank"] for failure in record["failures"]] == [engine.ranks[0].label]
        assert metric(sidecar, "rank_deaths_total") == 1


def test_the_guard_is_killed_while_the_evidence_is_taken(tmp_path: Path) -> None:
    """The next one goes on with it: one incident, and the engine is killed."""
    with (
        hanging_pyspy(tmp_path) as python,
        alive(tmp_path / "dumps", python=python, engine="vllm") as (engine, sidecar),
    ):
        guard = identity_of(sidecar.worker("guard"))
        stop_a_rank(engine, sidecar)
        sidecar.wait("captured", status="captured")
        kill_identity(guard)
        record = assert_ended(engine, sidecar, "stuck", [engine.ranks[1].label])
        assert "guard restarted" in events_of(record)


def test_the_guard_is_killed_over_an_engine_that_is_let_run(tmp_path: Path) -> None:
    """One hang is one incident for the next guard too, and /livez says so in the end."""
    arguments = ("--on-liveness-failure", "capture", "--liveness-deadline", "2")
    with alive(tmp_path / "dumps", *arguments, engine="vllm") as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        first = stop_a_rank(engine, sidecar)
        sidecar.wait("captured", status="captured")
        kill_identity(guard)
        new_worker(sidecar, "guard", guard)
        sidecar.wait("sealed", process="guard", incident=first)
        sidecar.wait("livez", answer="failed")
        end = status(sidecar)["uptime_seconds"] + STALL_TIMEOUT
        eventually(lambda: status(sidecar)["uptime_seconds"] > end, "some time")
        assert [folder.name for folder in sidecar.incidents()] == [first], sidecar.log()


def test_the_web_is_killed_while_the_engine_hangs(tmp_path: Path) -> None:
    """The next one finds it too."""
    with both(tmp_path) as pairs:
        for engine, sidecar in pairs:
            web = identity_of(sidecar.worker("web"))
            engine.work("serve")
            engine.work("hang", engine.ranks[1].label, running=2)
            kill_identity(web)
        for engine, sidecar in pairs:
            assert_ended(engine, sidecar, "stuck", None)


class Health:
    """An HTTP server that says `status`, whatever is asked."""

    def __init__(self) -> None:
        self.status = 200
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(health.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> Health:
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_next_generation_is_watched_too(tmp_path: Path) -> None:
    """After an engine was killed, the one that comes in its place is asked, and ended where it hangs too."""
    with (
        Health() as health,
        Ranks() as engine,
        Sidecar(tmp_path / "dumps", *WATCHING, "--health-url", health.url, *engine.flags) as sidecar,
    ):
        seen = 0
        for count in (1, 2):
            identities = engine.start()
            if count == 2:  # nothing that the one before said stands for it
                await_probe(sidecar, "unhealthy")
                assert status(sidecar)["liveness"]["up"] is False
            health.status = 200
            sidecar.wait("the engine answers", after=seen)
            health.status = 503
            engine.kill(1, signal.SIGSTOP)
            assert engine.collect(30) == [-signal.SIGKILL] * 2
            assert not [identity for identity in identities if state_of(identity)]
            eventually(lambda n=count: len(sidecar.events("gone")) == n, f"the kill\n{sidecar.log()}")
            seen = len(sidecar.lines)
        eventually(lambda: [load(i)["sealed"] for i in sidecar.incidents()] == [True, True], "two records")
        assert [load(folder)["verdict"]["odd"] for folder in sidecar.incidents()] == [["TP1"], ["TP1"]]
        assert metric(sidecar, "incidents_total", reason="EngineStalled") == 2
        assert metric(sidecar, "rank_deaths_total") == 0
