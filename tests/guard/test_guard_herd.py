"""Who is stopped and killed with the engine, and who never is: the guard's own classes on real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from guard_troupe import Troupe
from guard_watch import Lookout, Scout
from sidecar_process import PROC, eventually, kill_identity, running, state_of

from sidecar.errors import ProcessGone
from sidecar.guard.herd import outcome_of
from sidecar.model import Action, Identity, Member, Outcome, Plan, ProcessReaped
from sidecar.system import pidfd

both_ways = pytest.mark.parametrize("use_pidfd", [True, False], ids=["pidfd", "no pidfd"])


def identity(troupe: Troupe, label: str) -> Identity:
    return troupe.identities[label]


def member(of: Identity, start: int | None = None) -> Member:
    """This process as a member of a plan, with another start time if one is given."""
    stat = PROC.stat(of.pid)
    assert stat is not None
    return Member(Identity(of.pid, of.start if start is None else start), stat.pgid, stat.sid, stat.ppid)


@pytest.fixture
def witness() -> Iterator[Troupe]:
    """A process, leader of its own group, that says every signal that it is given."""
    with Troupe("witness('witness')") as troupe:
        yield troupe.await_labels("witness")


@both_ways
def test_a_process_with_another_start_time_is_never_signalled(witness: Troupe, use_pidfd: bool) -> None:
    """A pid that was used again belongs to a stranger: neither by name nor as a group is it stopped, killed, let go."""
    real = identity(witness, "witness")
    former = member(real, start=real.start - 1)
    with Scout(former.identity, use_pidfd=use_pidfd) as scout:
        now = time.monotonic()
        plan = Plan(Action.KILL, (former,), (former.pgid,))
        for sweep in (
            scout.herd.stop(plan, lambda _: True, now),
            scout.herd.kill(plan, {former.identity}, now),
        ):
            assert real not in sweep.members
        scout.herd.let_go({former.identity: former})
        assert scout.herd.holders({former.identity: former}) == ([], False)
        assert scout.herd.survivors([former]) == ()
    assert_untouched(witness, "witness")


def assert_untouched(troupe: Troupe, label: str) -> None:
    """It runs, and has caught nothing up to the signal that is sent now."""
    kill_identity(identity(troupe, label), signal.SIGUSR1)
    eventually(lambda: troupe.hear(0.05) and caught(troupe, label), "SIGUSR1 caught")
    assert caught(troupe, label) == ["SIGUSR1"]
    assert state_of(identity(troupe, label)) in ("S", "R")


def caught(troupe: Troupe, label: str) -> list[str]:
    return [rest[0] for said, _, rest in troupe.said if said == f"{label}-caught"]


@both_ways
def test_a_member_is_stopped_let_go_and_killed(witness: Troupe, use_pidfd: bool) -> None:
    """The same calls with the right start time do what they say, or the test above would prove nothing."""
    real = identity(witness, "witness")
    with Scout(real, use_pidfd=use_pidfd) as scout:
        scout.discovery.look(time.monotonic())
        plan = scout.herd.plan(Action.KILL, {real}, time.monotonic())
        assert [m.identity for m in plan.members] == [real]
        sweep = scout.herd.stop(plan, lambda _: True, time.monotonic())
        eventually(lambda: state_of(real) == "T", "stopped")
        scout.herd.let_go(sweep.members)
        eventually(lambda: witness.hear(0.05) and caught(witness, "witness"), "let go")
        assert caught(witness, "witness") == ["SIGCONT"]
        killed = scout.herd.kill(plan, set(), time.monotonic())
        eventually(lambda: state_of(real) == "Z", "killed")
        assert scout.herd.holders(killed.members) == ([], True)
        witness.process.wait(20)
        assert scout.herd.holders(killed.members) == ([], False)


def test_nothing_is_stopped_that_nobody_could_let_go_again(witness: Troupe) -> None:
    """If the dead man's switch does not take the plan, nothing is stopped."""
    real = identity(witness, "witness")
    with Scout(real) as scout:
        plan = scout.herd.plan(Action.KILL, {real}, time.monotonic())
        assert scout.herd.stop(plan, lambda _: False, time.monotonic()).members == {}
    assert_untouched(witness, "witness")


@pytest.mark.root
@pytest.mark.parametrize("masked", [(), ("pidfd",)], ids=["pidfd", "no pidfd"])
def test_a_pid_that_was_used_again(masked: tuple[str, ...]) -> None:
    """A real stranger under a dead rank's pid: the rank is reaped, and the stranger is nobody of ours."""
    with (
        Troupe("fork(wait, 'rank')\norder()\nos.wait()\nsay('collected')\nwait()") as troupe,
        Lookout(masked) as lookout,
    ):
        troupe.await_labels("rank")
        former = identity(troupe, "rank")
        lookout.watch(former)
        kill_identity(former)
        troupe.order("collect")
        troupe.await_labels("collected")
        tick = os.sysconf("SC_CLK_TCK")
        eventually(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * tick > former.start + 1, "another start time")
        with process_with_pid(former.pid) as stranger, Scout(former, use_pidfd=not masked) as scout:
            assert (stranger.pid, stranger.start > former.start) == (former.pid, True)
            assert lookout.until(ProcessReaped).identity == former
            with pytest.raises(ProcessGone):
                pidfd.open_process(PROC, former)
            assert scout.herd.plan(Action.KILL, {former}, time.monotonic()).members == ()
            dead = member(stranger, start=former.start)
            scout.herd.kill(Plan(Action.KILL, (dead,), (dead.pgid,)), {former}, time.monotonic())
            assert running(stranger)


class process_with_pid:  # noqa: N801
    """A process of ours under the pid that was asked for, by the kernel's own counter. The pid must be free."""

    def __init__(self, pid: int) -> None:
        self._wanted = pid
        self._child = 0

    def __enter__(self) -> Identity:
        # Somebody else may fork between the write and our fork: then try again.
        for _ in range(500):
            with open("/proc/sys/kernel/ns_last_pid", "w") as counter:
                counter.write(str(self._wanted - 1))
            self._child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setsid=True)
            if self._child == self._wanted:
                stat = PROC.stat(self._child)
                assert stat is not None
                return stat.identity
            self._end()
        raise AssertionError(f"no process got the pid {self._wanted}")

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        os.kill(self._child, signal.SIGKILL)  # our own child, not yet waited for
        os.waitpid(self._child, 0)


def test_the_outcome_is_the_worst_of_its_parts() -> None:
    """One that stays outweighs a zombie, a zombie outweighs the reaped, and nothing to kill is its own outcome."""
    assert outcome_of(3, denied=False, holding=True, zombies=True) is Outcome.STILL_ALIVE
    assert outcome_of(3, denied=True, holding=True, zombies=True) is Outcome.DENIED
    assert outcome_of(3, denied=False, holding=False, zombies=True) is Outcome.EXITED_UNREAPED
    assert outcome_of(3, denied=False, holding=False, zombies=False) is Outcome.REAPED
    assert outcome_of(0, denied=False, holding=False, zombies=False) is Outcome.ALREADY_GONE


def test_a_child_that_left_group_and_session_is_in_the_plan_and_a_neighbour_is_not() -> None:
    """Membership is by parent too; a neighbour in another tree, and Rankguard's own processes, are never in it."""
    code = "rank('TP0'); fork(wait, 'own-session', session=True); fork(wait, 'own-group', group=True); wait()"
    with Troupe(code) as troupe, Troupe("rank('TP9'); wait()") as neighbour:
        troupe.await_labels("TP0", "own-session", "own-group")
        neighbour.await_labels("TP9")
        with Scout(identity(troupe, "server")) as scout:
            scout.rank(troupe.pid_of("TP0"))
            plan = scout.herd.plan(Action.KILL, set(), time.monotonic())
            assert {m.identity for m in plan.members} == set(troupe.identities.values())
            assert os.getpid() not in {m.identity.pid for m in plan.members}
            leader = identity(troupe, "server").pid
            assert plan.groups[-1] == leader, "the server's group comes last"
            assert set(plan.groups) == {leader, troupe.pid_of("own-session"), troupe.pid_of("own-group")}


def test_a_group_shared_with_a_stranger_is_not_signalled_as_a_group() -> None:
    """With a bound to one tree, a process outside it in the same group is left alone: members go one by one."""
    code = """
def engine():
    say("root")
    rank("TP0")
    wait()
fork(lambda: witness("stranger"))
fork(engine)
wait()
"""
    with Troupe(code) as troupe:
        troupe.await_labels("root", "TP0", "stranger")
        root = identity(troupe, "root")
        with Scout(root) as scout:
            scout.rank(troupe.pid_of("TP0"))
            plan = scout.herd.plan(Action.KILL, {root}, time.monotonic())
            assert {m.identity for m in plan.members} == {root, identity(troupe, "TP0")}
            assert plan.groups == ()
            stopped = scout.herd.stop(plan, lambda _: True, time.monotonic())
            eventually(lambda: state_of(root) == state_of(identity(troupe, "TP0")) == "T", "the members stopped")
            assert state_of(identity(troupe, "stranger")) == "S"
            scout.herd.kill(plan, set(stopped.members), time.monotonic())
            eventually(lambda: not running(root) and not running(identity(troupe, "TP0")), "the members killed")
        assert_untouched(troupe, "stranger")
