"""What an exit means: a failure, part of a clean stop, or nothing."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.model import Cause, ExitStatus, Identity, Reason, Role
from sidecar.policy.deaths import (
    Exit,
    Judgement,
    Meaning,
    cause_of,
    judge_held,
    may_be_clean,
    meaning,
    reason_for,
    shell_status,
    wrap_exit_status,
)

UNKNOWN = ExitStatus(why_unknown="not ours")


def code(number: int) -> ExitStatus:
    return ExitStatus(code=number)


def by(number: int) -> ExitStatus:
    return ExitStatus(signal=number)


def left(status: ExitStatus, role: Role = Role.WORKER, titled: bool = True, at: float = 100.0) -> Exit:
    return Exit(Identity(7, 70), role, "TP0", titled, status, at)


statuses = st.one_of(
    st.integers(0, 255).map(code), st.integers(1, 64).map(by), st.just(UNKNOWN),
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "oom", "cause"),
    [
        (by(signal.SIGKILL), False, Cause.SIGKILL),
        (by(signal.SIGKILL), True, Cause.OOM_KILLED),
        (by(signal.SIGSEGV), False, Cause.SIGSEGV),
        (by(signal.SIGSEGV), True, Cause.SIGSEGV),  # the kernel kills for memory with SIGKILL, and with no other
        (by(signal.SIGABRT), False, Cause.SIGABRT),
        (by(signal.SIGBUS), False, Cause.SIGBUS),
        (by(signal.SIGTERM), False, Cause.SIGTERM),
        (by(signal.SIGTERM), True, Cause.SIGTERM),
        (by(signal.SIGFPE), False, Cause.OTHER_SIGNAL),
        (by(signal.SIGQUIT), False, Cause.OTHER_SIGNAL),
        (by(signal.SIGRTMAX), False, Cause.OTHER_SIGNAL),
        (code(1), False, Cause.EXIT_NONZERO),
        (code(137), True, Cause.EXIT_NONZERO),
        (code(0), False, Cause.UNKNOWN),
        (UNKNOWN, False, Cause.UNKNOWN),
        (UNKNOWN, True, Cause.UNKNOWN),
    ],
)
def test_the_cause_of_a_death(status, oom, cause):
    assert cause_of(status, oom) is cause


@pytest.mark.parametrize(
    ("status", "clean"),
    [
        (code(0), True),
        (code(128 + signal.SIGTERM), True),
        (code(128 + signal.SIGINT), True),
        (code(128 + signal.SIGHUP), True),
        (by(signal.SIGTERM), True),
        (by(signal.SIGINT), True),
        (by(signal.SIGHUP), True),
        (by(signal.SIGQUIT), False),  # how an SGLang scheduler tells its server that it crashed
        (code(128 + signal.SIGQUIT), False),
        (by(signal.SIGKILL), False),
        (code(128 + signal.SIGKILL), False),
        (by(signal.SIGSEGV), False),
        (by(signal.SIGPIPE), False),
        (code(1), False),
        (code(255), False),
        (UNKNOWN, False),  # a missed failure costs more than a false one
    ],
)
def test_which_exits_can_belong_to_a_clean_stop(status, clean):
    assert may_be_clean(status) is clean


@pytest.mark.parametrize(
    ("exit_", "what"),
    [
        (left(by(signal.SIGKILL)), Meaning.FAILURE),
        (left(code(1)), Meaning.FAILURE),
        (left(UNKNOWN), Meaning.FAILURE),
        (left(code(0)), Meaning.HELD),
        (left(by(signal.SIGTERM)), Meaning.HELD),
        (left(code(0), Role.SERVER), Meaning.HELD),
        # One that never had a title and did its work, or whose pool was stopped, is a helper; one that crashed is not.
        (left(code(0), titled=False), Meaning.NOTHING),
        (left(by(signal.SIGTERM), titled=False), Meaning.NOTHING),
        (left(code(143), titled=False), Meaning.NOTHING),
        (left(by(signal.SIGKILL), titled=False), Meaning.FAILURE),
        (left(code(1), titled=False), Meaning.FAILURE),
        # Reaped by its parent before anybody looked, as most helpers are. Were it a rank to be, the count would tell.
        (left(UNKNOWN, titled=False), Meaning.NOTHING),
        (left(code(0), Role.SERVER, titled=False), Meaning.HELD),
    ],
)
def test_what_one_exit_means_by_itself(exit_, what):
    assert meaning(exit_) is what


GRACE = 5.0


@pytest.mark.parametrize(
    ("held", "alive", "now", "judgement"),
    [
        ([], 0, 200.0, Judgement.WAIT),
        ([], 4, 200.0, Judgement.WAIT),
        ([left(code(0))], 0, 100.0, Judgement.CLEAN),  # everything left: no need to wait for the grace
        ([left(code(0))], 0, 200.0, Judgement.CLEAN),  # and not too late for it either
        ([left(code(0))], 3, 104.9, Judgement.WAIT),
        ([left(code(0))], 3, 105.0, Judgement.FAILURE),  # the others stand in their next collective for ever
        ([left(code(0)), left(code(0), at=104.0)], 1, 104.9, Judgement.WAIT),
        ([left(code(0)), left(code(0), at=104.0)], 1, 105.0, Judgement.FAILURE),  # counted from the first to leave
    ],
)
def test_exits_that_may_be_clean_are_judged_by_whether_the_rest_follows(held, alive, now, judgement):
    assert judge_held(held, alive, now, GRACE) is judgement


def test_a_grace_of_nothing_judges_at_once():
    assert judge_held([left(code(0))], 1, 100.0, 0.0) is Judgement.FAILURE


@given(
    st.lists(st.floats(0, 1000).map(lambda at: left(code(0), at=at)), min_size=1), st.integers(0, 9), st.floats(0, 1000)
)
def test_waiting_ends(held, alive, now):
    """Whatever was held, it is judged once the grace of the first is over; and with nobody left it is clean."""
    assert judge_held(held, alive, held[0].at + GRACE, GRACE) is not Judgement.WAIT
    assert (judge_held(held, alive, now, GRACE) is Judgement.CLEAN) == (alive == 0)


@pytest.mark.parametrize("role", Role)
def test_the_reason_is_the_first_failures(role):
    assert reason_for(left(code(1), role)) is (Reason.ENGINE_EXITED if role is Role.SERVER else Reason.RANK_DIED)


def test_what_a_shell_would_say():
    assert [shell_status(s) for s in (code(0), code(3), by(9), UNKNOWN)] == [0, 3, 137, None]


@pytest.mark.parametrize(
    ("command", "drained", "first", "killed", "status"),
    [
        (code(0), False, None, False, 0),
        (code(3), False, None, False, 3),
        (by(signal.SIGSEGV), False, None, False, 139),
        (UNKNOWN, False, None, False, 1),
        # A stop that was asked for: CMD's own, whatever else was seen.
        (code(0), True, by(9), False, 0),
        (by(signal.SIGTERM), True, by(9), True, 143),
        (code(7), True, None, False, 7),
        (UNKNOWN, True, None, False, 1),
        # We killed it after a rank died: the rank's, not the SIGKILL of ours.
        (by(signal.SIGKILL), False, by(signal.SIGSEGV), True, 139),
        (by(signal.SIGKILL), False, code(3), True, 3),
        # vLLM's server exits 0 after a worker was killed: the worker's.
        (code(0), False, by(signal.SIGKILL), False, 137),
        # The engine ended by itself and says so: its own.
        (code(5), False, by(signal.SIGKILL), False, 5),
        # A failure is never reported as success, even where nothing is known of it.
        (code(0), False, code(0), False, 1),
        (code(0), False, UNKNOWN, False, 1),
        (by(signal.SIGKILL), False, UNKNOWN, True, 1),
        (UNKNOWN, False, by(6), False, 134),
    ],
)
def test_the_status_of_wrap_mode(command, drained, first, killed, status):
    assert wrap_exit_status(command, drained, first, killed) == status


@given(statuses, statuses, st.booleans())
def test_a_failure_never_looks_like_success(command, first, killed):
    assert wrap_exit_status(command, False, first, killed) != 0


@given(statuses, st.none() | statuses, st.booleans(), st.booleans())
def test_every_status_is_one_that_exit_can_carry(command, first, drained, killed):
    assert 0 <= wrap_exit_status(command, drained, first, killed) <= 255


@given(statuses, st.booleans())
def test_a_status_is_a_failure_or_may_be_clean(status, titled):
    """What cannot be clean is a failure; only a helper's exit that may be clean, or is unknown, means nothing."""
    what = meaning(left(status, titled=titled))
    harmless = not titled and (may_be_clean(status) or not status.known)
    assert (what is Meaning.FAILURE) == (not may_be_clean(status) and not harmless)
    assert (what is Meaning.NOTHING) == harmless
    assert meaning(left(status, Role.SERVER, titled=titled)) is not Meaning.NOTHING
