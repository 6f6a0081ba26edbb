"""Which processes belong to the engine, and so are frozen and killed with it. Pure: a snapshot in, a set out.

A process belongs by its group, by a session that a member leads, by a member as its parent, or by its container.
A session whose leader is no member (somebody's login shell) makes nobody a member. Excluded, whatever else holds:
PID 1, kernel threads, and Rankguard's own processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sidecar.model import Identity, Member


@dataclass(frozen=True, slots=True)
class Process:
    """One process in a snapshot. `container` is "" on a host without containers."""

    identity: Identity
    ppid: int
    pgid: int
    sid: int
    container: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may never be taken in. `only` (a set of pids) bounds everything to one tree; None for no such bound."""

    excluded: frozenset[int]
    own_group: int
    own_container: str = ""
    only: frozenset[int] | None = None


def closure(
    snapshot: Mapping[int, Process],
    seeds: Collection[Identity],
    engine_sessions: Collection[int],
    bounds: Bounds,
) -> set[int]:
    """The pids of all members: the seeds still alive in the snapshot, and everything that belongs to them.

    `engine_sessions` are sessions known to have been led by a member that may be dead by now. A seed whose start time
    does not match is another process under the same pid and counts for nothing, nor does what belongs to it.
    """
    by_parent: dict[int, list[int]] = defaultdict(list)
    by_group: dict[int, list[int]] = defaultdict(list)
    by_session: dict[int, list[int]] = defaultdict(list)
    by_container: dict[str, list[int]] = defaultdict(list)
    for pid, process in snapshot.items():
        if not _allowed(process, bounds):
            continue
        by_parent[process.ppid].append(pid)
        by_group[process.pgid].append(pid)
        by_session[process.sid].append(pid)
        by_container[process.container].append(pid)

    members: set[int] = set()
    queue = [
        i.pid
        for i in seeds
        if i.pid in snapshot and snapshot[i.pid].identity == i and _allowed(snapshot[i.pid], bounds)
    ]
    while queue:
        pid = queue.pop()
        if pid in members:
            continue
        members.add(pid)
        process = snapshot[pid]
        queue += by_parent[pid]
        # With a bound to one tree, a shared group or session must not carry us out of it; _allowed keeps us inside.
        # A group or session of 0 is one whose leader is outside the PID namespace: no bond between two processes.
        if process.pgid > 1 and process.pgid != bounds.own_group:
            queue += by_group[process.pgid]
        if process.sid > 1 and (process.sid == pid or process.sid in engine_sessions or process.sid in members):
            queue += by_session[process.sid]
        if process.container and process.container != bounds.own_container:
            queue += by_container[process.container]
    return members


def _allowed(process: Process, bounds: Bounds) -> bool:
    pid = process.identity.pid
    if pid <= 1 or pid in bounds.excluded:
        return False
    if bounds.own_container and process.container == bounds.own_container:
        return False
    return bounds.only is None or pid in bounds.only


def group_order(members: Collection[Member], snapshot: Mapping[int, Process], server_pids: Collection[int],
                own_group: int) -> tuple[int, ...]:  # fmt: skip
    """The groups to signal as a whole, stragglers first, the servers' groups last.

    Killing a group's leader first would make the kernel send SIGHUP and SIGCONT to members of other groups that it
    orphans while they are stopped. A group that also holds somebody who is no member is left out: its members are
    then signalled one by one.
    """
    ours = {m.identity.pid for m in members}
    groups = {m.pgid for m in members} - {own_group, 0, 1}
    foreign = {p.pgid for pid, p in snapshot.items() if pid not in ours}
    last = {snapshot[pid].pgid for pid in server_pids if pid in snapshot}
    whole = groups - foreign
    return (*sorted(whole - last), *sorted(whole & last))
