"""How ranks and what they do are put into words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.policy.stacks import Kind, Spot, place_of, waits_for_device
from sidecar.recorder.analysis.evidence import Case, Motion, Rank
from sidecar.recorder.analysis.rank_sets import Ranks

_BUSY = 0.15  # of a core: it computes, or spins, on a machine that may have others to serve
_SOME = 0.02  # of a core, for one that the kernel says wants to run
_FEW_WAKES = 12  # py-spy itself, which stops and continues a thread, makes three or four
_MOST_GROUPS = 3

# What the kernel holds a sleeping thread in, by the beginning of the function's name.
_HELD = (
    (("futex",), "waiting for a lock"),
    (("pipe_read", "anon_pipe_read", "pipe_wait"), "reading from an empty pipe"),
    (("pipe_write", "anon_pipe_write"), "writing to a pipe that nobody reads"),
    (("fifo_open", "wait_for_partner"), "opening a pipe whose other end nobody opens"),
    (("hrtimer_nanosleep", "do_nanosleep", "common_nsleep"), "sleeping"),
    (("inet_csk_accept",), "waiting for a connection"),
    (("inet_stream_connect", "inet_wait_for_connect"), "connecting to somebody who does not answer"),
    (("sk_wait_data", "tcp_recvmsg", "wait_woken", "__skb_wait_for_more_packets", "unix_stream_read_generic"),
     "waiting for data from a socket"),
    (("do_wait", "kernel_waitid"), "waiting for a child process"),
    (("flock_lock", "posix_lock", "locks_lock"), "waiting for a file lock"),
)  # fmt: skip


def motion(rank: Rank) -> Motion:
    """What its main thread did between the two snapshots."""
    if rank.first is None or rank.second is None:
        return Motion.UNKNOWN
    if rank.first.key != rank.second.key:
        return Motion.MOVED
    if rank.cpu is not None and (rank.cpu >= _BUSY or (rank.state == "R" and rank.cpu >= _SOME)):
        return Motion.SPUN
    if rank.wakes is not None and rank.wakes <= _FEW_WAKES:
        return Motion.STILL
    return Motion.SAME


def place(spot: Spot) -> str:
    """`all_reduce` for what every rank calls by that name, else `tokenizer.encode`: the file and the function."""
    function, _, where = spot.name.partition(" (")
    if spot.kind is Kind.COLLECTIVE:
        return function
    stem = where.partition(":")[0].removesuffix("/__init__.py").removesuffix(".py")
    return f"{stem}.{function}" if stem.isidentifier() else function


def does(spot: Spot) -> str:
    """What a rank does there, to follow `TP5 `; `is` and `waits` are made plural by `several`."""
    if spot.kind is Kind.IDLE:
        return "waits for requests"
    if spot.kind is Kind.COMPILE:
        return f"is compiling or loading in {place(spot)}"
    if spot.kind is Kind.COLLECTIVE:
        return f"waits in {place(spot)}"
    if waits_for_device(spot):
        return "waits for its GPU"
    return f"waits in {place(spot)}" if spot.kind is Kind.WAIT else f"is in {place(spot)}"


def how(rank: Rank, case: Case) -> str:
    """What is known of its standing there, to follow a comma; "" for nothing."""
    said = []
    if rank.state in ("T", "t") and not case.frozen:
        return "stopped by a debugger" if rank.state == "t" else "stopped by a signal"
    moved = motion(rank)
    if moved is Motion.MOVED:
        return "and moves"
    if moved is Motion.SAME and rank.wakes is not None:
        return f"there in both snapshots, {case.apart:.0f} s apart, and running in between"
    if moved in (Motion.STILL, Motion.SPUN, Motion.SAME):
        said.append(f"not moving for {case.apart:.0f} s" if case.apart >= 1 else "not moving")
    if rank.state == "D" and not case.frozen:
        said.append(f"held by the kernel{f' in {rank.wchan}' if rank.wchan else ''}")
    elif moved is Motion.STILL and (held := held_in(rank.wchan)) and rank.spot and rank.spot.kind is Kind.RUN:
        said.append(held)
    if moved is Motion.SPUN and rank.cpu is not None:
        said.append(f"using {rank.cpu:.1f} cores" if rank.cpu > 1.5 else f"using {min(1.0, rank.cpu):.0%} of a core")
    if rank.holder:
        said.append(
            "holding the GIL" if rank.holder.startswith("MainThread ") else f"with the GIL held by {rank.holder}"
        )
    return ", ".join(said)


def held_in(wchan: str) -> str:
    """`waiting for a lock`, or "" where the function's name says nothing to people."""
    return next((words for names, words in _HELD if wchan.startswith(names)), "")


def count(some: Sequence[Rank], everybody: int, ranks: Ranks) -> str:
    """`All 8 ranks`, `7 of 8 ranks`, or who it is where it is one."""
    if len(some) == everybody and everybody > 1:
        return f"All {everybody} ranks" if everybody > 2 else "Both ranks"
    if len(some) == 1:
        return some[0].label
    return f"{len(some)} of {everybody} ranks" if everybody > len(some) else ranks.shown(of(some, ranks))


def of(some: Iterable[Rank], ranks: Ranks) -> int:
    return ranks.of(rank.label for rank in some)


def several(said: str, number: int) -> str:
    """`is in x` of one, `are in x` of more."""
    if number == 1:
        return said
    for one, more in (("is ", "are "), ("waits ", "wait "), ("was ", "were ")):
        if said.startswith(one):
            return more + said.removeprefix(one)
    return said


def past(said: str) -> str:
    for now, before in (("is ", "was "), ("are ", "were "), ("waits ", "waited "), ("wait ", "waited ")):
        if said.startswith(now):
            return before + said.removeprefix(now)
    return said


def groups(some: Iterable[Rank]) -> list[list[Rank]]:
    """Those that stand in the same place together, the largest group first. Only for ranks that have a place."""
    found: dict[tuple[str, str], list[Rank]] = {}
    for rank in some:
        if rank.spot is not None:
            found.setdefault((rank.spot.kind, does(rank.spot)), []).append(rank)
    return sorted(found.values(), key=len, reverse=True)


def callers(some: Iterable[Rank]) -> list[list[Rank]]:
    """Those that came to the same place the same way."""
    found: dict[str, list[Rank]] = {}
    for rank in some:
        if rank.spot is not None:
            found.setdefault(place_of(rank.spot), []).append(rank)
    return sorted(found.values(), key=len, reverse=True)


def each(some: Sequence[Rank], case: Case, ranks: Ranks, before: bool = False) -> str:
    """`TP5 is in tokenizer.encode, not moving for 6 s`, for a few groups. `before`: where only, in the past tense."""
    found: dict[str, list[Rank]] = {}
    for rank in some:
        if rank.spot is None:
            continue
        what = "" if before else how(rank, case)
        found.setdefault(f"{does(rank.spot)}{f', {what}' if what else ''}", []).append(rank)
    rows = sorted(found.items(), key=lambda row: len(row[1]), reverse=True)
    said = []
    for what, who in rows[:_MOST_GROUPS]:
        words = several(what, len(who))
        said.append(f"{ranks.shown(of(who, ranks))} {past(words) if before else words}")
    left = sum(len(who) for _, who in rows[_MOST_GROUPS:])
    return "; ".join(said) + (f"; {left} more elsewhere" if left else "")
