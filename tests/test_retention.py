"""What goes when the dump folder is over a limit, and what never goes."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.retention import Kept, Limits, choose

NOW = 1_800_000_000.0
HOUR = 3600.0


def kept(name: str, hours_old: float, size: int = 10, sealed: bool = True) -> Kept:
    return Kept(id=name, bytes=size, wall=NOW - hours_old * HOUR, sealed=sealed)


def limits(count: int | None = None, size: int | None = None, age: float | None = None) -> Limits:
    return Limits(max_count=count, max_bytes=size, max_age=age, now=NOW)


THREE = [kept("young", 1), kept("old", 30), kept("middle", 10)]


def test_without_limits_nothing_goes():
    assert choose(THREE, limits()) == []


def test_the_count_takes_the_oldest_first_whatever_the_order_given():
    assert choose(THREE, limits(count=2)) == ["old"]
    assert choose(THREE, limits(count=1)) == ["old", "middle"]
    assert choose(THREE, limits(count=0)) == ["old", "middle", "young"]


def test_the_bytes_take_no_more_than_needed():
    assert choose(THREE, limits(size=30)) == []
    assert choose(THREE, limits(size=29)) == ["old"]
    assert choose(THREE, limits(size=20)) == ["old"]
    assert choose(THREE, limits(size=19)) == ["old", "middle"]


def test_the_age_takes_only_what_is_older():
    assert choose(THREE, limits(age=30 * HOUR)) == []
    assert choose(THREE, limits(age=29 * HOUR)) == ["old"]
    assert choose(THREE, limits(age=1 * HOUR)) == ["old", "middle"]


def test_an_incident_that_is_still_being_written_stays_and_still_counts():
    """An unsealed incident younger than the protection survives any limit; an older sealed one goes in its place."""
    writing = kept("writing", 0.5, size=1000, sealed=False)
    assert choose([kept("old", 5), writing], limits(count=1)) == ["old"]
    assert choose([kept("old", 5), writing], limits(size=10)) == ["old"]
    assert choose([writing], limits(count=0, size=0, age=0.0)) == []


def test_a_protected_incident_does_not_shield_younger_ones():
    writing = kept("writing", 0.9, sealed=False)
    assert choose([writing, kept("done", 0.1)], limits(count=1)) == ["done"]


def test_an_abandoned_unsealed_incident_goes_like_any_other():
    assert choose([kept("abandoned", 1.0, sealed=False), kept("new", 0.1)], limits(count=1)) == ["abandoned"]


def test_a_clock_that_jumped():
    """An unsealed record dated half an hour ahead may be the one being written now; one dated years ahead is not."""
    assert choose([kept("ahead", -0.5, sealed=False)], limits(count=0)) == []
    assert choose([kept("far", -10_000, sealed=False)], limits(count=0)) == ["far"]


@given(
    st.lists(
        st.builds(
            Kept,
            id=st.text(max_size=3),
            bytes=st.integers(0, 100),
            wall=st.floats(NOW - 100 * HOUR, NOW + HOUR),
            sealed=st.booleans(),
        ),
        max_size=12,
        unique_by=lambda incident: incident.id,
    ),
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 600),
    st.none() | st.floats(0, 100 * HOUR),
)
def test_the_limits_hold_afterwards_and_nothing_goes_without_need(incidents, count, size, age):
    """After the removal every limit holds, or only protected incidents are left to remove; and the youngest that went
    was still needed: without its removal some limit would not hold."""
    bounds = limits(count, size, age)
    gone = choose(incidents, bounds)
    by_id = {incident.id: incident for incident in incidents}
    assert sorted(gone, key=lambda name: (by_id[name].wall, name)) == gone

    def protected(incident: Kept) -> bool:
        return not incident.sealed and abs(NOW - incident.wall) < HOUR

    def holds(left: list[Kept]) -> bool:
        return (
            (count is None or len(left) <= count)
            and (size is None or sum(i.bytes for i in left) <= size)
            and (age is None or all(NOW - i.wall <= age for i in left if not protected(i)))
        )

    left = [incident for incident in incidents if incident.id not in gone]
    assert not any(protected(by_id[name]) for name in gone)
    assert holds(left) or all(protected(incident) for incident in left)
    if gone:
        assert not holds([*left, by_id[gone[-1]]])
