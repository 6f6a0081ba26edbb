"""Stacks of many ranks as one tree: what it says, that it is bounded, and that nothing makes it raise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import case, explained, names

from sidecar.policy.places import Uses
from sidecar.policy.stacks import Frame
from sidecar.recorder.analysis import rendering
from sidecar.recorder.analysis.collectives import Libraries, native_call
from sidecar.recorder.analysis.evidence import Behind, Confidence, Finding, Judgement
from sidecar.recorder.analysis.rank_sets import Ranks, compact
from sidecar.recorder.analysis.ras import behind
from sidecar.recorder.analysis.reading import rank_of
from sidecar.recorder.analysis.stacks import Dump, Merged, merge, walk
from sidecar.recorder.analysis.threads import Reader

FINDING = Finding("TP5 is late.", Judgement.STUCK, Confidence.HIGH, ("it is",), ("TP5",))


def thread(*functions: str, name: str = "MainThread", pid: int = 1, **more: Any) -> dict[str, Any]:
    """`functions`: the outermost first, each `function` or `function:line`."""
    frames = []
    for function in reversed(functions):
        title, _, line = function.partition(":")
        frames.append(
            {
                "name": title,
                "filename": "libc.so.6" if title.startswith("0x") else f"/srv/engine/{title}.py",
                "line": int(line or 1),
            }
        )
    return {"thread_name": name, "os_thread_id": pid, "owns_gil": False, "frames": frames, **more}


def eight(late: int = 5) -> list[Dump]:
    """Eight ranks, one of which is elsewhere; the lines of a loop jitter."""
    return [
        Dump(f"TP{rank}", 1, [
            thread("main", f"loop:{rank}", "encode" if rank == late else "all_reduce", owns_gil=rank == late),
            thread("run", "poll", name=f"pool-{rank}_0", pid=9),
        ])
        for rank in range(8)
    ]  # fmt: skip


def lines(merged: Merged) -> list[str]:
    return rendering.text(FINDING, [("first snapshot", merged)], []).splitlines()


def test_what_all_have_in_common_is_there_once_and_the_odd_one_is_marked() -> None:
    said = lines(merge(eight(), "generic"))
    shown = [" ".join(line.split()) for line in said]
    assert said[0] == "TP5 is late."
    assert shown.count("main (engine/main.py:1) TP0-7") == 1
    assert "loop (engine/loop.py:1,2,3,4)" in shown
    assert "all_reduce (engine/all_reduce.py:1) TP0-4,6-7 | TP5 missing" in shown
    assert "encode (engine/encode.py:1) TP5 <- apart" in shown
    assert "-- thread pool-N_N: TP0-7" in shown
    assert "GIL: TP5 MainThread in encode (encode.py:1)" in shown
    assert shown.index("-- main threads, the outermost call first") < shown.index("-- thread pool-N_N: TP0-7")


def test_addresses_of_native_frames_part_no_ranks() -> None:
    """A frame without a symbol is named by its address, which is another one in every process."""
    native = "0x7f{}e0a04524a"
    merged = merge([Dump(f"TP{n}", 1, [thread("main", native.format(n))]) for n in range(3)], "generic")
    assert [(node.function, node.threads) for node, _, _ in walk(merged.main)] == [("main", 3), ("0x…", 3)]


def test_the_json_says_the_same_without_depth() -> None:
    """A node names its parent and its set of ranks by numbers, so that no stack is too deep for a reader."""
    merged = merge([*eight(), Dump("TP8", 1, [thread(*(f"deep{n}" for n in range(900)))])], "generic")
    [snapshot] = json.loads(json.dumps(rendering.document([("s", merged)], [])))["snapshots"]
    tree = snapshot["trees"][0]["nodes"]
    by_name = {node["function"]: node for node in tree}

    def ranks_of(name: str) -> list[str]:
        return [snapshot["ranks"][place] for place in snapshot["sets"][by_name[name]["set"]]]

    assert ranks_of("encode") == ["TP5"]
    assert ranks_of("main") == [f"TP{n}" for n in range(8)]
    assert tree[by_name["encode"]["parent"]]["function"] == "loop"
    assert len([node for node in tree if node["function"].startswith("deep")]) == 900
    assert snapshot["places"]["TP5"]["name"] == "encode (encode.py:1)"


@pytest.mark.parametrize("name", names())
def test_every_thread_of_every_rank_has_a_row(name: str) -> None:
    """On recordings of real processes, counted anew from what py-spy said: which rank, which tree, the innermost frame
    with its line, the GIL, whether it is active, and whether its stack changed since the first snapshot."""
    told = case(name)
    _, merged = explained(told)
    snapshots = {made["name"]: made for made in rendering.document(merged, [])["snapshots"]}
    for title, folder in (("first snapshot", "pyspy"), ("second snapshot", "pyspy2")):
        found = told["documents"]
        wanted = []
        for rank in told["ranks"]:
            before = found.get(f"pyspy/{rank['rank']}") if folder == "pyspy2" else None
            threads = found.get(f"{folder}/{rank['rank']}") or ()
            wanted += [raw_row(rank["rank"], thread, rank["pid"], before) for thread in threads]
        assert (title in snapshots) == bool(wanted)
        if wanted:
            assert sorted(shown_rows(snapshots[title])) == sorted(wanted)


def raw_row(rank: str, thread: Any, pid: int, before: Any) -> tuple[Any, ...]:
    main = thread["os_thread_id"] == pid
    tree = "" if main else "".join("N" if c.isdigit() else c for c in thread["thread_name"]).replace("NN", "N")
    inner = thread["frames"][0] if thread["frames"] else None
    file = "/".join(inner["filename"].split("/")[-2:]) if inner else ""
    flags = 1 * thread["owns_gil"] + 2 * thread["active"]
    if before is not None:
        stacks = {one["os_thread_id"]: [(f["name"], f["filename"], f["line"]) for f in one["frames"]] for one in before}
        now = [(f["name"], f["filename"], f["line"]) for f in thread["frames"]]
        flags += 4 * (stacks.get(thread["os_thread_id"]) != now)
    return (rank, tree, main, inner["name"].split(".")[-1] if inner else "", file, inner["line"] if inner else 0, flags)


def shown_rows(snapshot: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for rank, tree, node, line, flags in snapshot["threads"]:
        root = snapshot["trees"][tree]
        at = root["nodes"][node] if node >= 0 else {"function": "", "file": ""}
        rows.append((snapshot["ranks"][rank], root["thread"], root["main"], at["function"], at["file"], line, flags))
    return rows


def test_what_moved_between_two_snapshots_is_marked() -> None:
    """Of ranks that wait for one that hangs none moved, and of a healthy engine's all did."""

    def moved(name: str) -> set[bool]:
        _, merged = explained(case(name))
        second = rendering.document(merged, [])["snapshots"][1]
        return {bool(flags & 4) for _, tree, _, _, flags in second["threads"] if second["trees"][tree]["main"]}

    assert moved("lock") == {False}
    assert moved("healthy-fast") == {True}


def test_the_json_of_a_thousand_ranks_stays_small_whatever_they_do() -> None:
    """With eight threads each; and where no two ranks have a frame in common: then frames are left out, and counted,
    and a thread points at the innermost of its frames that is there."""
    threads = [thread(*(f"f{d}" for d in range(16)), name=f"pool-{number}", pid=number + 1) for number in range(8)]
    alike = [Dump(f"TP{n}", 1, threads) for n in range(1024)]
    made = rendering.document([("s", merge(alike, "sglang"))] * 2, [])
    assert len(json.dumps(made)) < 4 << 20
    assert [len(one["threads"]) for one in made["snapshots"]] == [8192, 8192]
    differ = [Dump(f"TP{n}", 1, [thread(*(f"f{d}_{n}" for d in range(64)))]) for n in range(1024)]
    made = rendering.document([("s", merge(differ, "sglang"))] * 2, [])
    assert len(json.dumps(made)) < 8 << 20
    for one in made["snapshots"]:
        nodes = one["trees"][0]["nodes"]
        assert len(nodes) + one["dropped"] == 65_536
        assert len(one["threads"]) == 1024
        assert all(-1 <= node < len(nodes) for _, _, node, _, _ in one["threads"])


def test_speedscope_has_every_thread_once() -> None:
    made = rendering.speedscope([("s", merge(eight(), "generic"))])
    main, others = made["profiles"]
    assert (sum(main["weights"]), sum(others["weights"])) == (8, 8)
    names = [[made["shared"]["frames"][at]["name"] for at in sample] for sample in main["samples"]]
    assert sorted(names) == [["main", "loop", "all_reduce"], ["main", "loop", "encode"]]


def test_a_thousand_ranks_are_merged_with_work_that_grows_with_the_frames_alone() -> None:
    """65,536 frames of 1,024 ranks are 64 nodes, each of which all have, and are said in 64 lines."""
    dumps = [Dump(f"DP{n // 64}_PP{n // 8 % 8}_TP{n % 8}", 1, [thread(*(f"f{d}:{n % 9}" for d in range(64)))])
             for n in range(1024)]  # fmt: skip
    merged = merge(dumps, "vllm")
    nodes = [node for node, _, _ in walk(merged.main)]
    assert len(nodes) == 64
    assert {node.ranks.bit_count() for node in nodes} == {1024}
    assert sum(node.threads for node in nodes) == 65_536
    assert any("DP0-15_PP0-7_TP0-7" in line for line in lines(merged))
    assert len(lines(merged)) < 80


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], ""),
        (["TP3"], "TP3"),
        ([f"TP{n}" for n in (0, 1, 2, 4, 10, 11)], "TP0-2,4,10-11"),
        ([f"DP{d}_TP{t}" for d in range(2) for t in range(4)], "DP0-1_TP0-3"),
        ([f"DP{d}_TP{t}" for d in range(2) for t in range(4)][:-1], "DP0_TP0-3, DP1_TP0-2"),
        (["server", "worker-7", "TP0"], "TP0, server, worker-7"),
        (["TP01", "TP1"], "TP01, TP1"),
    ],
)
def test_ranges_of_ranks(labels: list[str], said: str) -> None:
    assert ", ".join(sorted(compact(Ranks(labels).labels).split(", "))) == ", ".join(sorted(said.split(", ")))


def test_labels_come_in_the_order_of_their_numbers() -> None:
    assert Ranks(["TP10", "TP9", "DP1_TP0", "TP0"]).labels == ("DP1_TP0", "TP0", "TP9", "TP10")


@pytest.mark.parametrize(
    ("function", "path", "library"),
    [
        ("all_reduce", "torch/distributed/distributed_c10d.py", "torch.distributed"),
        ("all_reduce", "vllm/distributed/device_communicators/pynccl.py", "NCCL"),
        ("custom_all_reduce", "sglang/srt/distributed/device_communicators/custom_all_reduce.py", "custom all-reduce"),
        ("Allreduce", "mpi4py/MPI.src/Comm.pyx", "MPI"),
        ("PMPI_Allreduce", "libmpi.so.40", "MPI"),
        ("ncclAllReduce", "libnccl.so.2", "NCCL"),
        ("gloo::allreduce", "libtorch_cpu.so", "gloo"),
        ("c10d::ProcessGroupNCCL::WorkNCCL::wait", "libtorch_cuda.so", "NCCL"),
        ("void vllm::cross_device_reduce_1stage", "_C.abi3.so", "custom all-reduce"),
        ("dequeue", "vllm/distributed/device_communicators/shm_broadcast.py", "shared memory queue"),
        ("forward", "models/llama.py", ""),
    ],
)
def test_collectives_are_known_by_their_frames(function: str, path: str, library: str) -> None:
    frames = [Frame("inner", "a/b.py", 1), Frame(function, path, 7), Frame("main", "serve.py", 3)]
    assert Libraries(Uses("")).family(frames) == library


def test_a_native_wait_is_named_and_a_binding_s_template_is_not() -> None:
    frames = [Frame("std::condition_variable::wait", "libstdc++.so", 0), Frame("c10d::Work::wait", "libtorch.so", 0),
              Frame("pybind11::cpp_function<bool, c10d::Work, int>", "libtorch_python.so", 0)]  # fmt: skip
    assert native_call(frames) == "c10d::Work::wait"


RAS = """
Job summary
===========

Errors
======

DEAD
  1 job process is considered dead (unreachable via the RAS network)
  Process 3487984 on node 10.0.0.3 managing GPU 5

Warnings
========

#0-0 (27a079b828ff1a75) MISMATCH
  Communicator ranks have different collective operation counts
  6 ranks have launched up to operation 6650
  2 ranks have launched up to operation 6649
  Rank 0 -- GPU 0 managed by process 101 on node 10.0.0.2
  Rank 5 -- GPU 5 managed by process 106 on node 10.0.0.2

#1-0 (78db921d1c117b4a) MISMATCH
  Communicator ranks have different AllReduce operation counts
  7 ranks have launched up to operation 64
  Rank 7 has launched up to operation 60 -- GPU 3 managed by process 108 on node node1
"""


def test_what_nccl_ras_reports() -> None:
    assert set(behind(RAS)) == {
        Behind(3487984, 0, 0), Behind(101, 6649, 6650), Behind(106, 6649, 6650), Behind(108, 60, 64),
    }  # fmt: skip
    assert behind("") == behind("garbage\n#\n Rank 1 -- \n") == ()


# -- hostile ----------------------------------------------------------------------------------------------------------


def test_names_from_a_process_write_no_lines_and_no_escapes() -> None:
    evil = "\x1b[31mevil\nTP9 <script>"
    merged = merge([Dump("TP0", 1, [thread("main", evil, name=evil), thread("x", name=evil, owns_gil=True)])], "vllm")
    said = lines(merged)
    assert all(line.isprintable() or not line for line in said)
    assert not any(line.startswith("TP9") for line in said)


def test_more_nodes_than_are_kept_are_counted_and_not_kept() -> None:
    dumps = [Dump(f"TP{n}", 1, [thread(*(f"f{n}_{d}" for d in range(1000)))]) for n in range(120)]
    merged = merge(dumps, "vllm")
    assert merged.dropped == 20_000
    assert len(lines(merged)) <= 5001


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["frames", "name", "filename", "line", "os_thread_id", "thread_name", "owns_gil", "stat",
                             "state", "status", "wchan", "threads", "tid", "cpu_ticks", "voluntary_ctxt_switches"]),
            inner,
        )
    ),
    max_leaves=30,
)  # fmt: skip


@given(st.lists(anything, min_size=1, max_size=3), anything, anything)
def test_nothing_makes_it_raise(threads: list[Any], state: Any, other: Any) -> None:
    merged = merge([Dump("TP0", 7, threads)], "sglang")
    rendering.text(FINDING, [("s", merged)], [])
    json.dumps(rendering.document([("s", merged)], []))
    json.dumps(rendering.speedscope([("s", merged)]))
    reader = Reader("vllm")
    first, second = reader.threads(threads, 7), reader.threads(other, 7)
    rank_of("TP0", "worker", 7, reader, 2.0, (first, second, first), (state, other))
