"""What the verdict makes of recordings of real processes: see record_cases.py and scenes.py for what they do.

Each row is what a person who knows the scene would say: what it was, who stands apart, and words that the sentence must
have. The share that comes out right is asserted, and that no healthy engine is ever called stuck.
"""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import pytest
from recorded import case, explained, names

from sidecar.recorder.analysis import flight
from sidecar.recorder.analysis.evidence import Behind, Confidence, Judgement

STUCK, DIED, BUSY = Judgement.STUCK, Judgement.DIED, Judgement.BUSY
EXPECTED: dict[str, tuple[Judgement, tuple[str, ...], tuple[str, ...]]] = {
    "lock": (STUCK, ("TP2",), ("2 of 3 ranks wait in all_reduce", "TP2 is in scenes.wait_for_a_lock", "not moving")),
    "four-ranks-one-asleep": (STUCK, ("TP1",), ("3 of 4 ranks wait in all_reduce", "sleep_for_ever", "sleeping")),
    "pipe": (STUCK, ("TP1",), ("read_a_pipe", "reading from an empty pipe")),
    "socket": (STUCK, ("TP0",), ("read_a_socket", "waiting for data from a socket")),
    "fifo": (STUCK, ("TP2",), ("open_a_fifo", "opening a pipe")),
    "file-lock": (STUCK, ("TP1",), ("lock_a_file", "waiting for a file lock")),
    "full-pipe": (STUCK, ("TP1",), ("write_to_a_full_pipe", "writing to a pipe")),
    "queue": (STUCK, ("TP1",), ("2 of 3 ranks wait in all_reduce", "TP1 waits in queue.get")),
    "child": (STUCK, ("TP2",), ("TP2 waits in subprocess.",)),
    "gil-held-asleep": (STUCK, ("TP1",), ("hold_the_gil_asleep", "holding the GIL")),
    "gil-held-busy": (STUCK, ("TP1",), ("TP1 is in re.match", "of a core", "holding the GIL")),
    "deadlock-of-two-locks": (STUCK, ("TP1",), ("TP1 is in scenes.take", "waiting for a lock")),
    "loop-on-one-line": (STUCK, ("TP2",), ("loop_on_one_line", "of a core")),
    "loop-over-lines": (BUSY, ("TP2",), ("2 of 3 ranks wait in all_reduce", "loop_over_lines, and moves")),
    "mismatched-collective": (STUCK, ("TP2",), ("different collectives", "TP2 waits in broadcast")),
    "mismatched-barrier": (STUCK, ("TP1",), ("different collectives", "all_gather", "TP1 waits in barrier")),
    "two-groups-crossed": (STUCK, ("TP1",), ("different places", "TP1 from attention")),
    "pipeline": (STUCK, ("TP2",), ("2 of 3 ranks wait in recv", "TP2 is in scenes.wait_for_a_lock")),
    "one-early": (STUCK, ("TP1", "TP2"), ("TP0 waits in all_reduce", "TP1-2 are in scenes.read_a_socket")),
    "late-rank-elsewhere": (STUCK, (), ("All 3 ranks wait in all_reduce", "does not show")),
    "waits-for-work": (STUCK, ("TP1",), ("2 of 3 ranks wait in c10d::Work::wait", "TP1 is in scenes.sleep_for_ever")),
    "stopped": (STUCK, ("TP1",), ("TP1 is stopped by a signal", "2 of 3 ranks wait in all_reduce")),
    "flight-recorder": (STUCK, ("TP2",), ("2 of 3 ranks wait in all_reduce", "TP2 is in scenes.wait_for_a_lock")),
    "nobody-waits": (STUCK, ("TP1",), ("read_a_pipe", "TP1 is in scenes.wait_for_a_lock")),
    "http-answer": (STUCK, ("TP1",), ("2 of 3 ranks wait in all_reduce", "TP1 ", "socket")),
    "connects-again": (STUCK, ("TP2",), ("2 of 3 ranks wait in all_reduce", "TP2 is in scenes.connect_again")),
    "import-lock": (STUCK, ("TP1",), ("2 of 3 ranks wait in all_reduce", "TP1 ", "lock")),
    "two-and-two": (STUCK, (), ("different collectives", "TP0-1 wait in all_reduce", "TP2-3 wait in all_gather")),
    "pipeline-from-the-first": (STUCK, ("TP0",), ("3 of 4 ranks wait in recv", "TP0 is in scenes.lock_a_file",
                                                  "file lock")),
    "held-by-the-kernel": (STUCK, ("TP1",), ("2 of 3 ranks wait in all_reduce", "TP1 ", "held by the kernel")),
    "thread-of-a-pool": (STUCK, ("TP2",), ("2 of 3 ranks wait in all_reduce", "TP2 waits in _base.result")),
    "event-loop": (STUCK, ("TP0",), ("2 of 3 ranks wait in all_reduce", "TP0 waits in selectors.select")),
    "monitored-barrier": (STUCK, ("TP2",), ("2 of 3 ranks wait in monitored_barrier", "TP2 is in scenes.sleep_for")),
    "exception": (DIED, ("TP0",), ("TP0 exited with status 1; the other 2 ranks waited for it in all_reduce",)),
    "out-of-memory": (DIED, ("TP2",), ("TP2 was killed by the kernel for memory (container limit 400 MiB); the other"
                                       " 2 ranks waited for it in all_reduce.",)),
    "abort": (DIED, ("TP1",), ("TP1 was killed by signal 6 (SIGABRT)", "waited for it in all_reduce")),
    "segfault": (DIED, ("TP0",), ("TP0 was killed by signal 11 (SIGSEGV)", "waited for it in all_reduce")),
    "bus-error": (DIED, ("TP2",), ("TP2 was killed by signal 7 (SIGBUS)", "waited for it in all_reduce")),
    "exit-3": (DIED, ("TP2",), ("TP2 exited with status 3", "waited for it in all_reduce")),
    "killed-at-work": (DIED, ("TP1",), ("TP1 was killed by signal 9 (SIGKILL)", "were in scenes.model_step")),
    "killed-in-the-collective": (DIED, ("TP2",), ("TP2 was killed by signal 9", "TP0 was in scenes.sleep_for_ever")),
    "healthy-fast": (BUSY, (), ("All 3 ranks move",)),
    "healthy-slow": (BUSY, (), ("model_step", "running in between")),
    "healthy-slower": (BUSY, (), ("model_step", "running in between")),
    "healthy-long-product": (BUSY, ("TP1",), ("TP1 is in scenes.long_matrix_product", "of a core")),
    "healthy-encodes": (BUSY, ("TP1",), ("2 of 3 ranks wait in all_reduce", "TP1 is in encoder.", "of a core")),
    "healthy-compiles": (Judgement.COMPILING, ("TP1",), ("TP1 is compiling",)),
    "healthy-idle": (Judgement.IDLE, (), ("All 3 ranks wait for requests",)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recorded_case_is_explained_as_a_person_would(name: str) -> None:
    finding, _ = explained(case(name))
    judgement, apart, words = EXPECTED[name]
    assert (finding.judgement, finding.apart) == (judgement, apart), finding
    for word in words:
        assert word in finding.sentence
    assert finding.reasons


def test_every_recording_is_in_the_table() -> None:
    assert names() == sorted(EXPECTED)
    assert len(EXPECTED) >= 20


@pytest.mark.parametrize("name", [name for name in sorted(EXPECTED) if name.startswith("healthy-")])
def test_no_healthy_series_is_called_stuck(name: str) -> None:
    """Neither in the judgement nor in the words; and where its ranks move, not even if somebody else said so."""
    finding, _ = explained(case(name))
    assert finding.judgement not in (STUCK, Judgement.STILL)
    assert "stuck" not in finding.sentence
    wrong = case("lock")["liveness"]
    if any("move" in word for word in EXPECTED[name][2]):
        again, _ = explained({**case(name), "liveness": wrong, "reason": "EngineStalled"})
        assert again.judgement is BUSY
        assert "slow rather than stuck" in again.sentence


def test_one_snapshot_proves_no_standstill() -> None:
    told = case("lock")
    once = {key: value for key, value in told["documents"].items() if not key.startswith(("pyspy2", "process2"))}
    finding, _ = explained({**told, "documents": once, "apart": 0.0, "liveness": None, "reason": "Manual"})
    assert finding.judgement is Judgement.UNKNOWN
    assert finding.confidence is Confidence.LOW
    assert "not moving" not in finding.sentence
    assert finding.apart == ("TP2",)


def test_without_a_stack_it_says_unknown_and_guesses_nothing() -> None:
    finding, merged = explained({**case("lock"), "documents": {}})
    assert finding.sentence.startswith("Unknown: ")
    assert finding.confidence is Confidence.NONE
    assert merged == []


def test_a_rank_that_died_of_what_is_not_known_is_no_sure_reason() -> None:
    told = case("abort")
    [failure] = told["failures"]
    unknown = {"code": None, "signal": None, "core_dumped": False, "why_unknown": "it was reaped by its parent"}
    finding, _ = explained({**told, "failures": [{**failure, "status": unknown, "cause": "unknown"}]})
    assert finding.confidence is Confidence.LOW
    assert "of what is not known" in finding.sentence


def test_what_nccl_says_names_the_late_one() -> None:
    """All ranks wait in the same collective: only NCCL's count of operations tells who is behind."""
    told = case("late-rank-elsewhere")
    pid = told["ranks"][1]["pid"]
    finding, _ = explained(told, (Behind(pid, 6649, 6650),))
    assert finding.apart == ("TP1",)
    assert "by NCCL RAS TP1 is behind the others (6649 of 6650 operations)" in finding.sentence
    assert finding.confidence is Confidence.MEDIUM


def dumps_of(name: str) -> dict[int, bytes]:
    told = case(name)
    return {row["pid"]: base64.b64decode(told["flight"][row["rank"]]) for row in told["ranks"]}


def test_what_the_flight_recorder_says_names_the_late_one() -> None:
    """Real dumps of ranks on gloo, of which one has not entered the last all_reduce."""
    told = case("flight-recorder")
    late = told["ranks"][2]["pid"]
    [found] = flight.behind(dumps_of("flight-recorder"))
    assert (found.pid, found.most - found.launched) == (late, 1)
    finding, _ = explained(told, (found,))
    assert any(reason.startswith("PyTorch's Flight Recorder: TP2 has launched ") for reason in finding.reasons)


def test_a_flight_recorder_dump_is_never_loaded(tmp_path: Path) -> None:
    """A pickle that would run something is left at that opcode; one that is cut off or garbage says nothing false."""
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    status = {"pg_status": {"0": {"last_enqueued_collective": 7}}}
    assert flight.behind({1: pickle.dumps(Evil(), 2), 2: pickle.dumps({"a": Evil(), **status}, 2)}) == ()
    assert not mark.exists()
    whole = dumps_of("flight-recorder")
    for size in (0, 1, 10, 100, 300):
        flight.behind({pid: data[:size] for pid, data in whole.items()})
    assert flight.behind({1: b"\x80\x02}q", 2: b"garbage", 3: pickle.dumps([status] * 9, 2)}) == ()
    assert flight.head_of(pickle.dumps(status, 2)) == status


def test_two_threads_in_each_other_s_locks_are_named() -> None:
    finding, _ = explained(case("deadlock-of-two-locks"))
    [reason] = [reason for reason in finding.reasons if "threads wait for a lock" in reason]
    assert "MainThread in take" in reason
    assert "loader in take" in reason


def test_a_fingerprint_is_the_same_for_the_same_hang_of_another_rank() -> None:
    """Whichever rank it hit; and another one for another hang."""
    prints = {}
    for name in ("lock", "pipe", "mismatched-collective"):
        _, [(_, merged), *_] = explained(case(name))
        prints[name] = merged.fingerprint
    told = case("lock")
    swapped = {"TP0": "TP2", "TP2": "TP0"}
    ranks = [{**row, "rank": swapped.get(row["rank"], row["rank"]), "label": row["rank"]} for row in told["ranks"]]
    finding, [(_, other), *_] = explained({**told, "ranks": ranks})
    assert finding.apart == ("TP0",)
    assert other.fingerprint == prints["lock"]
    assert len(set(prints.values())) == 3
