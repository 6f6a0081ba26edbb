"""What the guard makes of the web's word that a living engine is stuck or dead, and of a stop hook."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from guard_stage import BUSY, DEAD, STUCK, Stage, staged
from sidecar_process import running, state_of

from sidecar.messages import Message
from sidecar.model import Action, Identity
from sidecar.system import clock

CAPTURE = {"on_liveness_failure": Action.CAPTURE}
OBSERVE = {"on_liveness_failure": Action.OBSERVE}


def begun(stage: Stage, after: int = 0) -> tuple[str, Message]:
    """The id of an incident that a recorder was given, and with which words."""
    message = stage.heard("recorded", "begin", after)
    return message["incident"]["id"], message


def captured(stage: Stage, incident: str) -> None:
    """The recorder says that it is done."""
    stage.recorder.say("opened", id=incident)
    stage.recorder.say("captures_done")


def runs_on(stage: Stage) -> None:
    """Every rank is there and none of them is stopped."""
    states = [state_of(identity) for identity in stage.identities()]
    assert all(state not in (None, "Z", "X", "T", "t") for state in states), states


def gone(stage: Stage) -> None:
    assert stage.engine.wait_gone(20) == [], stage.log()


def events(incident: Message) -> list[str]:
    return [entry["event"] for entry in incident["timeline"]]


@pytest.mark.parametrize(
    ("verdict", "reason", "probe"), [(STUCK, "EngineStalled", "progress"), (DEAD, "LivenessFailed", "http")]
)
def test_captured_while_it_runs_then_killed(tmp_path: Path, verdict: Any, reason: str, probe: str) -> None:
    """The switch is armed, and anything stopped, only when the captures are over; a repeated verdict adds nothing."""
    with staged(tmp_path) as stage:
        for _ in range(3):
            stage.verdict(verdict)
        incident, begin = begun(stage)
        assert (begin["frozen"], begin["twice"], begin["resume"]) == (False, True, False)
        assert begin["seconds"] > 50
        assert begin["incident"]["reason"] == reason
        stage.settled()
        runs_on(stage)
        assert [m for m in stage.control if m["type"] == "arm"] == []
        captured(stage, incident)
        gone(stage)
        stage.verdict(verdict)  # of a web that does not know yet
        last = stage.seal(incident)
        stage.settled()
        assert stage.incidents() == [incident]
        order = [event for event in events(last) if event in ("detected", "opened", "frozen", "killed", "gone")]
        assert order == ["detected", "opened", "frozen", "killed", "gone"]
        assert last["termination"]["outcome"] in ("reaped", "exited_unreaped")
        assert last["verdict"]["because"] == list(verdict.because)
        assert last["failures"] == []  # our own kills are no deaths
        counts = [stage.counted(name) for name in ("incident", "liveness_failure", "terminated", "rank_death")]
        assert counts == [1, 1, 1, 0]
        assert stage.heard("web", "event", name="liveness_failure")["probe"] == probe


def test_the_deadline_ends_the_captures(tmp_path: Path) -> None:
    """A recorder that never says that it is done does not hold up the kill."""
    with staged(tmp_path, liveness_deadline=0.5) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        gone(stage)
        assert "deadline" in events(stage.seal(incident))


@pytest.mark.parametrize(
    ("phase", "action"),
    [("opened", Action.OBSERVE)]
    + [(phase, action) for phase in ("opened", "capturing", "sealing") for action in (Action.KILL, Action.CAPTURE)],
)
def test_a_new_guard_takes_it_up(tmp_path: Path, phase: str, action: Action) -> None:
    """Whenever the guard is lost: one incident, counted once, the same end. What is not to be killed runs on."""
    with staged(tmp_path, on_liveness_failure=action) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        if phase == "sealing":
            captured(stage, incident)
        journal = stage.heard("control", "journal", phase=phase)
        stage.kill_guard()
        before = len(stage.recorded)
        stage.start(journal)
        again, begin = begun(stage, before)
        assert (again, begin["resume"]) == (incident, True)
        stage.verdict(STUCK)  # the web says it again to a new guard
        if begin["seconds"]:
            assert action is not Action.OBSERVE
            assert not begin["frozen"]
            runs_on(stage)
            captured(stage, incident)
        if action is Action.KILL:
            gone(stage)
        last = stage.seal(incident)
        stage.verdict(STUCK)
        stage.settled()
        assert "guard restarted" in events(last)
        assert stage.incidents() == [incident]
        assert stage.counted("liveness_failure") == 1
        assert stage.counted("incident") == 1
        if action is Action.KILL:
            assert last["termination"] is not None
            assert stage.counted("terminated") == 1
            assert stage.counted("rank_death") == 0
        else:
            assert last["termination"] is None
            runs_on(stage)


def test_lost_between_the_kill_and_the_record(tmp_path: Path) -> None:
    """The journal says `reaping`: the next guard counts no death of what was killed, and says how it ended."""
    with staged(tmp_path) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        captured(stage, incident)
        gone(stage)
        journal = stage.heard("control", "journal", phase="reaping")
        stage.kill_guard()
        before = len(stage.recorded)
        stage.start(journal)
        assert begun(stage, before)[0] == incident
        last = stage.seal(incident)
        stage.settled()
        assert last["termination"] is not None
        assert last["failures"] == []
        assert stage.counted("rank_death") == 0
        assert stage.incidents() == [incident]


def test_lost_while_it_kills(tmp_path: Path) -> None:
    """The switch was armed after the captures; it kills what the guard had begun to kill, and the engine is gone."""
    with staged(tmp_path) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        captured(stage, incident)
        stage.heard("control", "arm")
        stage.kill_guard()
        gone(stage)
        before = len(stage.recorded)
        stage.start()
        assert begun(stage, before)[0] == incident
        assert stage.seal(incident)["termination"] is not None
        stage.settled()
        assert stage.counted("rank_death") == 0
        assert stage.incidents() == [incident]


def test_verdicts_that_are_about_nobody(tmp_path: Path) -> None:
    """Of a former generation (the same pid, another process), of no process, and words that make no sense."""
    with staged(tmp_path) as stage:
        former = [Identity(identity.pid, identity.start - 1) for identity in stage.identities()]
        stage.verdict(STUCK, former)
        stage.verdict(STUCK, [])
        stage.verdict(STUCK, [Identity(1, 1)])
        for broken in ({}, {"verdict": "stuck"}, {"verdict": {"liveness": "bored"}}, {"verdict": None, "ranks": [7]}):
            stage.tell(type="liveness", **broken)
        stage.settled()
        assert stage.incidents() == []
        stage.verdict(STUCK, [*former, stage.identities()[0]])
        assert begun(stage)[1]["incident"]["reason"] == "EngineStalled"


def test_recovered_and_stuck_again(tmp_path: Path) -> None:
    """Let run after the capture: repeats are the same incident until the engine has moved; then it is another one."""
    with staged(tmp_path, **CAPTURE) as stage:
        stage.verdict(STUCK)
        first, _ = begun(stage)
        captured(stage, first)
        stage.seal(first)
        stage.new_recorder()
        stage.verdict(STUCK)
        stage.settled()
        assert stage.incidents() == [first]
        runs_on(stage)
        before = len(stage.recorded)
        stage.verdict(BUSY)
        stage.verdict(STUCK)
        second, _ = begun(stage, before)
        captured(stage, second)
        stage.seal(second)
        assert stage.incidents() == [first, second]
        assert stage.counted("liveness_failure") == 2


@pytest.mark.parametrize("action", [Action.CAPTURE, Action.OBSERVE])
def test_livez_fails_past_the_deadline_until_it_moves(tmp_path: Path, action: Action) -> None:
    with staged(tmp_path, liveness_deadline=0.5, on_liveness_failure=action) as stage:
        stage.verdict(STUCK)
        begun(stage)
        stage.heard("control", "livez", failed=True)
        stage.heard("web", "state", failed=True)
        runs_on(stage)
        after = len(stage.web)
        stage.verdict(BUSY)
        stage.heard("control", "livez", failed=False)
        stage.heard("web", "state", after, failed=False)


def test_livez_of_an_engine_that_was_killed(tmp_path: Path) -> None:
    """It is not there any more, so it is not stuck: no livez message at all, however late the record."""
    with staged(tmp_path, liveness_deadline=0.2) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        gone(stage)
        stage.seal(incident)
        stage.settled()
        assert [m for m in stage.control if m["type"] == "livez"] == []


def test_livez_again_from_a_new_guard(tmp_path: Path) -> None:
    """A guard that took the incident up still says so when the deadline has passed."""
    with staged(tmp_path, liveness_deadline=1.0, **CAPTURE) as stage:
        stage.verdict(STUCK)
        begun(stage)
        stage.kill_guard()
        before = len(stage.control)
        stage.start()
        begun(stage, 1)
        stage.verdict(STUCK)
        stage.heard("control", "livez", before, failed=True)


def test_a_manual_capture_is_open_already(tmp_path: Path) -> None:
    """The verdict waits for it: said again afterwards, it makes an incident of its own."""
    with staged(tmp_path) as stage:
        stage.tell(type="manual")
        manual, begin = begun(stage)
        assert (begin["frozen"], begin["incident"]["reason"]) == (True, "Manual")
        stage.verdict(STUCK)
        stage.settled()
        assert stage.incidents() == [manual]
        captured(stage, manual)
        stage.seal(manual)
        stage.new_recorder()
        stage.verdict(STUCK)
        stalled, begin = begun(stage, 1 + stage.recorded.index(begin))
        assert begin["incident"]["reason"] == "EngineStalled"
        captured(stage, stalled)
        gone(stage)
        stage.seal(stalled)
        assert stage.incidents() == [manual, stalled]


def test_a_manual_capture_during_a_hang(tmp_path: Path) -> None:
    """Refused while the hang is captured; taken once it is over and the engine was let run."""
    with staged(tmp_path, **CAPTURE) as stage:
        stage.verdict(STUCK)
        stalled, _ = begun(stage)
        stage.tell(type="manual")
        stage.settled()
        assert stage.events("manual capture refused")
        runs_on(stage)
        captured(stage, stalled)
        stage.seal(stalled)
        stage.new_recorder()
        before = len(stage.recorded)
        stage.tell(type="manual")
        manual, begin = begun(stage, before)
        assert begin["frozen"]
        captured(stage, manual)
        stage.seal(manual)
        runs_on(stage)
        assert stage.incidents() == [stalled, manual]


@pytest.mark.parametrize("lost", [False, True])
def test_a_hook_while_it_is_captured(tmp_path: Path, lost: bool) -> None:
    """A health check's hook waits for the incident and makes none; a deletion is answered at once. `lost`: the guard,
    in between; the web asks the next one.
    """
    with staged(tmp_path) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        stage.hook(1)
        stage.hook(2)
        stage.hook(3, deletion=True, group="g")
        assert "nothing to capture" in stage.heard("web", "hook_done", hook=3)["detail"]
        stage.settled()
        assert [m["hook"] for m in stage.web if m["type"] == "hook_done"] == [3]
        runs_on(stage)
        if lost:
            stage.kill_guard()
            before = len(stage.recorded)
            stage.start()
            begun(stage, before)
            stage.hook(1)
            stage.hook(2)
            stage.settled()
        captured(stage, incident)
        gone(stage)
        stage.seal(incident)
        for number in (1, 2):
            assert stage.heard("web", "hook_done", hook=number)["detail"] == f"captured: {incident}"
        assert stage.incidents() == [incident]


@pytest.mark.parametrize("deletion", [False, True])
def test_a_hook_that_was_meant_for_the_engine_before(tmp_path: Path, deletion: bool) -> None:
    """The web stood still, and finds the call when its engine has been replaced: the new one is left in peace, and its
    death is a failure. A call that this engine can have been meant by is taken, however late.
    """
    with staged(tmp_path) as stage:
        born = min(clock.began(identity.start) for identity in stage.identities())
        late = {"type": "hook", "deletion": deletion, "certain": False, "failing": False, "running": True, "group": ""}
        stage.tell(**late, hook=1, called_at=born - 5.0)
        assert "is gone" in stage.heard("web", "hook_done", hook=1)["detail"]
        stage.settled()
        assert stage.incidents() == []
        assert [m for m in stage.web if m["type"] == "state" and m["state"] == "draining"] == []
        if deletion:
            stage.tell(**late | {"certain": True}, hook=2, called_at=born - 5.0)
            assert "deleted" in stage.heard("web", "hook_done", hook=2)["detail"]
            return
        stage.tell(**late, hook=2, called_at=clock.monotonic())
        assert begun(stage)[1]["incident"]["reason"] == "PreStop"


@pytest.mark.parametrize("action", [Action.KILL, Action.OBSERVE])
def test_a_hook_in_peace(tmp_path: Path, action: Action) -> None:
    """One incident however often it is called, and no kill; then the engine's end is no failure, nor is its silence."""
    with staged(tmp_path, on_liveness_failure=action, exit_grace=0.2) as stage:
        stage.hook(1)
        incident, begin = begun(stage)
        assert (begin["incident"]["reason"], begin["frozen"]) == ("PreStop", False)
        assert bool(begin["seconds"]) is (action is Action.KILL)
        stage.hook(2)
        stage.verdict(STUCK)
        stage.settled()
        runs_on(stage)
        if action is Action.KILL:
            captured(stage, incident)
        last = stage.seal(incident)
        assert (last["termination"], last["failures"]) == (None, [])
        for number in (1, 2):
            assert stage.heard("web", "hook_done", hook=number)["detail"] == f"captured: {incident}"
        stage.verdict(STUCK)
        stage.hook(3)
        assert stage.heard("web", "hook_done", hook=3)["detail"] == f"captured before: {incident}"
        runs_on(stage)
        for rank in stage.engine.ranks:
            stage.engine.kill(rank.label)
        stage.engine.kill("server")
        stage.until(lambda: not any(running(identity) for identity in stage.identities()), "the engine ended")
        stage.engine.collect()
        stage.heard("web", "state", state="restarting")
        assert stage.incidents() == [incident]


def test_a_peer_of_a_group_is_deleted(tmp_path: Path) -> None:
    """With requests at work: a short record of stacks, `PeerFailed`, nothing killed, nothing counted as a death."""
    with staged(tmp_path) as stage:
        stage.hook(1, deletion=True, running=True, group="llm-0")
        incident, begin = begun(stage)
        told = begin["incident"]
        assert (told["reason"], told["group"], begin["twice"]) == ("PeerFailed", "llm-0", False)
        assert told["decision"]["captures"] == ["process", "pyspy", "metrics"]
        assert 0 < begin["seconds"] <= 3
        captured(stage, incident)
        stage.seal(incident)
        assert stage.heard("web", "hook_done", hook=1)["detail"] == f"captured: {incident}"
        runs_on(stage)
        assert stage.counted("rank_death") == stage.counted("liveness_failure") == 0


def test_a_death_while_it_is_captured(tmp_path: Path) -> None:
    """It was suspected and is now certain: the same incident, with the failure in it, and no more time than it has."""
    with staged(tmp_path, liveness_deadline=600.0, death_deadline=0.3) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        stage.engine.kill("TP1")
        gone(stage)  # though no recorder ever says that it is done
        last = stage.seal(incident)
        assert [(f["rank"], f["cause"]) for f in last["failures"]] == [("TP1", "sigkill")]
        assert last["reason"] == "EngineStalled"
        assert stage.incidents() == [incident]
        assert stage.counted("rank_death") == 1


def test_a_death_while_what_is_let_run_is_captured(tmp_path: Path) -> None:
    """A death asks for more than the capture of a hang: an incident of its own, and the kill."""
    with staged(tmp_path, death_deadline=0.3, **CAPTURE) as stage:
        stage.verdict(STUCK)
        stalled, _ = begun(stage)
        stage.engine.kill("TP1")
        gone(stage)
        stage.until(lambda: stage.counted("terminated"), "word of the kill")
        first, second = stage.incidents()
        assert (first, "rankdied" in second) == (stalled, True)
        assert stage.counted("rank_death") == 1


@pytest.mark.parametrize("comes", [True, False])
def test_the_recorder_is_lost(tmp_path: Path, comes: bool) -> None:
    """The next one goes on with the running engine; where none comes, the kill does not wait."""
    with staged(tmp_path) as stage:
        stage.verdict(STUCK)
        incident, _ = begun(stage)
        stage.lose_recorder()
        if comes:
            before = len(stage.recorded)
            stage.new_recorder()
            again, begin = begun(stage, before)
            assert (again, begin["resume"], begin["frozen"]) == (incident, True, False)
            captured(stage, incident)
        gone(stage)
        if not comes:
            before = len(stage.recorded)
            stage.new_recorder()
            begun(stage, before)
        assert "recorder lost" in events(stage.seal(incident))


def test_the_record_waits_for_a_recorder_by_itself(tmp_path: Path) -> None:
    """Two are lost while evidence is taken, and the kill waits for no third; that wait's end is not the record's, which
    one that comes some seconds later still writes.
    """
    with staged(tmp_path) as stage:
        stage.lose_recorder()
        stage.verdict(STUCK)
        opened = time.monotonic()
        before = len(stage.recorded)
        stage.new_recorder()
        incident, _ = begun(stage, before)
        # So late that the first wait ends in the kill, and the second when all is gone and the record is to be sealed.
        stage.until(lambda: time.monotonic() > opened + 0.6, "more than half of the first wait")
        stage.lose_recorder()
        lost = time.monotonic()
        gone(stage)
        stage.until(lambda: time.monotonic() > lost + 1.5, "each wait for captures is over")
        before = len(stage.recorded)
        stage.new_recorder()
        begun(stage, before)
        stage.seal(incident)
        assert not [message for message in stage.web if message.get("name") == "lost"]
        assert stage.incidents() == [incident]
