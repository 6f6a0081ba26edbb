"""A death is seen by every way that a kernel may have, and its exit status is known or said to be unknown."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from guard_troupe import Troupe
from guard_watch import ALL_MASKS, Lookout, mask_name
from sidecar_process import PROC, eventually, kill_identity, running, state_of

from sidecar.model import ExitStatus, Identity, ProcessExited, ProcessExiting, ProcessReaped

every_kernel = pytest.mark.parametrize("masked", ALL_MASKS, ids=mask_name)

ENDS = {
    "sigkill": ("", signal.SIGKILL, ExitStatus(signal=9)),
    "sigsegv": ("", signal.SIGSEGV, ExitStatus(signal=11)),
    "exit 1": ("signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))", signal.SIGUSR1, ExitStatus(code=1)),
    "exit 0": ("signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))", signal.SIGUSR1, ExitStatus(code=0)),
}
THREADS = "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(3)]"


@contextmanager
def child_of(leader: str, act: str, before: str = "") -> Iterator[tuple[Troupe, Identity]]:
    """One process that does `act`, under a parent that does `leader` after it forked. `before` it is announced."""
    with Troupe(f"def act():\n {THREADS}\n {before or 'pass'}\n say('ready')\n {act}\nfork(act)\n{leader}") as troupe:
        troupe.await_labels("ready")
        yield troupe, troupe.identities["ready"]


def holds_nothing(identity: Identity) -> bool:
    stat = PROC.stat(identity.pid)
    return stat is not None and stat.zombie and not stat.holds_resources


@every_kernel
@pytest.mark.parametrize("end", ENDS)
def test_each_death_is_seen_with_its_status(masked: tuple[str, ...], end: str) -> None:
    """Exited while it is a zombie, reaped once its parent has collected it: each once, and the status is right."""
    before, number, status = ENDS[end]
    with child_of("order(); os.wait(); wait()", "wait()", before) as (troupe, identity), Lookout(masked) as lookout:
        lookout.watch(identity)
        assert lookout.seen == []
        kill_identity(identity, number)
        exited = lookout.until(ProcessExited)
        assert (exited.identity, exited.status.code, exited.status.signal) == (identity, status.code, status.signal)
        assert not any(isinstance(seen, ProcessReaped) for seen in lookout.seen), "nobody has collected it"
        troupe.order("collect")
        reaped = lookout.until(ProcessReaped)
        assert (reaped.status.code, reaped.status.signal) == (status.code, status.signal)
        lookout.look(0.05)
        kinds = [type(seen) for seen in lookout.seen]
        assert kinds in ([ProcessExiting, ProcessExited, ProcessReaped], [ProcessExited, ProcessReaped])
        if "pidfd" in masked:
            assert all(seen.seen_by == "stat" for seen in lookout.seen if not isinstance(seen, ProcessReaped))


@every_kernel
def test_a_parent_that_reaps_at_once(masked: tuple[str, ...]) -> None:
    """With no zombie ever looked at, the death is seen; the status is right, or unknown and says why, and never 0."""
    with child_of("order(); os.wait(); wait()", "wait()") as (troupe, identity), Lookout(masked) as lookout:
        lookout.watch(identity)
        # Dead and collected while the observer does not look: all that is left is what a kernel keeps.
        kill_identity(identity)
        troupe.order("collect")
        eventually(lambda: state_of(identity) is None, "collected")
        reaped = lookout.until(ProcessReaped)
        if lookout.features.pidfd_info:
            assert reaped.status == ExitStatus(signal=9)
        else:
            assert not reaped.status.known
            assert "reaped before" in reaped.status.why_unknown
        assert lookout.until(ProcessExited).status == reaped.status


@every_kernel
def test_a_parent_that_never_reaps(masked: tuple[str, ...]) -> None:
    """A zombie is an exit and no reaping, however long it stays, and its descriptors do not wake anybody again."""
    with child_of("wait()", "wait()") as (_, identity), Lookout(masked) as lookout:
        lookout.watch(identity)
        kill_identity(identity)
        assert lookout.until(ProcessExited).status == ExitStatus(signal=9)
        lookout.look(0.05)
        assert lookout.epoll.poll(0.3) == [], "a level-triggered pidfd of a zombie would spin a core"
        assert state_of(identity) == "Z"
        assert not any(isinstance(seen, ProcessReaped) for seen in lookout.seen)


@every_kernel
def test_a_zombie_leader_whose_threads_still_run(masked: tuple[str, ...]) -> None:
    """The main thread has ended, another runs on: exiting, but not exited, since everything is still held."""
    act = "from sidecar.demo.seat import end_main_thread; order(); end_main_thread()"
    with child_of("wait()", act) as (troupe, identity), Lookout(masked) as lookout:
        lookout.watch(identity)
        troupe.order("end")
        exiting = lookout.until(ProcessExiting)
        assert exiting.identity == identity
        assert state_of(identity) == "Z"
        lookout.look(0.05)
        assert [type(seen) for seen in lookout.seen] == [ProcessExiting]
        kill_identity(identity)
        assert lookout.until(ProcessExited).identity == identity


@pytest.mark.parametrize(
    ("masked", "seen_by"), [((), "thread pidfd"), (("thread_pidfd",), "stat"), (("pidfd",), "stat")]
)
def test_a_rank_with_1_gib_is_seen_exiting_before_its_pidfd_says_so(masked: tuple[str, ...], seen_by: str) -> None:
    """The kernel takes memory down first and tells pidfds last; thread pidfds and the held stat know at once."""
    act = "from sidecar.demo.seat import touched; memory = touched(2**30); say('grown'); wait()"
    with child_of("wait()", act) as (troupe, identity), Lookout(masked) as lookout:
        troupe.await_labels("grown", timeout=60)
        bare = os.pidfd_open(identity.pid)
        try:
            lookout.watch(identity)
            kill_identity(identity)
            while not lookout.seen:
                lookout.look(0.005, stats=seen_by == "stat")
            readable = select.select([bare], [], [], 0)[0]
            first = lookout.seen[0]
            assert isinstance(first, ProcessExiting)
            assert first.seen_by == seen_by
            assert first.status == ExitStatus(signal=9), "the status is known long before wait(2) tells it"
            assert not readable, "the bare pidfd already says it"
            assert lookout.until(ProcessExited).identity == identity
        finally:
            os.close(bare)


@every_kernel
def test_a_process_that_is_dead_already(masked: tuple[str, ...]) -> None:
    """A rank that dies between being found and being watched is told of at once."""
    with child_of("wait()", "wait()") as (_, identity), Lookout(masked) as lookout:
        kill_identity(identity)
        eventually(lambda: holds_nothing(identity), "a zombie without threads")
        lookout.watch(identity)
        assert [(type(seen), seen.status) for seen in lookout.seen] == [(ProcessExited, ExitStatus(signal=9))]


@every_kernel
def test_another_process_under_a_used_pid_is_not_watched(masked: tuple[str, ...]) -> None:
    """An identity whose start time differs is a process that is gone: its pid's new owner is not taken for it."""
    with child_of("wait()", "wait()") as (_, identity), Lookout(masked) as lookout:
        former = Identity(identity.pid, identity.start - 1)
        lookout.watch(former)
        assert [type(seen) for seen in lookout.seen] == [ProcessExited, ProcessReaped]
        assert lookout.exits.pidfd_of(former) == -1
        assert not lookout.seen[0].status.known
        assert running(identity)
