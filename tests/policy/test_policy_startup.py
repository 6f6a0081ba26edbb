"""When an engine is complete, and when it is too late for that."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.model import Role
from sidecar.policy.startup import RANK_ROLES, Expectation, complete, counted, overdue

SCHEDULER, WORKER, CORE, SERVER = Role.SCHEDULER, Role.WORKER, Role.ENGINE_CORE, Role.SERVER
ALL = st.lists(st.sampled_from(Role), max_size=12)


def told(count: int) -> Expectation:
    return Expectation(count, (), "told")


def read(count: int, *roles: Role) -> Expectation:
    return Expectation(count, roles, "--tp-size")


@pytest.mark.parametrize(
    ("present", "expectation", "count"),
    [
        ([SCHEDULER] * 4 + [Role.DETOKENIZER, SERVER], told(4), 4),
        ([WORKER, WORKER, CORE, SERVER], told(2), 2),  # the core of an engine with workers is none of its ranks
        ([CORE, CORE, SERVER], told(2), 2),  # vLLM with one GPU for each core has no workers
        ([SERVER, Role.DETOKENIZER, Role.CONTROLLER], told(1), 0),
        ([WORKER, CORE, CORE], read(2, CORE), 2),
        ([WORKER, CORE, CORE], read(3, CORE, WORKER), 3),
        ([WORKER], read(1, SCHEDULER), 0),
        ([WORKER, SCHEDULER], None, 2),
        ([], None, 0),
    ],
)
def test_who_counts(present, expectation, count):
    assert counted(present, expectation) == count
    assert counted(reversed(present), expectation) == count


@pytest.mark.parametrize(
    ("present", "expectation", "is_complete"),
    [
        ([SCHEDULER] * 3, told(4), False),
        ([SCHEDULER] * 4, told(4), True),
        ([SCHEDULER] * 5, told(4), True),
        ([SERVER], None, False),  # with no number one rank is enough, but one there must be
        ([SERVER, CORE], None, True),
        ([WORKER], None, True),
        ([], None, False),
        ([], told(1), False),
    ],
)
def test_when_an_engine_is_complete(present, expectation, is_complete):
    assert complete(present, expectation) is is_complete


def test_the_time_for_it():
    """Counted from the engine's first process, and over at the limit itself."""
    assert not overdue(1000.0, 1000.0, 600.0)
    assert not overdue(1000.0, 1599.9, 600.0)
    assert overdue(1000.0, 1600.0, 600.0)


@given(
    ALL,
    st.sampled_from(Role),
    st.none() | st.integers(1, 6).map(told) | st.integers(1, 6).map(lambda n: read(n, WORKER)),
)
def test_one_more_process_never_makes_an_engine_incomplete(present, further, expectation):
    """But for the first worker beside engine cores: from then on it is the workers that count."""
    assume(further not in (Role.SCHEDULER, Role.WORKER) or {Role.SCHEDULER, Role.WORKER} & set(present))
    if complete(present, expectation):
        assert complete([*present, further], expectation)


@given(ALL)
def test_only_ranks_count(present):
    """Servers, detokenizers and controllers are watched, but no engine is complete by them."""
    assert counted(present, None) == counted([role for role in present if role in RANK_ROLES], None)
