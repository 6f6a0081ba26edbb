"""Where the engine stands, as a table. What is not in the table is refused and changes nothing.

waiting     no process of the engine was ever seen
starting    processes are there, not all ranks
serving     all expected ranks are up (or, with no expected number, at least one)
draining    a stop was asked for: exits are recorded, nothing is killed, nothing counts as a failure
failing     an incident is open, or was left open because the action does not kill
restarting  the engine is gone, by us or by itself; the next one is awaited
"""

from __future__ import annotations

from enum import StrEnum

from sidecar.errors import RankguardError
from sidecar.model import State


class Event(StrEnum):
    ENGINE_SEEN = "engine_seen"  # the first process of a generation
    RANKS_COMPLETE = "ranks_complete"
    FAILURE = "failure"
    DRAIN = "drain"
    DRAIN_OVER = "drain_over"  # a stop was announced by a hook alone, and did not come
    GONE = "gone"  # no process of the engine is left
    TERMINATED = "terminated"  # we killed it; survivors, if any, are in the record


class IllegalTransition(RankguardError):
    """An event that cannot happen in this state."""


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.WAITING: {
        Event.ENGINE_SEEN: State.STARTING,
        Event.DRAIN: State.DRAINING,
    },
    State.STARTING: {
        Event.RANKS_COMPLETE: State.SERVING,
        Event.FAILURE: State.FAILING,
        Event.DRAIN: State.DRAINING,
        Event.GONE: State.RESTARTING,
    },
    State.SERVING: {
        Event.RANKS_COMPLETE: State.SERVING,
        Event.FAILURE: State.FAILING,
        Event.DRAIN: State.DRAINING,
        Event.GONE: State.RESTARTING,
    },
    State.DRAINING: {
        Event.ENGINE_SEEN: State.DRAINING,
        Event.RANKS_COMPLETE: State.DRAINING,
        Event.FAILURE: State.DRAINING,
        Event.DRAIN: State.DRAINING,
        Event.DRAIN_OVER: State.STARTING,
        Event.TERMINATED: State.RESTARTING,  # a kill that had begun before
        Event.GONE: State.RESTARTING,
    },
    State.FAILING: {
        Event.FAILURE: State.FAILING,  # cascade
        Event.DRAIN: State.DRAINING,  # a kill that has begun goes on all the same
        Event.RANKS_COMPLETE: State.SERVING,  # the action did not kill, and the engine mended itself
        Event.TERMINATED: State.RESTARTING,
        Event.GONE: State.RESTARTING,
    },
    State.RESTARTING: {
        Event.ENGINE_SEEN: State.STARTING,
        Event.DRAIN: State.DRAINING,
        Event.TERMINATED: State.RESTARTING,
        Event.GONE: State.RESTARTING,
    },
}


def after(state: State, event: Event) -> State:
    """The state that follows. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event} cannot happen while {state}") from None
