"""Signals reach the process that was meant, or nobody."""

from __future__ import annotations

import os
import signal

import pytest
from sidecar_process import PROC, identity_of
from system_processes import ECHO, NOBODY, Script, echo, readable

from sidecar.model import Identity, Member
from sidecar.system import pidfd, signals
from sidecar.system.signals import Sent

BOTH = pytest.mark.parametrize("use_pidfd", [True, False], ids=["pidfd", "bare"])


def member(identity: Identity, pgid: int) -> Member:
    return Member(identity, pgid=pgid, sid=0, ppid=0)


@BOTH
def test_a_process_is_signalled(use_pidfd):
    with echo() as script:
        assert signals.to_process(PROC, script.identity, signal.SIGTERM, use_pidfd=use_pidfd) is Sent.SENT
        assert script.process.wait(30) == -signal.SIGTERM
        assert signals.to_process(PROC, script.identity, signal.SIGTERM, use_pidfd=use_pidfd) is Sent.GONE


@BOTH
def test_another_process_under_the_same_pid_is_never_signalled(use_pidfd):
    """A start time that differs is another process, and it lives on."""
    with echo() as script:
        for start in (script.identity.start - 1, script.identity.start + 1):
            wrong = Identity(script.pid, start)
            assert signals.to_process(PROC, wrong, signal.SIGKILL, use_pidfd=use_pidfd) is Sent.GONE
        assert script.answers()


def test_a_held_pidfd_reaches_its_own_process_only():
    """The descriptor decides: gone is gone, whoever may have the number."""
    with echo() as script:
        fd = pidfd.open_process(PROC, script.identity)
        try:
            assert signals.to_process(PROC, script.identity, signal.SIGTERM, fd) is Sent.SENT
            assert script.process.wait(30) == -signal.SIGTERM
            assert signals.to_process(PROC, script.identity, signal.SIGTERM, fd) is Sent.GONE
        finally:
            os.close(fd)


@BOTH
@pytest.mark.parametrize("who", ["init", "ourselves"])
def test_init_and_ourselves_are_refused(use_pidfd, who):
    """Refused before the kernel is asked. Signal 0 only asks, so a broken check shows and hurts nobody."""
    identity = identity_of(1 if who == "init" else os.getpid())
    assert signals.to_process(PROC, identity, 0, use_pidfd=use_pidfd) is Sent.DENIED
    assert signals.to_process(PROC, Identity(identity.pid, 0), 0, use_pidfd=use_pidfd) is Sent.DENIED


@pytest.mark.parametrize("pid", [0, -1, -2])
def test_no_number_that_means_many_gets_through(pid):
    """0, -1 and -PGID mean whole sets of processes to kill(2)."""
    assert signals.to_process(PROC, Identity(pid, 0), 0, use_pidfd=False) is Sent.DENIED
    assert signals.to_group(PROC, pid, [member(identity_of(os.getpid()), pid)], 0) is Sent.DENIED


FAMILY = (
    """
child = os.fork()
if child == 0:
    if sys.argv[1:]: os.setpgid(0, 0)
    say(os.getpid())
    signal.pause()
    os._exit(1)
"""
    + ECHO
)


def test_a_group_is_reached_as_a_whole():
    """One checked member is enough, and those whom nobody named are reached too."""
    with Script(FAMILY) as leader:
        said = {leader.heard(), leader.heard()}
        child = identity_of(int((said - {"ready"}).pop()))
        fd = pidfd.open_process(PROC, child)
        try:
            # In its group is the child; the leader itself is not named.
            assert signals.to_group(PROC, leader.pid, [member(child, leader.pid)], signal.SIGKILL) is Sent.SENT
            assert readable([fd]) == [fd]
            assert leader.process.wait(30) == -signal.SIGKILL
        finally:
            os.close(fd)


def test_a_group_without_a_checked_member_is_not_ours():
    """No member, one with another start time, or one that is in another group: nobody of the group is signalled."""
    with echo() as script, echo() as other:
        wrong = Identity(script.pid, script.identity.start + 1)
        for members in ([], [member(wrong, script.pid)], [member(other.identity, script.pid)]):
            assert signals.to_group(PROC, script.pid, members, signal.SIGKILL) is Sent.GONE
        assert script.answers()
        assert other.answers()


def test_a_member_that_left_its_group_does_not_vouch_for_it():
    """Where a process stands now counts, not where the plan saw it."""
    with Script(FAMILY, "leave") as leader:
        said = {leader.heard(), leader.heard()}
        child = identity_of(int((said - {"ready"}).pop()))
        assert signals.to_group(PROC, leader.pid, [member(child, leader.pid)], signal.SIGKILL) is Sent.GONE
        assert leader.answers()
        assert signals.to_process(PROC, child, 0) is Sent.SENT


def test_our_own_group_is_refused():
    """Even with a member of it that was checked. Signal 0 only asks."""
    assert signals.to_group(PROC, os.getpgrp(), [member(identity_of(os.getpid()), os.getpgrp())], 0) is Sent.DENIED


def test_a_group_that_is_gone():
    with Script("pass") as script:
        identity = script.identity
        script.process.wait(30)
        assert signals.to_group(PROC, identity.pid, [member(identity, identity.pid)], signal.SIGKILL) is Sent.GONE


@pytest.mark.root
def test_a_process_of_another_user_is_denied():
    """EPERM is said as such, for a process and for its group, and by every way to signal."""
    source = f"""
from sidecar.model import Identity, Member
from sidecar.system import pidfd, signals
from sidecar.system.proc import Proc
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
proc, target = Proc(), Identity(int(sys.argv[1]), int(sys.argv[2]))
say(signals.to_process(proc, target, 9))
say(signals.to_process(proc, target, 9, use_pidfd=False))
say(signals.to_process(proc, target, 9, pidfd.open_process(proc, target)))
say(signals.to_group(proc, target.pid, [Member(target, target.pid, 0, 0)], 9))
"""
    with echo() as target, Script(source, str(target.pid), str(target.identity.start)) as script:
        assert [script.heard() for _ in range(4)] == ["denied"] * 4
        assert target.answers()
