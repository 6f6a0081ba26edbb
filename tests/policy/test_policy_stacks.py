"""Where a rank stands: the same place gets the same key, and a wait is told from work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_stacks import (
    COMPILED_RUNS,
    SGLANG_FORWARD,
    SGLANG_IDLE,
    SGLANG_IDLE_LATER,
    SGLANG_JIT,
    SGLANG_JIT_LOCK,
    SGLANG_SLEEPS,
    SGLANG_SYNC,
    TRITON_COMPILES,
    TRITON_LOADS,
    VLLM_ALL_REDUCE,
    VLLM_CORE_ADD,
    VLLM_CORE_IDLE,
    VLLM_CORE_STEP,
    VLLM_FORWARD,
    VLLM_WORKER_IDLE,
    VLLM_WORKER_LOOP,
    at,
    stack,
)
from sidecar_process import eventually

from sidecar.policy.stacks import Kind, fingerprint, moved, spot_of, waits_for_device


@pytest.mark.parametrize(
    ("engine", "text", "kind", "name"),
    [
        ("vllm", VLLM_WORKER_IDLE, Kind.IDLE, "dequeue (shm_broadcast.py:779)"),
        ("vllm", VLLM_ALL_REDUCE, Kind.COLLECTIVE, "all_reduce (parallel_state.py:42)"),
        ("vllm", VLLM_FORWARD, Kind.RUN, "forward (llama.py:310)"),
        ("vllm", VLLM_CORE_IDLE, Kind.IDLE, "_process_input_queue (core.py:877)"),
        ("vllm", VLLM_CORE_STEP, Kind.COLLECTIVE, "result (multiproc_executor.py:90)"),
        ("vllm", VLLM_CORE_ADD, Kind.RUN, "preprocess_add_request (core.py:640)"),
        ("sglang", SGLANG_IDLE, Kind.IDLE, "recv_requests (scheduler.py:1120)"),
        ("sglang", SGLANG_IDLE_LATER, Kind.IDLE, "recv_requests (request_receiver.py:80)"),
        ("sglang", SGLANG_SLEEPS, Kind.IDLE, "maybe_sleep (idle_sleeper.py:33)"),
        ("sglang", SGLANG_SYNC, Kind.WAIT, "synchronize (streams.py:231)"),
        ("sglang", SGLANG_FORWARD, Kind.RUN, "forward (qwen2.py:223)"),
        ("sglang", SGLANG_JIT, Kind.COMPILE, "build_and_load (core.py:140)"),
        ("sglang", SGLANG_JIT_LOCK, Kind.COMPILE, "load_cuda_ops (core.py:122)"),
        ("vllm", TRITON_COMPILES, Kind.COMPILE, "_do_compile (jit.py:700)"),
        ("vllm", TRITON_LOADS, Kind.RUN, "_init_handles (compiler.py:473)"),
        ("vllm", COMPILED_RUNS, Kind.RUN, "run (utils.py:2500)"),
        ("generic", SGLANG_IDLE, Kind.COLLECTIVE, "broadcast_pyobj (common.py:1234)"),
    ],
)  # fmt: skip
def test_what_sort_of_place_it_is(engine, text, kind, name):
    """A collective on top of a stack is no hang by itself: an idle engine stands in one. A compiled model that runs
    has frames of the compiler on its stack, and does not compile."""
    spot = at(text, engine)
    assert (spot.kind, spot.name) == (kind, name)


@pytest.mark.parametrize(
    ("before", "after"),
    [("wait (threading", "Condition.wait (threading"), ("get (queue", "Queue.get (queue"),
     ("_process_input_queue (", "EngineCoreProc._process_input_queue ("),
     ("run_busy_loop (", "outer.<locals>.run_busy_loop (")],
)  # fmt: skip
def test_qualified_names_are_the_same_places(before, after):
    """py-spy tells them from Python 3.11 on."""
    assert at(VLLM_CORE_IDLE.replace(before, after)) == at(VLLM_CORE_IDLE)


def test_what_py_spy_says_of_a_real_process():
    wait = "import queue\ndef wait_here():\n    queue.Queue().get()\nprint(flush=True)\nwait_here()\n"
    pyspy = os.path.join(os.path.dirname(sys.executable), "py-spy")
    with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()

            def stands():
                dump = [pyspy, "dump", "--json", "--nonblocking", "--pid", str(process.pid)]
                done = subprocess.run(dump, capture_output=True, timeout=30)
                spot = spot_of(json.loads(done.stdout), process.pid, "generic") if done.returncode == 0 else None
                return spot if spot is not None and spot.kind is Kind.WAIT else None

            spot = eventually(stands, "py-spy shows the wait")
        finally:
            process.kill()
    assert spot.name.startswith("get (queue.py:")
    assert "wait_here" in spot.key
    assert "threading" not in spot.key


def test_polling_is_no_motion():
    """Whatever a rank does inside of a wait, and in whichever line of it, it stands in the same place."""
    queue = "vllm/distributed/device_communicators/shm_broadcast.py"
    same = [
        VLLM_WORKER_IDLE,
        f"acquire_read ({queue}:700)\ndequeue ({queue}:779){VLLM_WORKER_LOOP}",
        f"dequeue ({queue}:780){VLLM_WORKER_LOOP}",
    ]
    assert len({at(text).key for text in same}) == 1
    assert moved(at(same[0]), at(same[1])) is False


def test_the_next_collective_is_another_place():
    assert moved(at(VLLM_ALL_REDUCE), at(VLLM_ALL_REDUCE.replace("llama.py:310", "llama.py:322"))) is True


def test_where_a_rank_runs_every_line_counts():
    assert moved(at(VLLM_FORWARD), at(VLLM_FORWARD.replace(":310", ":311"))) is True
    assert moved(at(VLLM_FORWARD), at(VLLM_FORWARD)) is False


def test_an_unknown_place_is_neither():
    assert moved(None, at(VLLM_FORWARD)) is None
    assert moved(at(VLLM_FORWARD), None) is None


def test_only_the_device_waits_for_the_device():
    assert waits_for_device(at(SGLANG_SYNC, "sglang"))
    assert not waits_for_device(at(VLLM_ALL_REDUCE))


def test_the_main_thread_is_the_one_with_the_processs_id():
    other = stack(VLLM_FORWARD, os_thread_id=8, thread_name="MainThread")
    assert spot_of([other, stack(VLLM_ALL_REDUCE)], 7, "vllm") == at(VLLM_ALL_REDUCE)


def test_in_another_pid_namespace_it_is_known_by_its_name():
    threads = [stack(VLLM_FORWARD, os_thread_id=1, thread_name="Thread-1"), stack(VLLM_ALL_REDUCE, os_thread_id=2)]
    assert spot_of(threads, 7, "vllm") == at(VLLM_ALL_REDUCE)
    assert spot_of(threads[:1], 7, "vllm") == at(VLLM_FORWARD)


def test_a_fingerprint_is_of_the_failure_and_not_of_the_rank():
    """The same hang on another rank, among more ranks and after an upgrade that moved lines, is the same failure."""
    here = {"TP0": at(VLLM_ALL_REDUCE), "TP1": at(VLLM_FORWARD)}
    there = {"TP5": at(VLLM_FORWARD.replace(":310", ":99")), "TP0": at(VLLM_ALL_REDUCE.replace(":987", ":1")),
             "TP1": at(VLLM_ALL_REDUCE)}  # fmt: skip
    assert fingerprint(here) == fingerprint(there) != fingerprint({"TP0": at(VLLM_ALL_REDUCE)})
    assert fingerprint({}) == ""


def test_keys_and_names_stay_small():
    deep = stack("\n".join(f"{'f' * 300}{n} (a/{'g' * 300}.py:{n})" for n in range(1, 900)))
    spot = spot_of([deep], 7, "vllm")
    assert spot is not None
    assert len(spot.key) < 4096
    assert len(spot.name) < 120
    outermost = {"name": "g", "filename": "x.py", "line": 1}
    other = spot_of([{**deep, "frames": [*deep["frames"][:-1], outermost]}], 7, "vllm")
    assert moved(spot, other) is True


def test_names_are_printable():
    spot = spot_of([{"frames": [{"name": "evil\x1b[31m\n#|name", "filename": "a/b\n.py", "line": 3}]}], 7, "vllm")
    assert spot is not None
    assert spot.name.isprintable()
    assert spot.key.isprintable()


@pytest.mark.parametrize(
    "threads",
    [[], [{}], [{"frames": None}], [{"frames": []}], [{"frames": [None, 3, {}]}], ["text"], [None], "text", None, 7, {},
     [{"frames": [{"name": 1, "filename": 2, "line": 3}]}]],
)  # fmt: skip
def test_what_says_nothing_gives_none(threads):
    assert spot_of(threads, 7, "vllm") is None


@pytest.mark.parametrize("line", [None, "7", -1, True, 10**12, 1.5])
def test_a_line_may_be_anything(line):
    spot = spot_of([{"frames": [{"name": "f", "filename": "a.py", "line": line}]}], 7, "vllm")
    assert spot is not None
    assert spot.name == "f (a.py:0)"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["frames", "name", "filename", "line", "os_thread_id", "thread_name"]), inner)
    ),
    max_leaves=30,
)


@given(anything, st.sampled_from(["sglang", "vllm", "generic", ""]))
def test_nothing_makes_it_raise(threads, engine):
    spot = spot_of(threads, 7, engine)
    if spot is not None:
        fingerprint({"TP0": spot})
