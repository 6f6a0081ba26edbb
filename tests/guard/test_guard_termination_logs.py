"""Termination logs: held for each container from discovery on, and lent to whoever records a kill, and for nothing
else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard_stage import STUCK, Stage, staged
from own_mounts import Alone, OwnLog, same
from sidecar_process import PROC, identity_of

from sidecar.guard.termination_logs import TerminationLogs
from sidecar.log import Log
from sidecar.messages import Message
from sidecar.model import Action, Identity, RankProcess, Role, TimelineEntry, plain

pytestmark = pytest.mark.root


class Holder:
    """`TerminationLogs` with a log that can be read."""

    def __init__(self, path: Path | None, wraps: bool = False) -> None:
        self._said, self._saying = os.pipe()
        self._log = Log("guard", "json", self._saying)
        self.logs = TerminationLogs(PROC, str(path) if path else None, wraps, self._log)

    def attach(self, identity: Identity, container: str = "") -> None:
        self.logs.attach(RankProcess(identity, Role.WORKER, "TP0", "", 1, 1, 1, container))

    def lend(self, *identities: Identity) -> tuple[int, ...]:
        return self.logs.lend(set(identities))

    def said(self) -> list[str]:
        """Why there is none, so far. Call it once."""
        os.write(self._saying, b"\n")
        return [json.loads(line)["because"] for line in os.read(self._said, 65536).splitlines() if line]

    def close(self) -> None:
        self.logs.detach()
        os.close(self._said)
        os.close(self._saying)


@pytest.fixture
def own(tmp_path: Path) -> OwnLog:
    return OwnLog(tmp_path / "container")


@pytest.fixture
def holder(own: OwnLog) -> Iterator[Holder]:
    holder = Holder(own.path)
    try:
        yield holder
    finally:
        holder.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_held_when_the_process_is_gone(own: OwnLog, holder: Holder) -> None:
    """What the entrypoint's death takes away is the path, not the file."""
    with Alone(own.prefix) as process:
        holder.attach(process.identity)
        process.end()
    (fd,) = holder.lend(process.identity)
    os.write(fd, b"told")
    os.close(fd)
    assert own.text() == "told"
    assert holder.said() == []


def test_one_for_each_container_and_only_the_engines(tmp_path: Path, own: OwnLog, holder: Holder) -> None:
    """Containers are told apart by their id, else by their mounts; ranks of one share a descriptor."""
    before = open_descriptors()
    other = OwnLog(tmp_path / "other")
    other.prefix = ["unshare", "--mount", "sh", "-c", own.prefix[4], str(other.file), str(own.path)]
    with Alone(own.prefix) as first, Alone(other.prefix) as second:
        pid = str(first.identity.pid)
        with Alone(["nsenter", "--target", pid, "--mount"]) as third:
            started = open_descriptors()
            for process in (first, second, third):
                holder.attach(process.identity)
                holder.attach(process.identity)
            assert open_descriptors() - started == 2
            lent = [holder.lend(third.identity), holder.lend(second.identity, first.identity), holder.lend()]
    assert [len(fds) for fds in lent] == [1, 2, 0]
    assert same(lent[0][0], own.file)
    assert {same(fd, own.file) for fd in lent[1]} == {True, False}
    for fd in (fd for fds in lent for fd in fds):
        os.close(fd)
    holder.logs.detach()
    assert open_descriptors() == before
    assert holder.lend(first.identity, second.identity) == ()


@pytest.mark.parametrize("wraps", [False, True])
def test_our_own_is_only_written_to_where_we_are_in_the_engines_container(own: OwnLog, wraps: bool) -> None:
    """In wrap mode it is the engine's; else a message there would say that Rankguard was killed."""
    holder = Holder(own.path, wraps)
    try:
        with Alone([]) as process:
            holder.attach(process.identity)
            lent = holder.lend(process.identity)
            assert [same(fd, own.path) for fd in lent] == ([True] if wraps else [])
            for fd in lent:
                os.close(fd)
        assert holder.said() == ([] if wraps else ["is Rankguard's own"])
    finally:
        holder.close()


def test_where_there_is_none_it_is_said_once_for_a_container(tmp_path: Path) -> None:
    """And not at all on a host, where there is nothing to expect."""
    holder = Holder(tmp_path / "nothing")
    try:
        with Alone([]) as one, Alone([]) as two:
            for identity in (one.identity, two.identity, one.identity):
                holder.attach(identity, "c" * 64)
            with Alone([]) as host:
                holder.attach(host.identity)
            assert holder.lend(one.identity, host.identity) == ()
        assert holder.said() == ["is not there: does the container set a terminationMessagePath of its own?"]
    finally:
        holder.close()


def test_a_rank_that_is_gone_leaves_it_to_the_next(own: OwnLog, holder: Holder) -> None:
    """Its death during discovery says nothing of the container's file."""
    with Alone(own.prefix) as process:
        gone = Identity(process.identity.pid, process.identity.start - 1)
        holder.attach(gone, "c" * 64)
        holder.attach(process.identity, "c" * 64)
        (fd,) = holder.lend(gone)
        assert same(fd, own.file)
        os.close(fd)


def test_none_is_held_where_it_is_switched_off(own: OwnLog) -> None:
    holder = Holder(None)
    try:
        with Alone(own.prefix) as process:
            holder.attach(process.identity)
            assert holder.lend(process.identity) == ()
    finally:
        holder.close()


# A whole guard, with the test as its recorder.


def begun(stage: Stage, after: int = 0) -> Message:
    message = stage.heard("recorded", "begin", after)
    assert len(stage.lent) == len([m for m in stage.recorded if m["type"] == "begin"])
    return message


@pytest.mark.parametrize("action", Action)
def test_lent_for_a_kill_alone(tmp_path: Path, own: OwnLog, action: Action) -> None:
    """An engine that runs on has not ended, so there is nothing to explain."""
    with staged(tmp_path, own.prefix, termination_log=str(own.path), on_rank_death=action) as stage:
        stage.engine.kill("TP1")
        begun(stage)
        assert [same(fd, own.file) for fd in stage.lent[0]] == ([True] if action is Action.KILL else [])
    assert own.text() == ""  # the guard itself writes nothing


def test_a_recorder_that_comes_after_the_end_has_it(tmp_path: Path, own: OwnLog) -> None:
    """No recorder is there and nothing is to be captured: the engine is gone when one comes, and it can still write."""
    with staged(tmp_path, own.prefix, termination_log=str(own.path), captures=()) as stage:
        stage.lose_recorder()
        stage.engine.kill("TP1")
        assert stage.engine.wait_gone(20) == []
        stage.until(lambda: stage.events("gone"), "the guard knows")
        stage.new_recorder()
        incident = begun(stage)["incident"]
        (fd,) = stage.lent[0]
        assert same(fd, own.file)
        held = descriptors_of(stage, own.file)
        assert held == 1, "for this incident; the engine's own was given back"
        stage.seal(incident["id"])
        stage.until(lambda: descriptors_of(stage, own.file) == 0, "everything given back")


def descriptors_of(stage: Stage, file: Path) -> int:
    """How many descriptors of a file the guard has."""
    folder = Path(f"/proc/{stage.guard_pid}/fd")
    wanted = file.stat()
    found = 0
    for fd in folder.iterdir():
        try:
            stat = fd.stat()
        except OSError:
            continue
        found += (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino)
    return found


def test_what_one_recorder_told_the_next_one_knows(tmp_path: Path, own: OwnLog) -> None:
    """With the time at which it was written; and the descriptors come again."""
    with staged(tmp_path, own.prefix, termination_log=str(own.path), death_deadline=30.0) as stage:
        stage.engine.kill("TP1")
        begun(stage)
        entry = TimelineEntry(12.5, 1000.25, "told the kubelet", "in the termination log of 1 container")
        stage.recorder.say("told", entry=plain(entry))
        seen = len(stage.recorded)
        stage.lose_recorder()
        stage.until(lambda: stage.events("recorder lost"), "the loss known")
        stage.new_recorder()
        again = begun(stage, seen)
        assert plain(entry) in again["incident"]["timeline"]
        assert len(stage.lent[1]) == 1


def test_a_new_guard_of_the_same_engine_opens_it_anew(tmp_path: Path, own: OwnLog) -> None:
    """The supervisor need not keep it: what the new guard takes over lives."""
    with staged(tmp_path, own.prefix, termination_log=str(own.path)) as stage:
        stage.verdict(STUCK)
        incident = begun(stage)["incident"]["id"]
        seen = len(stage.recorded)
        stage.kill_guard()
        stage.start()
        again = begun(stage, seen)
        assert (again["incident"]["id"], again["resume"]) == (incident, True)
        assert [same(fd, own.file) for fd in stage.lent[1]] == [True]


def test_an_incident_of_another_engine_is_not_told_to_this_ones_container(tmp_path: Path, own: OwnLog) -> None:
    """What an earlier run left open on the volume was about processes that this engine does not have."""
    with staged(tmp_path, own.prefix, termination_log=str(own.path), death_deadline=30.0) as stage:
        stage.engine.kill("TP1")
        left = begun(stage)["incident"]
        assert len(stage.lent[0]) == 1
        stage.kill_guard()
    me = identity_of(os.getpid())
    other = plain(Identity(me.pid, me.start - 1))
    left["members"] = [{**member, "identity": other} for member in left["members"]]
    left["failures"] = [{**failure, "pid": other["pid"], "start": other["start"]} for failure in left["failures"]]
    with staged(tmp_path, own.prefix, termination_log=str(own.path)) as stage:
        stage.recorder.say("standing_by", dump_bytes=0, free_bytes=1 << 30, unfinished=[left])
        begun(stage)
        assert stage.lent == [()]
