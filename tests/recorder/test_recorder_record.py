"""The record and its sentence: pure functions of what the guard knows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.model import (
    SCHEMA,
    Action,
    Artifact,
    ArtifactStatus,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Identity,
    Incident,
    Member,
    Outcome,
    PodInfo,
    Reason,
    Role,
    Survivor,
    Termination,
    TimelineEntry,
    incident_from,
)
from sidecar.recorder.record import build, encode
from sidecar.recorder.summary import summary

WALL = 1_795_219_199.123456  # 2026-11-20T23:59:59.123456Z
AT = 1000.0
SIGKILL = ExitStatus(signal=9)
GONE = Termination(Outcome.REAPED, seconds=0.05)
KILLED = (
    TimelineEntry(AT, WALL, "died", "TP3"),
    TimelineEntry(AT + 0.004, WALL + 0.004, "detected"),
    TimelineEntry(AT + 0.212, WALL + 0.212, "killed", "9 processes, 1 groups"),
)


def failure(
    rank: str = "TP3",
    role: Role = Role.SCHEDULER,
    status: ExitStatus = SIGKILL,
    cause: Cause = Cause.SIGKILL,
    after: float = 0.0,
) -> Failure:
    return Failure(role, rank, 4242, 777, status, cause, AT + after, WALL + after, "pidfd")


def rank(n: int, role: str = "worker") -> Member:
    return Member(Identity(100 + n, 5), 1, 1, 1, "python", role, f"TP{n}")


def incident(reason: Reason = Reason.RANK_DIED, action: Action = Action.KILL, **changes: Any) -> Incident:
    because = changes.pop("because", ())
    content: dict[str, Any] = {
        "id": "20261120T235959.123Z-rankdied-tp3",
        "engine": "sglang",
        "pod": PodInfo("prod", "llama-0", "uid-1", "node-a"),
        "failures": (failure(),),
        "timeline": KILLED,
        "termination": GONE,
    }
    return Incident(
        reason=reason, decision=Decision(reason, action, ("pyspy",), 3.0, because), **{**content, **changes}
    )


SAID = [
    (
        incident(notes=("state: serving",)),
        "TP3 was killed by signal 9 (SIGKILL) while serving; the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(failures=(failure(cause=Cause.OOM_KILLED),)),
        "TP3 was killed by the kernel for memory; the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(failures=(failure(status=ExitStatus(signal=11, core_dumped=True), cause=Cause.SIGSEGV),)),
        "TP3 was killed by signal 11 (SIGSEGV), and dumped core; the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(failures=(failure(status=ExitStatus(signal=61), cause=Cause.OTHER_SIGNAL),), timeline=()),
        "TP3 was killed by signal 61; the engine was killed and is gone.",
    ),
    (
        incident(failures=(failure(status=ExitStatus(why_unknown="the kernel does not tell"), cause=Cause.UNKNOWN),)),
        "TP3 died, of what is not known (the kernel does not tell); the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(
            Reason.RANK_MISSING, failures=(), timeline=KILLED[1:], because=("7 of 8 ranks (--tp-size 8) after 600 s",)
        ),
        "Only 7 of 8 ranks came up within 600 s; the engine was killed 208 ms later and is gone.",
    ),
    (
        incident(
            Reason.ENGINE_EXITED,
            failures=(failure("server", Role.SERVER, ExitStatus(code=1), Cause.EXIT_NONZERO),),
            members=(*(rank(n) for n in range(4)), Member(Identity(99, 5), 1, 1, 1, "python", "server", "server")),
        ),
        "The server process exited with status 1 and left 4 ranks behind;"
        " the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(
            failures=(
                failure("server", Role.SERVER, ExitStatus(code=0), Cause.UNKNOWN, after=1.6),
                failure("TP1", Role.WORKER),
            ),
            termination=Termination(Outcome.ALREADY_GONE),
        ),
        "TP1 was killed by signal 9 (SIGKILL), and the server process then exited with status 0;"
        " the engine had gone by itself.",
    ),
    (
        incident(failures=(failure(after=0.1), failure("TP0"), failure("TP1", after=0.2))),
        "TP0 was killed by signal 9 (SIGKILL); 2 more ranks followed; the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(
            failures=(failure("engine_core", Role.ENGINE_CORE), failure("detokenizer", Role.DETOKENIZER, after=0.1))
        ),
        "The engine core was killed by signal 9 (SIGKILL); the detokenizer followed;"
        " the engine was killed 212 ms later and is gone.",
    ),
    (
        incident(
            termination=Termination(
                Outcome.STILL_ALIVE, survivors=(Survivor(12, 5, "TP1", "python", "D", "nfs_wait"),), seconds=60.2
            )
        ),
        "TP3 was killed by signal 9 (SIGKILL); the engine was killed 212 ms later,"
        " but TP1 (pid 12, state D in nfs_wait) is still there after 60 s: the node needs a drain.",
    ),
    (
        incident(termination=Termination(Outcome.EXITED_UNREAPED, seconds=1.0)),
        "TP3 was killed by signal 9 (SIGKILL); the engine was killed 212 ms later and is dead,"
        " though its parent has not collected it.",
    ),
    (
        incident(termination=None),
        "TP3 was killed by signal 9 (SIGKILL); how the killing of the engine ended is not known.",
    ),
    (
        incident(action=Action.CAPTURE, termination=None),
        "TP3 was killed by signal 9 (SIGKILL); the engine was captured and left running.",
    ),
    (incident(action=Action.OBSERVE, termination=None), "TP3 was killed by signal 9 (SIGKILL); it was only recorded."),
    (
        incident(Reason.LIVENESS_FAILED, failures=(), timeline=(), because=("3 probes without an answer",)),
        "The engine failed its liveness check (3 probes without an answer); the engine was killed and is gone.",
    ),
]


@pytest.mark.parametrize(("what", "said"), SAID, ids=[said[:40] for _, said in SAID])
def test_the_sentence(what: Incident, said: str) -> None:
    assert summary(what, sealed=True) == said


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("outcome", [None, *Outcome])
def test_there_is_a_sentence_for_everything(reason: Reason, action: Action, outcome: Outcome | None) -> None:
    """Whatever is known or not: one sentence, ending as sentences do."""
    termination = Termination(outcome) if outcome else None
    for failures in ((), (failure(),)):
        for sealed in (True, False):
            said = summary(incident(reason, action, failures=failures, termination=termination), sealed)
            assert said[0].isupper()
            assert said.endswith(".")
            assert "None" not in said


def test_the_keys_are_the_contracts() -> None:
    artifact = Artifact("pyspy_text", "TP0", ArtifactStatus.CAPTURED, "pyspy/TP0.txt", 9, "ab", 0.05)
    record = build(incident(), [artifact], sealed=True)
    contract = {
        "schema", "id", "reason", "summary", "pod", "group", "engine", "failures", "decision", "timeline", "artifacts",
        "termination", "verdict", "sealed",
    }  # fmt: skip
    assert contract <= set(record)
    assert record["schema"] == SCHEMA == "rankguard.dev/incident/v1"
    assert record["pod"] == {"namespace": "prod", "name": "llama-0", "uid": "uid-1", "node": "node-a"}
    (first,) = record["failures"]
    assert {"role", "rank", "pid", "exit_code", "signal", "cause", "observed_at", "first"} <= set(first)
    assert first["observed_at"] == "2026-11-20T23:59:59.123456Z"
    assert (first["exit_code"], first["signal"], first["cause"], first["first"]) == (None, 9, "sigkill", True)
    assert record["artifacts"] == [
        {
            "kind": "pyspy_text", "rank": "TP0", "path": "pyspy/TP0.txt", "bytes": 9, "sha256": "ab",
            "status": "captured", "seconds": 0.05, "detail": "",
        }
    ]  # fmt: skip
    assert {"outcome", "killed", "survivors", "seconds"} <= set(record["termination"])
    assert {"at", "event", "detail"} <= set(record["timeline"][0])
    assert [row["ms"] for row in record["timeline"]] == [0.0, 4.0, 212.0]
    assert json.loads(encode(record)) == record


def test_the_guards_incident_can_be_made_again_of_the_record() -> None:
    what = incident(members=(rank(1),), notes=("state: serving",))
    assert incident_from(json.loads(encode(build(what, [])))["guard"]) == what


def test_the_first_failure_by_time_is_first_in_whatever_order_they_came() -> None:
    failures = build(incident(failures=(failure("TP1", after=0.5), failure("TP0"))), [])["failures"]
    assert [(row["rank"], row["first"]) for row in failures] == [("TP0", True), ("TP1", False)]


def test_an_earlier_lifes_timeline_is_merged_without_doubles() -> None:
    what = incident()
    earlier = build(what, [], own=[TimelineEntry(AT + 0.1, WALL + 0.1, "guard lost")])["timeline"]
    later = dataclasses.replace(what, timeline=(*KILLED, TimelineEntry(AT + 5, WALL + 5, "guard restarted")))
    events = [row["event"] for row in build(later, [], earlier=earlier)["timeline"]]
    assert events == ["died", "detected", "guard lost", "killed", "guard restarted"]


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_string_gives_valid_json_in_valid_utf8(one: str, other: str) -> None:
    """Surrogates included: they come out of process names that are no UTF-8."""
    what = incident(engine=one, timeline=(TimelineEntry(AT, WALL, "died", other),), notes=(one + "\ud800",))
    assert json.loads(encode(build(what, [])).decode("utf-8"))["id"] == what.id
