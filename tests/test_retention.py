"""What goes when the dump folder is over a limit, and what never goes."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.model import PodInfo
from sidecar.policy.retention import Kept, Limits, Step, choose, of_another_pod, plan, quota

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


# -- repeats --------------------------------------------------------------------------------------------------------


def repeat(name: str, hours_old: float, size: int = 100, **more) -> Kept:
    """One of a failure that comes again and again; 5 bytes of it stay when it is collapsed."""
    more = {"signature": "again", "core": 5, **more}
    return Kept(id=name, bytes=size, wall=NOW - hours_old * HOUR, sealed=True, **more)


LOOP = [repeat("first", 9), repeat("second", 8), repeat("third", 7), repeat("newest", 6)]


def test_for_bytes_repeats_are_collapsed_before_anything_is_removed():
    """Neither the first of a signature nor its newest, the oldest first, and no more than needed."""
    assert plan(LOOP, limits(size=400)) == []
    assert plan(LOOP, limits(size=399)) == [Step("second", "first")]
    assert plan(LOOP, limits(size=300)) == [Step("second", "first"), Step("third", "first")]


def test_when_collapsing_is_not_enough_repeats_go_before_firsts():
    """However old the first is; and nothing is collapsed that is then removed."""
    other = repeat("other", 99, signature="once")
    assert plan([*LOOP, other], limits(size=205)) == [Step("second"), Step("third"), Step("newest")]
    assert plan([*LOOP, other], limits(size=100)) == [Step(i) for i in ("second", "third", "newest", "other")]


def test_for_the_number_repeats_go_before_firsts():
    other = repeat("other", 99, signature="once")
    assert choose([*LOOP, other], limits(count=3)) == ["second", "third"]
    assert choose([*LOOP, other], limits(count=1)) == ["second", "third", "newest", "other"]


def test_summaries_and_collapsed_ones_are_repeats():
    """However old: what says less goes first, and they are no first of their signature."""
    summary = repeat("summary", 50, signature="short", full=False)
    husk = repeat("husk", 60, collapsed=True, size=5)
    assert choose([*LOOP[:1], summary, husk], limits(count=1)) == ["husk", "summary"]
    assert plan([husk, summary, *LOOP], limits(size=365)) == [Step("second", "first"), Step("third", "first")]


def test_room_that_is_only_wanted_is_made_by_collapsing_alone():
    some = Limits(None, None, None, NOW, wanted=96)
    assert plan(LOOP, some) == [Step("second", "first"), Step("third", "first")]
    assert plan([LOOP[0], LOOP[3]], Limits(None, None, None, NOW, wanted=10**9)) == []


def test_the_age_takes_firsts_too():
    assert plan(LOOP, limits(age=7.5 * HOUR)) == [Step("first"), Step("second")]


def test_another_pods_incidents_go_by_age_alone_and_only_their_bytes_count():
    theirs = [repeat(f"theirs{n}", 20 + n, others=True) for n in range(3)]
    assert choose([*theirs, *LOOP], limits(count=4)) == []
    assert plan(theirs, limits(count=0, size=0)) == []
    assert choose([*theirs, repeat("ours", 1)], limits(size=399)) == ["ours"]
    assert choose(theirs, limits(age=20.5 * HOUR)) == ["theirs2", "theirs1"]


def test_what_is_protected_is_neither_removed_nor_collapsed_and_counts():
    fixed = [repeat(kept.id, 9 - n, protected=True) for n, kept in enumerate(LOOP)]
    assert plan(fixed, limits(count=0, size=0, age=0.0)) == []
    assert plan([*fixed[:2], repeat("loose", 1)], limits(size=205)) == [Step("loose")]


def test_the_quota_of_an_emptydir_is_a_share_of_its_limit():
    """Going over the limit evicts the engine's pod; what else lies there counts towards it."""
    assert quota(None, None) is None
    assert quota(1000, None, 600) == 1000
    assert quota(None, 1000) == 800
    assert quota(500, 1000) == 500
    assert quota(500, 1000, 700) == 100
    assert quota(None, 1000, 900) == 0


def test_whose_an_incident_is():
    """Another pod's: another uid and another name. What had our name before us left its folder to us."""
    ours = PodInfo("prod", "llama-0", "uid-1")
    assert of_another_pod(PodInfo("prod", "llama-1", "uid-2"), ours)
    assert of_another_pod(PodInfo("test", "llama-0", "uid-2"), ours)
    assert not of_another_pod(PodInfo("prod", "llama-0", "uid-2"), ours)
    assert not of_another_pod(PodInfo("prod", "llama-1", "uid-1"), ours)
    assert not of_another_pod(PodInfo(), ours)
    assert not of_another_pod(PodInfo("prod", "llama-1", "uid-2"), PodInfo())


kept_ones = st.lists(
    st.builds(
        Kept,
        id=st.text(max_size=3),
        bytes=st.integers(5, 100),
        wall=st.floats(NOW - 100 * HOUR, NOW + HOUR),
        sealed=st.booleans(),
        signature=st.sampled_from(["", "a", "b"]),
        full=st.booleans(),
        collapsed=st.booleans(),
        core=st.integers(0, 5),
        others=st.booleans(),
        protected=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda incident: incident.id,
)


@given(kept_ones, st.none() | st.integers(0, 12), st.none() | st.integers(0, 600), st.integers(0, 300))
def test_a_first_goes_only_when_no_repeat_is_left(incidents, count, size, wanted):
    """Each incident has at most one step; what may not be touched has none; and where a first of a signature goes
    for number or bytes, every repeat that may go is gone."""
    steps = plan(incidents, Limits(count, size, None, NOW, wanted=wanted))
    by_id = {incident.id: incident for incident in incidents}
    assert len({step.id for step in steps}) == len(steps)

    def loose(incident: Kept) -> bool:
        young = not incident.sealed and abs(NOW - incident.wall) < HOUR
        return not (incident.others or incident.protected or young)

    assert all(loose(by_id[step.id]) for step in steps)
    assert all(by_id[step.id].full and not by_id[step.id].collapsed for step in steps if step.repeat_of)
    removed = {step.id for step in steps if not step.repeat_of}
    whole = [i for i in sorted(incidents, key=lambda i: (i.wall, i.id)) if i.full and not i.collapsed and not i.others]
    firsts = {i.id for i in whole if not i.signature or i is next(j for j in whole if j.signature == i.signature)}
    if removed & firsts:
        assert not [i.id for i in incidents if loose(i) and i.id not in firsts | removed]
    assert not {step.id for step in steps if step.repeat_of} & firsts
