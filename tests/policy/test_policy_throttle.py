"""N incidents an hour in full, then summaries with a count, by what is on the volume."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.model import Reason
from sidecar.policy.signature import signature
from sidecar.policy.throttle import EXEMPT, Earlier, Throttled, throttled

NOW = 1_800_000_000.0


def full(*minutes_ago: float) -> list[Earlier]:
    return [Earlier(f"full{ago}", NOW - ago * 60) for ago in minutes_ago]


def decide(earlier: list[Earlier], limit: int = 2, reason: Reason = Reason.RANK_DIED) -> Throttled | None:
    return throttled(reason, NOW, earlier, limit)


def test_below_the_limit_everything_is_full():
    assert decide([]) is None
    assert decide(full(1)) is None


def test_at_the_limit_it_is_the_first_summary_since_the_last_full_one():
    assert decide(full(9, 5)) == Throttled(2, 1, NOW - 300)


def test_the_count_goes_on_from_the_last_summary_although_others_were_removed():
    earlier = [*full(9, 5), Earlier("seventh", NOW - 60, 7)]
    assert decide(earlier) == Throttled(2, 8, NOW - 300)


def test_summaries_before_the_last_full_one_are_another_row():
    earlier = [*full(50, 5), Earlier("old", NOW - 600, 4)]
    assert decide(earlier) == Throttled(2, 1, NOW - 300)


def test_an_hour_later_it_is_full_again():
    assert decide(full(61, 60)) is None
    assert decide(full(61, 59)) is None
    assert decide(full(59, 58)) is not None


def test_summaries_do_not_count_as_full():
    assert decide([*full(9), Earlier("summary", NOW - 60, 1)]) is None


def test_a_clock_that_was_set_back_does_not_open_the_gate():
    """Ahead by minutes: the clock was set back. Ahead by years: it says nothing about this hour."""
    assert decide(full(-5, -6)) == Throttled(2, 1, NOW + 360)
    assert decide(full(-600_000, -600_000)) is None


def test_what_was_asked_for_is_never_throttled():
    for reason in EXEMPT:
        assert decide(full(9, 5), reason=reason) is None
    assert set(EXEMPT) == {Reason.PRE_STOP, Reason.MANUAL, Reason.PEER_FAILED}


@given(st.lists(st.floats(0, 600), min_size=1, max_size=40), st.integers(1, 6))
def test_a_crash_loop_gives_at_most_n_full_ones_in_any_hour(pauses, limit):
    """Whatever the pauses (seconds to ten minutes): no window of an hour holds more than the limit, the first ones are
    full, and the count rises by one from each summary to the next."""
    seen: list[Earlier] = []
    wall = NOW
    for pause in pauses:
        wall += pause
        said = throttled(Reason.RANK_DIED, wall, seen, limit)
        if said is not None:
            assert said.limit == limit
            assert said.count == (seen[-1].count + 1 if seen[-1].count else 1)
        seen.append(Earlier(str(len(seen)), wall, said.count if said else 0))
    walls = [one.wall for one in seen if not one.count]
    assert all(sum(0 <= other - wall < 3600 for other in walls) <= limit for wall in walls)
    assert [one.count for one in seen[:limit]] == [0] * len(seen[:limit])


def test_a_signature_is_short_and_safe():
    assert signature("RankDied", "sigkill", "3fa9") == "rankdied-sigkill-3fa9"
    assert signature("EngineStalled", "", "") == "enginestalled"
    assert signature("RankDied", "sig/../\n kill", "x" * 500)[:22] == "rankdied-sig_kill-xxxx"
    assert len(signature("RankDied", "", "x" * 500)) == 128
