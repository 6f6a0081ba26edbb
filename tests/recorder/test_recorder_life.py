"""The life of an incident between guard and recorder: note, seal, a guard that is lost, a recorder that is killed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest
from recorder_rig import ID, Ranks, Rig, Start, artifacts, identity_of, incident, rank_process, state_of, wait_for

from sidecar.errors import PeerGone
from sidecar.model import (
    Action,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Incident,
    Outcome,
    Reason,
    Role,
    Survivor,
    Termination,
    TimelineEntry,
    incident_from,
)

HANGING_SPY = "#!/bin/sh\nexec sleep 1000\n"


def step(event: str, detail: str = "") -> TimelineEntry:
    return TimelineEntry(time.monotonic(), time.time(), event, detail)


def kept_open(start: Start, folder: Path | None = None, name: str = ID) -> Incident:
    """Leave an incident open, as a recorder that was killed does."""
    rig = start(folder)
    what = incident(captures=(), id=name)
    rig.begin(what, [])
    rig.until("opened")
    rig.process.kill()
    rig.process.wait()
    return what


def test_a_note_reaches_the_volume_soon_and_the_latest_wins(start: Start) -> None:
    rig = start()
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    second = Failure(
        Role.WORKER, "TP1", 4243, 778, ExitStatus(code=1), Cause.EXIT_NONZERO, time.monotonic(), time.time()
    )
    for n in range(50):
        what = dataclasses.replace(
            what, failures=(*what.failures[:1], second), timeline=(*what.timeline, step(f"n{n}"))
        )
        rig.say("note", what)
    wait_for(lambda: rig.record()["timeline"][-1]["event"] == "n49", 3)
    record = rig.record()
    assert [failure["first"] for failure in record["failures"]] == [True, False]
    assert record["sealed"] is False
    assert rig.process.poll() is None
    rig.seal(what)


def test_the_sealed_record_holds_the_last_word(start: Start) -> None:
    rig = start()
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    survivor = Survivor(4250, 12, "TP1", "python", "D", "wait_on_page_bit")
    final = dataclasses.replace(
        what,
        termination=Termination(Outcome.STILL_ALIVE, (), (survivor,), 60.0),
        timeline=(*what.timeline, step("gone")),
    )
    sealed = rig.seal(final)[-1]
    assert sealed["id"] == ID
    assert sealed["dump_bytes"] > 0
    assert sealed["free_bytes"] > 0
    record = rig.record()
    assert record["sealed"] is True
    assert record["termination"]["survivors"] == [dataclasses.asdict(survivor)]
    assert "the node needs a drain" in record["summary"]
    with pytest.raises(PeerGone):
        rig.receive()


def test_a_seal_cuts_captures_short_that_are_still_under_way(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    python = spy(tmp_path, HANGING_SPY)
    identity = ranks.start()
    ranks.stop(identity)
    rig = start(python=python)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], seconds=60.0)
    while rig.receive()["type"] != "captured":
        pass
    began = time.monotonic()
    rig.seal(what)
    assert time.monotonic() - began < 2.0
    found = artifacts(rig.record())
    assert found["process", "TP0"]["status"] == "captured"
    assert found["pyspy_json", "TP0"]["status"] == "timed_out"


def test_a_guard_lost_in_the_middle_leaves_a_readable_open_incident(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """Within two seconds all that is known is written, unsealed, and the recorder has left; the next one finds it."""
    python = spy(tmp_path, HANGING_SPY)
    identity = ranks.start()
    ranks.stop(identity)
    rig = start(python=python)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], seconds=60.0)
    while rig.receive()["type"] != "captured":
        pass
    began = time.monotonic()
    rig.channel.close()
    rig.process.wait(5)
    assert time.monotonic() - began < 2.5
    record = rig.record()
    assert record["sealed"] is False
    assert [row["event"] for row in record["timeline"]][-2:] == ["guard lost", "captures done"]
    found = artifacts(record)
    assert found["process", "TP0"]["status"] == "captured"
    assert json.loads(rig.text("process/TP0.json"))["complete"] is True
    assert found["pyspy_json", "TP0"]["status"] == "timed_out"
    unfinished = start().until("standing_by")[-1]["unfinished"]
    assert [incident_from(left) for left in unfinished] == [what]


def test_a_guard_that_leaves_a_recorder_standing_by_takes_it_along(start: Start) -> None:
    rig = start()
    rig.until("standing_by")
    rig.channel.close()
    assert rig.process.wait(2) == 0


def test_a_recorder_killed_in_the_middle_is_resumed_by_the_next(start: Start, ranks: Ranks) -> None:
    """What the first one wrote stays, artifacts and timeline, nothing twice; what it lacked is added."""
    first_rank, second_rank = ranks.start(), ranks.start()
    rig = start()
    what = incident(timeline=(step("died", "TP3"), step("frozen", "2 processes")))
    rig.begin(what, [rank_process(first_rank, "TP0")], frozen=False)
    rig.until("captures_done")
    wait_for(lambda: len(rig.record()["artifacts"]) == 3 and all(a["sha256"] for a in rig.record()["artifacts"]))
    before = rig.record()
    rig.process.kill()
    rig.process.wait()

    again = start()
    left = again.until("standing_by")[-1]["unfinished"]
    assert [incident_from(data).id for data in left] == [ID]
    resumed = dataclasses.replace(incident_from(left[0]), timeline=(*what.timeline, step("guard restarted")))
    watched = [rank_process(first_rank, "TP0"), rank_process(second_rank, "TP1")]
    again.begin(resumed, watched, frozen=False, resume=True)
    messages = again.until("captures_done")
    assert {m["rank"] for m in messages if m["type"] == "captured"} == {"TP1"}
    again.seal(resumed)
    record = again.record()
    found = artifacts(record)
    assert len(found) == 6
    for artifact in before["artifacts"]:
        assert found[artifact["kind"], artifact["rank"]] == artifact
    events = [row["event"] for row in record["timeline"]]
    assert events == ["died", "frozen", "captures done", "guard restarted", "captures done"]
    assert record["sealed"] is True


def test_files_that_a_killed_recorder_had_no_time_to_list_are_not_lost(start: Start, tmp_path: Path) -> None:
    what = kept_open(start)
    folder = tmp_path / "dumps" / ID
    (folder / "process").mkdir()
    (folder / "process" / "TP0.json").write_text('{"pid": 1}')
    (folder / "process" / "weird name.json").write_text("{}")
    rig = start()
    rig.begin(what, [], resume=True)
    rig.until("opened")
    rig.seal(what)
    (artifact,) = rig.record()["artifacts"]
    assert (artifact["kind"], artifact["rank"], artifact["status"]) == ("process", "TP0", "partial")
    assert (artifact["path"], artifact["bytes"]) == ("process/TP0.json", 10)


def test_a_damaged_record_does_not_stop_the_resumption(start: Start, tmp_path: Path) -> None:
    what = kept_open(start)
    (tmp_path / "dumps" / ID / "incident.json").write_text('{"schema": "rankg')
    rig = start()
    assert rig.until("standing_by")[-1]["unfinished"] == [], "nothing can be made of it"
    rig.begin(what, [], resume=True)
    rig.until("opened")
    rig.seal(what)
    assert rig.record()["sealed"] is True


def test_resumed_captures_wait_for_no_volume(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """The folder cannot be opened (a file stands in its way), and the stacks are taken all the same."""
    dumps = tmp_path / "dumps"
    dumps.write_text("not a folder")
    identity = ranks.start()
    rig = start(dumps)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False, resume=True)
    messages = rig.until("captures_done", 3)
    assert {m["status"] for m in messages if m["type"] == "captured"} == {"captured"}


def test_an_incident_that_another_recorder_writes_is_not_unfinished(start: Start) -> None:
    """Until that recorder dies: then the one standing by says so, unasked."""
    writing = start()
    what = incident(captures=())
    writing.begin(what, [])
    writing.until("opened")
    standing = start()
    assert standing.until("standing_by")[-1]["unfinished"] == []
    writing.process.kill()
    writing.process.wait()
    assert [left["id"] for left in standing.until("standing_by", 15)[-1]["unfinished"]] == [ID]


def test_a_sealed_incident_is_not_unfinished_even_if_its_lock_was_left(start: Start, tmp_path: Path) -> None:
    rig = start()
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    rig.seal(what)
    lock = tmp_path / "dumps" / ID / ".lock"
    lock.write_text("")
    assert start().until("standing_by")[-1]["unfinished"] == []
    assert not lock.exists()


def test_a_recorder_that_hangs_on_to_the_lock_does_not_stop_the_next(start: Start, tmp_path: Path) -> None:
    """It may hang for good with the incident half written; the guard's next recorder must be able to finish it."""
    what = kept_open(start)
    with (tmp_path / "dumps" / ID / ".lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rig = start()
        rig.begin(what, [], resume=True)
        rig.until("opened", 2)
        rig.seal(what)
    assert rig.record()["sealed"] is True


def test_retention_removes_repeats_first_and_never_the_one_just_sealed(start: Start, tmp_path: Path) -> None:
    names = [f"2026112{n}T000000.000Z-rankdied-tp0" for n in range(4)]
    for name in names:
        rig = start(dump_max_incidents=2)
        what = incident(captures=(), id=name)
        rig.begin(what, [])
        rig.until("opened")
        rig.seal(what)
    kept = sorted(path.name for path in (tmp_path / "dumps").iterdir() if path.is_dir())
    assert kept == [names[0], names[-1]]
    rig = start(dump_max_incidents=1)
    what = incident(captures=(), id="20200101T000000.000Z-manual")
    rig.begin(what, [])
    rig.until("opened")
    rig.seal(what)
    assert rig.record("20200101T000000.000Z-manual")["sealed"] is True


@pytest.mark.parametrize(
    "name",
    ["../escape", "20261120T235959.123Z-rankdied/../../x", "", ".", "20261120T235959.123Z-x\n", "2026-x", "a" * 300],
)
def test_an_id_of_no_good_shape_is_never_a_path(start: Start, tmp_path: Path, name: str) -> None:
    rig = start()
    rig.until("standing_by")
    before = sorted(tmp_path.rglob("*"))
    what = incident(captures=(), id=name)
    rig.begin(what, [])
    messages = rig.until("lost")
    assert messages[-1]["what"] == "incident folder"
    assert sorted(tmp_path.rglob("*")) == before
    rig.process.kill()


def test_a_symbolic_link_in_the_incidents_place_is_not_followed(start: Start, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / ID).symlink_to(outside)
    rig = start()
    rig.begin(incident(captures=()), [])
    assert rig.until("lost")[-1]["what"] == "incident folder"
    assert list(outside.iterdir()) == []


def test_messages_that_make_no_sense_change_nothing(start: Start) -> None:
    rig = start()
    rig.until("standing_by")
    for message in ({"type": "begin"}, {"type": "note", "incident": 3}, {"type": "seal"}, {"type": "dance"}):
        rig.channel.send(message)
    rig.channel.sock.send(b"\xff")
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    rig.begin(incident(captures=(), id="20270101T000000.000Z-manual"), [])  # one incident a recorder
    rig.seal(what)
    assert rig.record()["id"] == ID
    assert "makes no sense" in rig.close()


def test_five_hundred_ranks_fit_through_the_channel(start: Start) -> None:
    """More artifacts than the socket holds messages while the guard is busy elsewhere: none is lost."""
    gone = identity_of(os.getpid())
    watched = [
        rank_process(dataclasses.replace(gone, start=gone.start - 1), f"TP{n}")
        if n == 0
        else rank_process(dataclasses.replace(gone, pid=4_000_000 + n), f"TP{n}")
        for n in range(512)
    ]
    rig = start()
    what = incident()
    rig.begin(what, watched)
    wait_for(lambda: state_of(rig.process.pid) == "S" and rig.process.poll() is None)
    messages = rig.until("captures_done")
    assert sum(message["type"] == "captured" for message in messages) == 3 * 512
    rig.seal(what)
    assert len(rig.record()["artifacts"]) == 3 * 512


def test_a_capture_only_incident_says_so(start: Start) -> None:
    rig = start()
    decision = Decision(Reason.MANUAL, Action.CAPTURE, (), 3.0)
    what = incident(captures=(), reason=Reason.MANUAL, decision=decision, failures=(), id="20261120T235959.123Z-manual")
    rig.begin(what, [])
    rig.until("opened")
    rig.seal(what)
    summary = rig.record("20261120T235959.123Z-manual")["summary"]
    assert summary == "Somebody asked for a capture; the engine was captured and left running."


def spy(tmp_path: Path, script: str) -> str:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "py-spy"
    program.write_text(script)
    program.chmod(0o755)
    return str(folder / "python")


def test_an_interrupted_survey_does_not_delay_an_incident(start: Start, tmp_path: Path) -> None:
    """With thousands of files on the volume, the opening record is there in the time that the kill waits for it."""
    dumps = tmp_path / "dumps"
    for n in range(60):
        folder = dumps / f"20261101T0000{n:02d}.000Z-rankdied-tp0" / "process"
        folder.mkdir(parents=True)
        for k in range(50):
            (folder / f"TP{k}.json").touch()
    rig: Rig = start()
    what = incident(captures=())
    rig.begin(what, [])
    os.kill(rig.process.pid, signal.SIGCONT)
    rig.until("opened", 5)
    rig.seal(what)
    assert rig.record()["sealed"] is True
