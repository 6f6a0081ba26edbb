"""Where the engine stands: what may follow what, and that everything else is refused without a trace."""

from __future__ import annotations

import copy
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import RankguardError
from sidecar.model import State
from sidecar.policy import machine
from sidecar.policy.machine import TRANSITIONS, Event, IllegalTransition, after

LEGAL = {(state, event) for state, row in TRANSITIONS.items() for event in row}
ILLEGAL = sorted(set(product(State, Event)) - LEGAL)

# A life of an engine per line: the events, and the states they lead through from `waiting`.
LIVES = {
    "one that serves, loses a rank, and is killed": (
        "engine_seen ranks_complete failure failure terminated",
        "starting serving failing failing restarting",
    ),
    "its next generation": (
        "engine_seen ranks_complete failure terminated engine_seen ranks_complete",
        "starting serving failing restarting starting serving",
    ),
    "one whose rank dies while weights are loaded": ("engine_seen failure terminated", "starting failing restarting"),
    "one that leaves by itself": ("engine_seen ranks_complete gone", "starting serving restarting"),
    "one that is asked to stop": (
        "engine_seen ranks_complete drain failure failure gone",
        "starting serving draining draining draining restarting",
    ),
    "one that fails and is then asked to stop": (
        "engine_seen failure drain terminated", "starting failing draining restarting",
    ),
    "one that is only observed and mends itself": (
        "engine_seen ranks_complete failure ranks_complete", "starting serving failing serving",
    ),
    "a stop that was announced and did not come": (
        "engine_seen ranks_complete drain drain_over ranks_complete", "starting serving draining starting serving",
    ),
    "a stop before there was any engine": ("drain engine_seen ranks_complete", "draining draining draining"),
    "a kill that ends after the last process was seen to go": (
        "engine_seen failure gone terminated", "starting failing restarting restarting",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("events", "states"), LIVES.values(), ids=LIVES)
def test_a_life(events, states):
    state, seen = State.WAITING, []
    for event in events.split():
        state = after(state, Event(event))
        seen.append(str(state))
    assert seen == states.split()


def test_every_state_has_its_row():
    assert set(TRANSITIONS) == set(State)
    assert all(
        isinstance(event, Event) and isinstance(to, State) for r in TRANSITIONS.values() for event, to in r.items()
    )


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_what_is_not_in_the_table_raises_and_changes_nothing(state, event):
    before = copy.deepcopy(TRANSITIONS)
    with pytest.raises(IllegalTransition) as raised:
        after(state, event)
    assert isinstance(raised.value, RankguardError)
    assert str(state) in str(raised.value)
    assert str(event) in str(raised.value)
    assert before == TRANSITIONS


def test_how_much_is_refused():
    """Pinned, so that a row is not opened by accident: nobody fails who was never seen, nobody is killed unfailed."""
    assert len(ILLEGAL) == 16
    assert (State.WAITING, Event.FAILURE) in ILLEGAL
    killed = {state for state in State if Event.TERMINATED in TRANSITIONS[state]}
    assert killed == {State.FAILING, State.DRAINING, State.RESTARTING}


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_whatever_happens_the_rules_hold(events):
    """Only a failure leads to failing; a drain ends with the engine or is called off; a refused event does nothing."""
    state = State.WAITING
    for event in events:
        before = state
        try:
            state = after(state, event)
        except IllegalTransition:
            assert (before, event) not in LEGAL
            continue
        if state is State.FAILING and before is not State.FAILING:
            assert event is Event.FAILURE
        if before is State.DRAINING and state is not State.DRAINING:
            assert event in (Event.GONE, Event.TERMINATED, Event.DRAIN_OVER)
            assert state is (State.STARTING if event is Event.DRAIN_OVER else State.RESTARTING)
        if state is State.SERVING:
            assert event is Event.RANKS_COMPLETE
        assert state is not State.WAITING


def test_a_drain_is_possible_everywhere():
    """A stop can be asked for at any time; while failing, the kill goes on."""
    assert {state: after(state, Event.DRAIN) for state in State} == {
        **dict.fromkeys(State, State.DRAINING),
    }  # fmt: skip


def test_every_state_can_be_reached_and_left():
    reached, queue = set(), [State.WAITING]
    while queue:
        state = queue.pop()
        if state not in reached:
            reached.add(state)
            queue += machine.TRANSITIONS[state].values()
    assert reached == set(State)
    assert all(set(row.values()) - {state} for state, row in TRANSITIONS.items())
