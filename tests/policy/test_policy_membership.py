"""Who belongs to the engine, and so is frozen and killed with it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.model import Identity, Member
from sidecar.policy.membership import Bounds, Process, closure, group_order

OWN = 900  # Rankguard's root: its pid, its group, its session
UNBOUND = Bounds(excluded=frozenset({OWN}), own_group=OWN)
CONTAINED = Bounds(excluded=frozenset({OWN}), own_group=OWN, own_container="sidecar")


def process(pid: int, ppid: int = 1, pgid: int = 0, sid: int = 0, container: str = "", start: int = 0) -> Process:
    """Without a group or session of its own given, it leads both."""
    return Process(Identity(pid, start or pid * 10), ppid, pgid or pid, sid or pgid or pid, container)


def snapshot(*processes: Process) -> dict[int, Process]:
    return {p.identity.pid: p for p in (process(1, ppid=0), process(OWN), *processes)}


def belong(table: dict[int, Process], *seeds: int, sessions=(), bounds: Bounds = UNBOUND) -> set[int]:
    return closure(table, [table[pid].identity for pid in seeds], sessions, bounds)


class TestWhoBelongs:
    """One rule of the module's docstring a test."""

    def test_the_seed_alone(self):
        assert belong(snapshot(process(10), process(20)), 10) == {10}

    def test_by_its_group(self):
        """A rank's group is the engine's, whichever member of it was found first."""
        table = snapshot(process(10), process(11, pgid=10), process(12, pgid=10), process(20))
        assert belong(table, 10) == belong(table, 12) == {10, 11, 12}

    def test_by_a_member_as_its_parent(self):
        """A child in a session of its own belongs; its children do too. The parent of a member does not."""
        table = snapshot(process(9), process(10, ppid=9), process(11, ppid=10), process(12, ppid=11))
        assert belong(table, 10) == {10, 11, 12}

    def test_by_a_session_that_a_member_leads(self):
        """A group that left the leader's and lost its parent is still in its session."""
        table = snapshot(process(10), process(11, pgid=11, sid=10), process(12, pgid=11, sid=10))
        assert belong(table, 10) == {10, 11, 12}

    def test_a_login_shells_session_makes_nobody_a_member(self):
        """An engine started in somebody's terminal: the shell and its editor are no part of it."""
        shell, editor = process(50), process(51, ppid=50, pgid=51, sid=50)
        table = snapshot(shell, editor, process(60, ppid=50, pgid=60, sid=50), process(61, ppid=60, pgid=60, sid=50))
        assert belong(table, 60) == {60, 61}

    def test_by_a_session_whose_leader_was_a_member_and_is_dead(self):
        """The engine's server is killed and its ranks, in groups of their own, are left to init."""
        table = snapshot(process(61, pgid=61, sid=60), process(62, pgid=62, sid=60))
        assert belong(table, 61) == {61}
        assert belong(table, 61, sessions={60}) == {61, 62}

    def test_by_its_container(self):
        table = snapshot(
            process(10, container="engine"), process(20, container="engine"), process(30, container="other")
        )
        assert belong(table, 10, bounds=CONTAINED) == {10, 20}

    def test_a_plain_host_is_no_container(self):
        """No container at all is not one that all share."""
        assert belong(snapshot(process(10), process(20)), 10) == {10}

    def test_another_process_under_a_used_pid_counts_for_nothing(self):
        """Nor does what belongs to it: the seed died, and its number was given to a stranger."""
        table = snapshot(process(10, start=777), process(11, ppid=10), process(12, pgid=10))
        assert closure(table, [Identity(10, 100)], (), UNBOUND) == set()
        assert closure(table, [Identity(10, 777)], (), UNBOUND) == {10, 11, 12}

    def test_a_seed_that_is_gone(self):
        assert closure(snapshot(), [Identity(10, 100)], (), UNBOUND) == set()

    def test_groups_and_sessions_led_from_outside_the_namespace_are_no_bond(self):
        """Such a group or session reads 0, for all of them."""
        table = {p: Process(Identity(p, p), 0, 0, 0, "") for p in (10, 20, 30)}
        assert belong(table, 10) == {10}

    def test_init_is_nobodys(self):
        """PID 1 as parent, as group or as session binds nobody, and it is never a member, not even as a seed."""
        table = snapshot(process(10, pgid=1, sid=1), process(11, pgid=1, sid=1), process(12))
        assert belong(table, 10) == {10}
        assert belong(table, 1, 10) == {10}


class TestWhoNeverBelongs:
    def test_rankguard_in_the_engines_group(self):
        """Started from one script, without job control, they share a group: that binds nobody."""
        table = snapshot(process(10, pgid=OWN, sid=OWN), process(11, pgid=OWN, sid=OWN), process(12, ppid=10, pgid=OWN))
        assert belong(table, 10) == {10, 12}

    def test_rankguard_as_a_child_of_the_engine(self):
        """Excluded is excluded, as a seed and as a child, and nothing is reached through it."""
        bounds = Bounds(excluded=frozenset({OWN, 21}), own_group=OWN)
        table = snapshot(process(10), process(21, ppid=10), process(22, ppid=21), process(23, pgid=21))
        assert belong(table, 10, 21, bounds=bounds) == {10}

    def test_whatever_shares_rankguards_container(self):
        """A `kubectl exec` into the sidecar is not the engine's, even as a child of it or as a seed."""
        table = snapshot(process(10, container="engine"), process(20, ppid=10, container="sidecar"))
        assert belong(table, 10, 20, bounds=CONTAINED) == {10}

    def test_what_is_outside_the_tree_that_was_asked_for(self):
        """`--root-pid`: neither group nor session nor parent nor container leads out of the tree."""
        table = snapshot(
            process(10, container="c"), process(11, ppid=10, pgid=10, container="c"),
            process(20, pgid=10, container="c"), process(21, ppid=11), process(22, sid=10),
        )  # fmt: skip
        bounds = Bounds(frozenset({OWN}), OWN, only=frozenset({10, 11}))
        assert belong(table, 10, bounds=bounds) == {10, 11}
        assert belong(table, 10, 20, bounds=bounds) == {10, 11}


PIDS = range(1, 13)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[int, Process], list[Identity], set[int], Bounds]:
    """A snapshot that a kernel could give, seeds (some of them stale), sessions, and bounds.

    A living leader of a session is in it, as the kernel has it: a pid stays taken while a session has its number.
    """
    pids = draw(st.sets(st.sampled_from(PIDS)))
    leaders = draw(st.sets(st.sampled_from([0, *PIDS])))
    outside = [sid for sid in [0, *PIDS] if sid in leaders or sid not in pids]
    table = {}
    for pid in sorted(pids):
        sid = pid if pid in leaders else draw(st.sampled_from(outside or [0]))
        table[pid] = Process(
            Identity(pid, draw(st.sampled_from([1, 2]))),
            ppid=draw(st.sampled_from([0, *PIDS])),
            pgid=draw(st.sampled_from([0, *PIDS])),
            sid=sid,
            container=draw(st.sampled_from(["", "", "", "engine", "own"])),
        )
    seeds = [Identity(pid, draw(st.sampled_from([1, 2]))) for pid in draw(st.lists(st.sampled_from(PIDS), max_size=3))]
    bounds = Bounds(
        excluded=draw(st.frozensets(st.sampled_from(PIDS), max_size=3)),
        own_group=draw(st.sampled_from(PIDS)),
        own_container=draw(st.sampled_from(["", "own"])),
        only=draw(st.none() | st.frozensets(st.sampled_from(PIDS), min_size=6)),
    )
    return table, seeds, draw(st.sets(st.sampled_from(PIDS), max_size=2)), bounds


def allowed(process: Process, bounds: Bounds) -> bool:
    pid = process.identity.pid
    inside = bounds.only is None or pid in bounds.only
    own = bounds.own_container != "" and process.container == bounds.own_container
    return pid > 1 and pid not in bounds.excluded and inside and not own


def bound_to(other: Process, member: Process, members: set[int], sessions: set[int], bounds: Bounds) -> bool:
    """Whether `other` belongs because `member` does: the module's rules, said once more."""
    by_group = other.pgid == member.pgid and member.pgid > 1 and member.pgid != bounds.own_group
    led_by_a_member = member.sid in sessions or member.sid in members
    by_session = other.sid == member.sid and member.sid > 1 and led_by_a_member
    return (
        other.ppid == member.identity.pid
        or by_group
        or by_session
        or (other.container == member.container and member.container not in ("", bounds.own_container))
    )


def by_the_rules(table: dict[int, Process], seeds: list[Identity], sessions: set[int], bounds: Bounds) -> set[int]:
    """The closure, the slow and plain way: add whoever belongs until nobody does."""
    members = {i.pid for i in seeds if i.pid in table and table[i.pid].identity == i and allowed(table[i.pid], bounds)}
    while True:
        found = {
            pid
            for pid, other in table.items()
            if allowed(other, bounds) and any(bound_to(other, table[m], members, sessions, bounds) for m in members)
        }
        if found <= members:
            return members
        members |= found


@given(worlds())
def test_the_closure_is_what_the_rules_say(world):
    assert closure(*world) == by_the_rules(*world)


@given(worlds())
def test_nobody_who_must_not_is_ever_a_member(world):
    """PID 1, the excluded, our own container, what is outside the bound, who is not there."""
    table, _, _, bounds = world
    for pid in closure(*world):
        assert allowed(table[pid], bounds)


@given(worlds())
def test_the_members_members_are_the_members(world):
    """Idempotent: taking all of them as seeds finds nobody new."""
    table, _, sessions, bounds = world
    members = closure(*world)
    assert closure(table, [table[pid].identity for pid in members], sessions, bounds) == members


@given(worlds(), st.lists(st.builds(Identity, st.sampled_from(PIDS), st.sampled_from([1, 2])), max_size=3))
def test_a_further_seed_never_frees_anybody(world, further):
    """Monotone in seeds: the freeze looks again and again with more, and must not lose whom it has stopped."""
    table, seeds, sessions, bounds = world
    assert closure(table, seeds, sessions, bounds) <= closure(table, [*seeds, *further], sessions, bounds)


@given(worlds())
def test_the_order_of_seeds_and_processes_does_not_matter(world):
    table, seeds, sessions, bounds = world
    backwards = dict(reversed(table.items()))
    assert closure(backwards, list(reversed(seeds)), sessions, bounds) == closure(*world)


@given(worlds())
def test_stale_seeds_alone_find_nobody(world):
    """With every start time wrong, nothing belongs."""
    table, seeds, sessions, bounds = world
    stale = [Identity(i.pid, i.start + 10) for i in seeds]
    assert closure(table, stale, sessions, bounds) == set()


# --- the order of groups


def members_of(table: dict[int, Process], *pids: int) -> list[Member]:
    return [Member(table[p].identity, table[p].pgid, table[p].sid, table[p].ppid) for p in pids]


ENGINE = snapshot(
    process(10),
    process(11, ppid=10, pgid=10),
    process(30, ppid=10),
    process(31, ppid=30, pgid=30),
    process(20, ppid=10),
)


def test_the_servers_group_comes_last():
    """Killing it first would orphan the others' groups, and the kernel would wake their stopped members."""
    members = members_of(ENGINE, 10, 11, 20, 30, 31)
    assert group_order(members, ENGINE, [10], OWN) == (20, 30, 10)
    assert group_order(members, ENGINE, [20], OWN) == (10, 30, 20)
    assert group_order(members, ENGINE, [10, 20], OWN) == (30, 10, 20)


def test_a_group_with_a_stranger_is_left_out():
    """Its members are signalled one by one: a signal to the group would reach the stranger."""
    assert group_order(members_of(ENGINE, 10, 11, 20, 30), ENGINE, [10], OWN) == (20, 10)
    assert group_order(members_of(ENGINE, 10, 30, 31), ENGINE, [10], OWN) == (30,)


def test_our_own_group_and_inits_are_no_groups():
    table = snapshot(process(10, pgid=OWN), process(11, pgid=1), process(12, pgid=10))
    assert group_order(members_of(table, 10, 11, 12), table, [], OWN) == (10,)
    alone = {p.identity.pid: p for p in (process(10, pgid=OWN), Process(Identity(11, 1), 1, 0, 0))}
    assert group_order(members_of(alone, 10, 11), alone, [], OWN) == ()


def test_a_server_that_is_gone_puts_nothing_last():
    assert group_order(members_of(ENGINE, 20, 30, 31), ENGINE, [999], OWN) == (20, 30)


@given(worlds(), st.sets(st.sampled_from(PIDS)))
@example(({}, [], set(), UNBOUND), {5})
def test_only_whole_groups_each_once_servers_last(world, servers):
    table, _, _, bounds = world
    members = members_of(table, *sorted(closure(*world)))
    ours = {m.identity.pid for m in members}
    order = group_order(members, table, servers, bounds.own_group)
    assert len(set(order)) == len(order)
    for group in order:
        assert group > 1
        assert group != bounds.own_group
        assert {pid for pid, p in table.items() if p.pgid == group} <= ours
    last = {table[pid].pgid for pid in servers if pid in table}
    assert [group in last for group in order] == sorted(group in last for group in order)
    left_out = {m.pgid for m in members} - set(order) - {0, 1, bounds.own_group}
    assert all(any(p.pgid == group and pid not in ours for pid, p in table.items()) for group in left_out)
