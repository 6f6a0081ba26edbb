"""Containers that end: which SIGKILL is the runtime's, after a stop, and which one is a failure all the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guard_pod import Container, Pod, pod
from sidecar_process import Sidecar, eventually, identity_of, kill_identity, state_of

pytestmark = pytest.mark.root

SERVER, TP0, TP1 = "sglang::http_server", "sglang::scheduler_TP0", "sglang::scheduler_TP1"
ENGINE = f"setproctitle({SERVER!r})\nrank('TP0')\nrank('TP1')\n"
# As vLLM's does: a rank has ended, so it leaves with 0.
LEAVES = ENGINE + "os.waitpid(-1, 0)\nos._exit(0)"
WAITS = ENGINE + "wait()"
ALONE = f"setproctitle({TP1!r})\nwait()"
# How the guard learns of an end, and whether it sees one after the other or all of it at once.
KERNELS = [
    pytest.param((), False, id="all features-as it happens"),
    pytest.param((), True, id="all features-all at once"),
    pytest.param(("thread_pidfd",), True, id="without thread_pidfd-all at once"),
    pytest.param(("pidfd_hup",), False, id="without pidfd_hup-as it happens"),
]


@contextmanager
def beside(made: Pod, folder: Path, *flags: str, masked: tuple[str, ...] = ()) -> Iterator[Sidecar]:
    """A sidecar in a container of its own, that watches the whole namespace."""
    told = ["--expected-ranks", "2", "--captures", "process", "--exit-grace", "30", *flags]
    told += ["--mask-features", ",".join(masked)] if masked else []
    with Sidecar(folder / "dumps", *told, prefix=made.container().prefix) as sidecar:
        yield sidecar.wait_serving()


@contextmanager
def guard_kept_from_looking(sidecar: Sidecar, delayed: bool) -> Iterator[None]:
    """As on a machine that gives it no processor: all that happens meanwhile it sees at once."""
    guard = identity_of(sidecar.worker("guard"))
    if delayed:
        kill_identity(guard, signal.SIGSTOP)
        eventually(lambda: state_of(guard) == "T", "the guard stopped")
    try:
        yield
    finally:
        kill_identity(guard, signal.SIGCONT)


def failed(record: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    return {failure["rank"]: (failure["cause"], failure["signal"]) for failure in record["failures"]}


@pytest.mark.parametrize(("masked", "delayed"), KERNELS)
def test_a_stop(tmp_path: Path, masked: tuple[str, ...], delayed: bool) -> None:
    """The server leaves by SIGTERM, the shell with 0, and the runtime kills the ranks: nobody failed."""
    with pod(tmp_path) as made:
        container, entrypoint = made.engine(WAITS, "exit 0")
        with beside(made, tmp_path, masked=masked) as sidecar:
            with guard_kept_from_looking(sidecar, delayed):
                kill_identity(container.titled(SERVER), signal.SIGTERM)
                assert entrypoint.wait(20) == 0
                container.end()
            sidecar.wait("engine stopped")
            assert sidecar.events("rank died") == []
            assert sidecar.incidents() == []


@pytest.mark.parametrize(("masked", "delayed"), KERNELS)
def test_a_rank_that_was_killed_and_all_others_left_as_in_a_stop(
    tmp_path: Path, masked: tuple[str, ...], delayed: bool
) -> None:
    """The server hides it behind an exit of 0, and so does the shell; the rank is the failure, and the first."""
    with pod(tmp_path) as made:
        container, entrypoint = made.engine(LEAVES, "exit 0")
        with beside(made, tmp_path, "--on-rank-death", "capture", masked=masked) as sidecar:
            with guard_kept_from_looking(sidecar, delayed):
                kill_identity(container.titled(TP1))
                if delayed:
                    assert entrypoint.wait(20) == 0
                    container.end()
            record = sidecar.incident()
            first = [failure for failure in record["failures"] if failure["first"]]
            assert [(f["rank"], f["cause"]) for f in first] == [("TP1", "sigkill")]
            assert record["reason"] == "RankDied"


@pytest.mark.parametrize("status", ["exit 1", "kill -KILL $$", "kill -SEGV $$"])
def test_an_entrypoint_that_fails(tmp_path: Path, status: str) -> None:
    """It takes its ranks with it: that was no stop, however its server left."""
    with pod(tmp_path) as made:
        container, entrypoint = made.engine(WAITS, status)
        with beside(made, tmp_path) as sidecar:
            kill_identity(container.titled(SERVER), signal.SIGTERM)
            assert entrypoint.wait(20) != 0
            container.end()
            # The first to be seen; the others may be ours by then.
            assert ("sigkill", 9) in failed(sidecar.incident()).values()


@pytest.mark.parametrize("since", ["before the sidecar", "after it"])
def test_what_was_brought_in_is_no_entrypoint(tmp_path: Path, since: str) -> None:
    """`kubectl exec` has no parent in the namespace either. That it has left explains no death."""
    with pod(tmp_path) as made:
        container, _ = made.engine(WAITS, "exit 0")
        container.titled(TP1)
        brought = [container.start("cat")] if since == "before the sidecar" else []
        with beside(made, tmp_path) as sidecar:
            brought = brought or [container.start("cat")]
            assert brought[0].stdin is not None
            brought[0].stdin.close()
            assert brought[0].wait(20) == 0
            kill_identity(container.titled(TP1))
            assert failed(sidecar.incident())["TP1"] == ("sigkill", 9)


def test_a_stop_of_one_container_explains_nothing_in_another(tmp_path: Path) -> None:
    """A rank of the other one is killed in that moment: a failure."""
    with pod(tmp_path) as made:
        first, entrypoint = made.engine(f"setproctitle({SERVER!r})\nrank('TP0')\nwait()", "exit 0")
        second: Container = made.engine(ALONE, "exit 0")[0]
        with beside(made, tmp_path) as sidecar:
            kill_identity(first.titled(SERVER), signal.SIGTERM)
            assert entrypoint.wait(20) == 0
            first.end()
            kill_identity(second.titled(TP1))
            assert failed(sidecar.incident())["TP1"] == ("sigkill", 9)
