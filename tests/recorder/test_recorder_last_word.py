"""What the kubelet is told: the line itself, and how a real recorder writes it while all else goes on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder_rig import ID, Ranks, Rig, Start, incident, rank_process

from sidecar.model import (
    Action,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Liveness,
    Outcome,
    PodInfo,
    Reason,
    Role,
    Termination,
    Verdict,
    timeline_entry_from,
)
from sidecar.recorder.last_word import line_of, told

LINE = (
    "Rankguard: TP3 was killed by signal 9 (SIGKILL); the engine is being killed."
    f" Incident {ID} in prod/llama-0.\n"
)  # fmt: skip


def failure(rank: str = "TP3", detail: str = "", cause: Cause = Cause.OOM_KILLED) -> Failure:
    return Failure(Role.SCHEDULER, rank, 4242, 777, ExitStatus(signal=9), cause, 1.0, 2.0, "pidfd", detail)


def line(**changes: Any) -> str:
    return line_of(incident(**changes), "/data/incidents").decode()


# The line.


def test_a_kill_for_memory_names_the_limit() -> None:
    said = line(failures=(failure(detail="container limit 64 GiB"),), notes=("state: serving",))
    assert said == (
        "Rankguard: TP3 was killed by the kernel for memory (container limit 64 GiB) while serving; the engine is being"
        f" killed. Incident {ID} in prod/llama-0.\n"
    )


def test_a_hang_is_told_with_its_evidence() -> None:
    said = line(
        reason=Reason.ENGINE_STALLED,
        failures=(),
        verdict=Verdict(Liveness.STUCK, ("TP1 is stopped (state T)", "2 requests run"), ("TP1",), 31.0),
        decision=Decision(Reason.ENGINE_STALLED, Action.KILL, (), 60.0),
    )
    assert said.startswith(
        "Rankguard: The engine is stuck, without progress for 31 s: TP1 is stopped (state T); 2 requests run; the"
        " engine is being killed. Incident "
    )


def test_an_engine_that_is_dead_already_is_told_as_dead() -> None:
    """Where no captures are wanted the kill comes first, and a recorder may come only after it."""
    said = line(termination=Termination(Outcome.REAPED))
    assert "; the engine was killed and is gone. Incident " in said


@pytest.mark.parametrize(
    ("pod", "folder", "where"),
    [
        (PodInfo("prod", "llama-0"), "/data", " in prod/llama-0."),
        (PodInfo("", "llama-0"), "/data", " in llama-0."),
        (PodInfo(), "/data", " in /data."),
        (PodInfo(), "/" + "x" * 2000, "."),
    ],
)
def test_where_the_evidence_is(pod: PodInfo, folder: str, where: str) -> None:
    """The pod's folder on the volume; without a pod the dump folder; one that is too long is left out."""
    assert line_of(incident(pod=pod), folder).decode().endswith(f"Incident {ID}{where}\n")


def test_titles_of_the_engine_write_no_lines_and_no_escapes() -> None:
    """Nothing but visible characters, in one line, whatever a rank calls itself."""
    said = line(failures=(failure("TP\x1b[2J\nRankguard: all is well\r\u202e\ud800\0"),))
    assert said.startswith("Rankguard: TP?[2J Rankguard: all is well ??? was killed by")
    assert said.count("\n") == 1


def test_secrets_are_masked() -> None:
    """Function names and titles can hold what people put into command lines."""
    verdict = Verdict(Liveness.STUCK, ("TP1 is in serve --api-key hunter2",), ("TP1",), 31.0)
    said = line(reason=Reason.ENGINE_STALLED, failures=(), verdict=verdict)
    assert "hunter2" not in said
    assert "--api-key ***" in said


@given(rank=st.text(min_size=1, max_size=2000), pod=st.text(max_size=253))
def test_it_is_one_line_of_a_kibibyte_at_most_whatever_it_is_made_of(rank: str, pod: str) -> None:
    """Whole characters, and the incident is named however long the rest is: that is what leads to the evidence."""
    data = line_of(incident(failures=(failure(rank),), pod=PodInfo("prod", pod)), "/data")
    text = data.decode()
    assert len(data) <= 1024
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert f" Incident {ID} in prod" in text


def test_a_long_one_is_cut_where_one_sees_it() -> None:
    said = line(failures=(failure("é" * 2000),))
    assert f"é… Incident {ID} in prod/llama-0.\n" in said
    assert len(said.encode()) in (1023, 1024)


def test_what_came_of_it_in_words() -> None:
    assert told(["", ""]).detail == "in the termination log of 2 containers"
    assert told(["", "EIO"]).event == "told the kubelet"
    assert told(["", "EIO"]).detail == "in the termination log of 1 container; 1 termination log not written: EIO"
    assert told(["EIO", "ENOSPC"]).event == "kubelet not told"
    assert told(["EIO", "ENOSPC"]).detail == "2 termination logs not written: EIO, ENOSPC"


# The writing, by a recorder.


@contextmanager
def appending(*paths: Path) -> Iterator[tuple[int, ...]]:
    """Descriptors as the guard has them."""
    fds = tuple(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC) for path in paths)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def hung_disk() -> Iterator[int]:
    """A descriptor whose writer waits until the end of this: a pipe that is full."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, b"\0" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(writer)
        os.close(reader)  # whoever writes there has its end


def steps(rig: Rig) -> dict[str, str]:
    return {row["event"]: row["detail"] for row in rig.record()["timeline"]}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [("", LINE), ("the engine's own words", f"the engine's own words\n{LINE}"), ("words\n", f"words\n{LINE}")],
)
def test_a_line_of_its_own_after_what_is_there(start: Start, log: Path, before: str, after: str) -> None:
    """The engine's own words stay, and the record and the guard are told when it was written."""
    log.write_text(before)
    rig = start()
    what = incident(captures=())
    with appending(log) as logs:
        rig.begin(what, [], logs=logs)
    entry = timeline_entry_from(rig.until("told")[-1]["entry"])
    assert log.read_text() == after
    told_guard = dataclasses.replace(what, timeline=(*what.timeline, entry))
    rig.seal(told_guard)
    rows = [row for row in rig.record()["timeline"] if row["event"] == "told the kubelet"]
    assert [row["detail"] for row in rows] == ["in the termination log of 1 container"], "once, though two know of it"


def test_each_container_has_the_line_and_what_failed_is_told(start: Start, log: Path, tmp_path: Path) -> None:
    """A disk that is full is one container's loss only."""
    other = tmp_path / "other"
    other.touch()
    rig = start()
    what = incident(captures=())
    with appending(log, Path("/dev/full"), other) as logs:
        rig.begin(what, [], logs=logs)
    rig.until("told")
    rig.seal(what)
    assert log.read_text() == other.read_text() == LINE
    expected = "in the termination log of 2 containers; 1 termination log not written: ENOSPC"
    assert steps(rig)["told the kubelet"] == expected


def test_the_file_may_be_gone_from_where_it_was(start: Start, log: Path) -> None:
    """A container that has ended takes the path with it, and the kubelet still reads the file."""
    rig = start()
    what = incident(captures=())
    kept = log.open()
    with kept, appending(log) as logs:
        log.unlink()
        rig.begin(what, [], logs=logs)
        rig.until("told")
        assert kept.read() == LINE
    rig.seal(what)


def test_further_failures_write_no_further_line(start: Start, log: Path) -> None:
    rig = start()
    what = incident(captures=())
    with appending(log) as logs:
        rig.begin(what, [], logs=logs)
    more = dataclasses.replace(what, failures=(*what.failures, failure("TP1", cause=Cause.SIGKILL)))
    rig.say("note", more)
    rig.until("told")
    rig.seal(more)
    assert log.read_text() == LINE


def test_without_logs_nothing_is_told(start: Start) -> None:
    rig = start()
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    rig.seal(what)
    assert not {"told the kubelet", "kubelet not told"} & set(steps(rig))


@pytest.mark.parametrize("heard", [True, False], ids=["known to the guard", "not known"])
def test_a_recorder_that_takes_over_writes_no_second_line(start: Start, log: Path, heard: bool) -> None:
    """It goes by the incident's timeline, so it needs no file; and where the first died before it could tell, by the
    end of the file.
    """
    first = start()
    what = incident(captures=())
    with appending(log) as logs:
        first.begin(what, [], logs=logs)
        entry = timeline_entry_from(first.until("told")[-1]["entry"])
        first.process.kill()
        first.process.wait()
        second = start()
        if heard:
            what = dataclasses.replace(what, timeline=(*what.timeline, entry))
            log.write_text("")
        second.begin(what, [], resume=True, logs=logs)
        if not heard:
            second.until("told")
        second.seal(what)
    assert log.read_text() == ("" if heard else LINE)
    assert "told the kubelet" in steps(second)


def test_a_volume_that_refuses_is_nothing_to_it(start: Start, log: Path, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.write_text("not a folder")
    rig = start(dumps)
    with appending(log) as logs:
        rig.begin(incident(captures=()), [], logs=logs)
    rig.until("told")
    assert log.read_text() == LINE


def test_a_disk_that_hangs_holds_up_nothing(start: Start, ranks: Ranks, log: Path) -> None:
    """The captures are taken and the record is opened meanwhile; the record is sealed once its time is up, and says
    what was written and what was not.
    """
    identity = ranks.start()
    ranks.stop(identity)
    rig = start()
    what = incident()
    with hung_disk() as hung, appending(log) as logs:
        rig.begin(what, [rank_process(identity, "TP0")], logs=(*logs, hung))
        heard: set[str] = set()
        while not {"captures_done", "opened"} <= heard:
            heard.add(rig.receive()["type"])
        rig.seal(what)
    assert log.read_text() == LINE
    assert steps(rig)["told the kubelet"] == (
        "in the termination log of 1 container; 1 termination log not written: no answer within 2 s"
    )
