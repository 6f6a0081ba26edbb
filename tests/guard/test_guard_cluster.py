"""What the guard makes of what the web has learnt of Kubernetes: every word of it is advice, and none undoes a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guard_stage import STUCK, Stage, staged
from sidecar_process import identity_of, kill_identity, running

from sidecar.model import Action

NAMES = {"c" * 64: "engine"}


def decision(stage: Stage, after: int = 0) -> tuple[str, str]:
    """The id and the action of the incident that a recorder was given."""
    begin = stage.heard("recorded", "begin", after)
    return begin["incident"]["id"], begin["incident"]["decision"]["action"]


def test_the_fleet_switch_has_it_only_observe(tmp_path: Path) -> None:
    """A death and a stall are recorded, nothing is signalled; a new guard knows it before the web has said a word; and
    nonsense turns nothing.
    """
    with staged(tmp_path) as stage:
        stage.tell(type="fleet", observe=True)
        stage.tell(type="fleet", observe="off")
        stage.heard("web", "state", observes=True)
        stage.kill_guard()
        stage.start()
        stage.heard("web", "state", len(stage.web), observes=True)
        stage.verdict(STUCK)
        incident, action = decision(stage)
        assert action == "observe"
        stage.recorder.say("opened", id=incident)
        assert [m for m in stage.control if m["type"] == "arm"] == []
        assert all(running(identity) for identity in stage.identities())
        assert len(stage.events("fleet switch")) == 1


def test_a_kill_that_was_decided_is_carried_out(tmp_path: Path) -> None:
    """The switch is turned while the evidence is taken: the engine is killed all the same."""
    with staged(tmp_path) as stage:
        stage.engine.kill("TP1")
        incident, action = decision(stage)
        assert action == "kill"
        stage.tell(type="fleet", observe=True)
        stage.settled()
        stage.recorder.say("opened", id=incident)
        stage.recorder.say("captures_done")
        assert stage.engine.wait_gone(20) == [], stage.log()
        assert stage.seal(incident)["termination"]["outcome"] in ("reaped", "exited_unreaped")


def test_the_fleet_switch_keeps_the_kubelet_from_it_too(tmp_path: Path) -> None:
    """/livez of an engine that hangs fails no more while the switch is on, and again when it is off."""
    with staged(tmp_path, liveness_deadline=0.2, on_liveness_failure=Action.CAPTURE) as stage:
        stage.verdict(STUCK)
        stage.heard("control", "livez", failed=True)
        for observe in (True, False):
            after = len(stage.control)
            stage.tell(type="fleet", observe=observe)
            stage.heard("control", "livez", after, failed=not observe)


def test_what_the_pod_is_doing_stands_in_the_record(tmp_path: Path) -> None:
    """The failed rank's container by its name, once, and that the pod was being deleted; the web is told all of it."""
    with staged(tmp_path) as stage:
        state = stage.heard("web", "state", state="serving")
        names = {rank["container"]: "engine" for rank in state["ranks"]} or NAMES
        stage.tell(type="containers", names=names)
        stage.tell(type="containers", names=5)
        stage.settled()
        stage.engine.kill("TP1")
        incident, _ = decision(stage)
        for _ in range(2):
            stage.tell(type="deleting")
        stage.settled()
        stage.recorder.say("captures_done")
        stage.recorder.say("opened", id=incident)
        assert stage.engine.wait_gone(20) == []
        record = stage.seal(incident)
        assert record["failures"][0]["container"] == names[state["ranks"][0]["container"]]
        assert [entry["event"] for entry in record["timeline"]].count("pod deleted") == 1
        told = stage.heard("web", "event", name="incident")
        assert {key: told[key] for key in ("incident", "rank", "cause", "ended", "action", "container")} == {
            "incident": incident, "rank": "TP1", "cause": "sigkill", "ended": "signal 9", "action": "kill",
            "container": "engine",
        }  # fmt: skip
        assert stage.heard("web", "event", name="terminated")["incident"] == incident
        closed = stage.heard("web", "event", name="closed")
        assert (closed["incident"], closed["sealed"]) == (incident, True)


def test_a_deletion_with_no_incident_is_a_drain(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.tell(type="deleting")
        stage.heard("web", "state", state="draining")
        stage.engine.kill("TP1")
        for process in stage.engine.processes:
            kill_identity(process.identity)
        assert stage.engine.wait_gone(20) == []
        stage.engine.collect()
        stage.heard("web", "state", state="restarting")
        assert stage.incidents() == []
        assert stage.counted("rank_death") == 0


@pytest.mark.parametrize("after_kill", ["exit", "none", "delete-pod"])
def test_it_ends_only_where_the_settings_say_so(tmp_path: Path, after_kill: str) -> None:
    """And only while nothing is left to do: not between a decision and its kill, nor before the record is sealed."""
    with staged(tmp_path, after_kill=after_kill, after_kill_exit_code=87) as stage:
        stage.engine.kill("TP1")
        incident, _ = decision(stage)
        stage.tell(type="after_kill", incident=incident)
        stage.settled()
        assert identity_of(stage.guard_pid)
        stage.recorder.say("opened", id=incident)
        stage.recorder.say("captures_done")
        assert stage.engine.wait_gone(20) == []
        stage.heard("recorded", "seal")
        stage.tell(type="after_kill", incident=incident)
        stage.settled()
        assert [m for m in stage.control if m["type"] == "finished"] == []
        stage.seal(incident)
        stage.tell(type="after_kill", incident=incident)
        if after_kill != "exit":
            stage.settled()
            assert [m for m in stage.control if m["type"] == "finished"] == []
            return
        os.waitid(os.P_PID, stage.guard_pid, os.WEXITED | os.WNOWAIT)
        while stage._hear(0.0):
            pass
        assert [m["exit_status"] for m in stage.control if m["type"] == "finished"] == [87]
