"""The kubelet's preStop hook at a real Rankguard: evidence before the answer, one incident, and never a kill."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from life_parts import await_frozen, await_metric, hanging_pyspy, metric, new_worker, port_of, stopped
from liveness_parts import alive, assert_all_there, assert_untouched, get, status
from sidecar_process import Sidecar, eventually, identity_of, kill_identity, load

from sidecar.demo.standin import StandIn

HOOK = "/hooks/prestop"
PATIENT = ("--stall-timeout", "60", "--stall-limit", "60")  # the kubelet is quicker


def fails(engine: StandIn, sidecar: Sidecar) -> None:
    """It hangs, and its health check says so; no verdict yet."""
    engine.work("hang", "TP1", running=2)
    sidecar.wait("the engine's health check failed")


def stop_it(engine: StandIn, sidecar: Sidecar) -> None:
    """As the kubelet does after the hook. What exits is no failure."""
    incidents = [folder.name for folder in sidecar.incidents()]
    engine.kill("server", signal.SIGTERM)
    for process in engine.processes[1:]:
        kill_identity(process.identity)
    assert engine.wait_gone(20) == []
    engine.collect()
    sidecar.wait("watching", state="restarting")
    assert [folder.name for folder in sidecar.incidents()] == incidents, sidecar.log()
    assert not sidecar.events("rank died")
    assert metric(sidecar, "rank_deaths_total") == 0


def test_called_while_the_engine_fails(tmp_path: Path) -> None:
    """Twice at once and once more: one incident, sealed before the answer, with stacks of the running engine."""
    with alive(tmp_path / "dumps", *PATIENT, engine="sglang") as (engine, sidecar):
        port = port_of(sidecar)
        fails(engine, sidecar)

        def call(_: int) -> tuple[int, str, list[bool]]:
            answer = get(port, HOOK)
            return *answer, [load(folder)["sealed"] for folder in sidecar.incidents()]

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(call, range(2)))
        record = load(sidecar.incidents()[0])
        assert answers == [(200, f"captured: {record['id']}\n", [True])] * 2
        assert get(port, HOOK) == (200, f"captured before: {record['id']}\n")
        assert len(sidecar.incidents()) == 1
        assert (record["reason"], record["decision"]["action"]) == ("PreStop", "capture")
        assert record["termination"] is None
        stacks = {a["rank"] for a in record["artifacts"] if a["kind"] == "pyspy_text" and a["status"] == "captured"}
        assert stacks >= {"TP0", "TP1", "server"}
        assert_all_there(engine)
        assert stopped([process.identity for process in engine.alive()]) == []
        assert not sidecar.events("frozen")
        await_metric(sidecar, 1, "liveness_failures_total", probe="prestop")
        assert metric(sidecar, "incidents_total") == metric(sidecar, "incidents_total", reason="PreStop") == 1
        stop_it(engine, sidecar)


def test_called_while_an_incident_is_open(tmp_path: Path) -> None:
    """The server that loses a rank fails its probe too: that is the same story, and is waited for."""
    with (
        hanging_pyspy(tmp_path) as python,
        alive(tmp_path / "dumps", "--death-deadline", "1.5", python=python, engine="sglang") as (engine, sidecar),
    ):
        engine.work("hang", "TP1", running=2)
        sidecar.wait("the engine's health check failed")
        engine.kill("TP0")
        await_frozen(engine)
        status_, text = get(port_of(sidecar), HOOK)
        record = sidecar.incident()
        assert (record["reason"], record["sealed"]) == ("RankDied", True)
        assert (status_, text) in ((200, f"captured: {record['id']}\n"), (200, "there is no engine\n"))
        assert engine.wait_gone(20) == []
        assert metric(sidecar, "liveness_failures_total") == 0


def test_called_at_the_deletion_of_a_healthy_engine(tmp_path: Path) -> None:
    """Answered at once; what exits then is a drain. With a token set, nobody else can do this."""
    with alive(tmp_path / "dumps", "--hook-token", "hush", engine="sglang") as (engine, sidecar):
        port = port_of(sidecar)
        for headers in ({}, {"X-Rankguard-Token": "hash"}):
            code, text = get(port, HOOK, headers)
            assert code == 403
            assert "hush" not in text
        assert status(sidecar)["state"] == "serving"
        code, text = get(port, HOOK, {"X-Rankguard-Token": "hush"})
        assert (code, text) == (200, "the pod is being deleted: nothing to capture\n")
        assert_untouched(engine, sidecar)
        eventually(lambda: status(sidecar)["state"] == "draining", "the drain")
        stop_it(engine, sidecar)
        assert "hush" not in sidecar.log()


def test_a_peer_is_deleted_while_requests_run(tmp_path: Path) -> None:
    """In a group a failure on one node deletes the others: stacks of what they were doing, and no death is counted."""
    with alive(tmp_path / "dumps", "--pod-group", "llama-0", engine="vllm") as (engine, sidecar):
        engine.work("serve", running=2)
        eventually(lambda: (status(sidecar)["liveness"]["last_scrape"] or {}).get("running") == 2, "requests seen")
        assert get(port_of(sidecar), HOOK)[0] == 200
        record = sidecar.incident(0)  # sealed before the answer
        assert (record["reason"], record["group"]) == ("PeerFailed", "llama-0")
        assert record["decision"]["deadline"] == 3.0
        stacks = {a["rank"] for a in record["artifacts"] if a["kind"] == "pyspy_text" and a["status"] == "captured"}
        assert stacks >= {rank.label for rank in engine.ranks}
        assert_all_there(engine)
        assert stopped([process.identity for process in engine.alive()]) == []
        await_metric(sidecar, 1, "incidents_total", reason="PeerFailed")
        assert metric(sidecar, "liveness_failures_total") == 0
        assert get(port_of(sidecar), HOOK)[0] == 200
        stop_it(engine, sidecar)


def test_the_guard_is_killed_meanwhile(tmp_path: Path) -> None:
    """The next one goes on with the same incident, answers, and still takes what exits for a drain."""
    with alive(tmp_path / "dumps", *PATIENT, engine="sglang") as (engine, sidecar):
        guard = identity_of(sidecar.worker("guard"))
        fails(engine, sidecar)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(get, port_of(sidecar), HOOK)
            sidecar.wait("captured", status="captured")
            kill_identity(guard)
            new_worker(sidecar, "guard", guard)
            assert answer.result(60)[0] == 200
        assert sidecar.incident()["reason"] == "PreStop"
        assert get(port_of(sidecar), HOOK)[0] == 200
        assert len(sidecar.incidents()) == 1
        stop_it(engine, sidecar)
