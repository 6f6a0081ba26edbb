"""Command lines as the kernel hands them out, and Python's own helpers."""

from __future__ import annotations

import contextlib
import fnmatch
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import engine_forms as forms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engines.command_line import CODE, MODULE, SCRIPT, Program, program
from sidecar.engines.python_processes import clean_argv, is_forkserver, is_resource_tracker, is_spawned_child
from sidecar.engines.table import profiles

SPAWNED = [
    ("python", "-c", forms.SPAWN, "--multiprocessing-fork"),
    ("/opt/venv/bin/python3.12", "-X", "faulthandler", "-u", "-c", forms.SPAWN, "--multiprocessing-fork"),
    ("/opt/app", "--multiprocessing-fork", "tracker_fd=5", "pipe_handle=7"),
]
TRACKERS = [
    ("python", "-c", forms.TRACKER),
    ("python3", "-E", "-s", "-c", forms.TRACKER),
    ("python3", "-c", "from multiprocessing.semaphore_tracker import main;main(5)"),
]
FORKSERVERS = [
    ("python", "-c", forms.FORKSERVER),
    ("/usr/bin/python3", "-E", "-s", "-c", forms.FORKSERVER),
    ("python3.14", "-c", forms.NEW_FORKSERVER, "serve", "m"),
]
NEITHER = [
    (),
    ("",),
    ("python", "-c"),
    ("python", "-c", f"print({forms.TRACKER!r})"),
    ("python", "-c", f"print({forms.SPAWN!r})", "--multiprocessing-fork"),
    ("bash", "-c", forms.SPAWN, "--multiprocessing-fork"),
    ("grep", forms.TRACKER),
    ("python", "x.py", "--multiprocessing-fork"),
    ("python", "-c", forms.SPAWN),
    ("vllm", "serve"),
    (forms.TRACKER,),
    ("python", forms.FORKSERVER),
    ("python", "-m", forms.SPAWN, "--multiprocessing-fork"),
    ("sglang::scheduler_TP0",),
]


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        *((argv, "spawned") for argv in SPAWNED),
        *((argv, "tracker") for argv in TRACKERS),
        *((argv, "forkserver") for argv in FORKSERVERS),
        *((argv, "neither") for argv in NEITHER),
    ],
)
def test_pythons_own_processes(argv, kind):
    """The forkserver is no rank, and a caller can tell it from the tracker."""
    found = is_spawned_child(argv), is_resource_tracker(argv), is_forkserver(argv)
    assert found == (kind == "spawned", kind in ("tracker", "forkserver"), kind == "forkserver")
    assert not any(profile.is_server(argv) for profile in profiles("auto", None)) or kind == "neither"


@pytest.mark.parametrize(
    ("line", "kind", "name", "args"),
    [
        ("python x.py a -m b", SCRIPT, "x.py", ("a", "-m", "b")),
        ("/a/python3.12 -m b -m c", MODULE, "b", ("-m", "c")),
        ("python -Wignore -Xutf8 -mb c", MODULE, "b", ("c",)),
        ("python -W ignore -X utf8 -OO -Bum b c", MODULE, "b", ("c",)),
        ("python --check-hash-based-pycs always x.py", SCRIPT, "x.py", ()),
        ("python -c b c", CODE, "b", ("c",)),
        ("python -ub c", SCRIPT, "c", ()),
        ("pythonic -m b", SCRIPT, "pythonic", ("-m", "b")),
        ("/a/vllm serve", SCRIPT, "/a/vllm", ("serve",)),
    ],
)
def test_what_an_interpreter_runs(line, kind, name, args):
    assert program(line.split()) == Program(kind, name, args)


@pytest.mark.parametrize("line", ["python", "python -", "python -m", "python -c", "python -V -i", "python --help x"])
def test_an_interpreter_that_runs_nothing_of_a_file(line):
    assert program(line.split()) is None


def test_a_title_written_over_the_arguments():
    assert clean_argv(b"sglang::scheduler_TP0\0\0\0\0\0\0") == ("sglang::scheduler_TP0",)
    assert clean_argv(b"a title of several words\0\0") == ("a title of several words",)
    assert clean_argv(b"VLLM::Worker") == ("VLLM::Worker",)
    assert clean_argv(b"grep\0\0x\0") == ("grep", "", "x")
    assert clean_argv(b"") == clean_argv(b"\0\0\0") == ()
    assert clean_argv(b"a\xff\xfe\0b\xc3\xa9\0") == ("a\\xff\\xfe", "bé")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=6))
def test_arguments_come_back_as_they_were(argv):
    written = b"".join(arg.encode() + b"\0" for arg in argv)
    while argv and not argv[-1]:
        argv.pop()
    assert clean_argv(written) == tuple(argv)


@given(st.binary(max_size=300))
def test_hostile_bytes_never_raise_and_can_always_be_written_down(data):
    argv = clean_argv(data)
    assert not argv or argv[-1]
    " ".join(argv).encode()
    is_spawned_child(argv), is_resource_tracker(argv), is_forkserver(argv)
    for profile in profiles("auto", None):
        profile.title(argv, {}), profile.is_server(argv), profile.expected(argv, {})


PARTS = [b"sglang::scheduler_TP0", b"VLLM::Worker", b"python", b"-m", b"vllm", b"serve", b"-c", b"\xff", b" ", b"\n"]


@given(st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=4)), max_size=8), st.sampled_from([b"", b"\0"]))
def test_bytes_near_to_the_real_ones_never_raise(parts, joint):
    argv = clean_argv(joint.join(parts))
    for profile in profiles("auto", None) + profiles("generic", r"(?P<A>.)(?P<B>.*)"):
        profile.title(argv, {}), profile.is_server(argv), profile.expected(argv, {})


@pytest.mark.parametrize(
    "text",
    [
        "sglang::scheduler" + "_A" * 100,
        "VLLM::Worker" + "_AAAAAAAAAAAAAAAA" * 14,
        "VLLM::Worker_" + "A_" * 120,
        "x" * 64 + "::" + "_TP1" * 40,
        "sglang::scheduler" + "_TP1" * 10**6,
    ],
)
def test_a_long_title_costs_little(text):
    """Anyone in the pod may choose its own command line, and the guard must not stand still for it."""
    started = time.process_time()
    for profile in profiles("auto", None):
        profile.title((text,), {})
        profile.is_server((text,))
    assert time.process_time() - started < 0.05


def test_a_long_program_costs_little():
    code = "import sys; sys.argv = " + "; from multiprocessing" * 10**5
    started = time.process_time()
    assert not is_forkserver(("python", "-c", code))
    assert time.process_time() - started < 0.05


def cmdline(pid: int) -> tuple[str, ...]:
    return clean_argv(Path(f"/proc/{pid}/cmdline").read_bytes())


def children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry))
    return found


SPAWNER = """
import multiprocessing, os, sys

def child(hold):
    os.write(1, b"up\\n")
    open(hold).read()

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child, args=sys.argv[2:])
    process.start()
    process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_this_pythons_real_children(method, tmp_path):
    """What multiprocessing starts is known by its real command lines, with whatever Python runs these tests."""
    script, hold = tmp_path / "spawner.py", tmp_path / "hold"
    script.write_text(SPAWNER)
    os.mkfifo(hold)
    holding = os.open(hold, os.O_RDWR)
    process = subprocess.Popen([sys.executable, str(script), method, str(hold)], stdout=subprocess.PIPE)
    started = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert not is_spawned_child(cmdline(process.pid))
        started = children(process.pid)
        lines = {pid: cmdline(pid) for pid in started}
        if method == "spawn":
            found = sorted((is_spawned_child(argv), is_resource_tracker(argv)) for argv in lines.values())
            assert found == [(False, True), (True, False)]
        else:
            assert all(is_resource_tracker(argv) and not is_spawned_child(argv) for argv in lines.values())
            (server,) = [pid for pid, argv in lines.items() if is_forkserver(argv)]
            (child,) = children(server)
            started.append(child)
            assert is_forkserver(cmdline(child))
    finally:
        os.close(holding)  # the child reads the end of the file and leaves
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in [*started, process.pid]:  # none is reaped while its parent waits, so the pids are still theirs
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        process.communicate()


def test_a_real_title_over_real_arguments():
    """A title shorter and one longer than the arguments it is written over."""
    for title in ("VLLM::Worker", "sglang::scheduler" + "_DP10_PP10_ATTN_CP10_MOE_DP10_TP10_EP10"):
        code = f"import setproctitle; setproctitle.setproctitle({title!r}); print(flush=True); input()"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            assert cmdline(process.pid) == (title,)
        finally:
            process.kill()
            process.communicate()


def test_shared_memory_is_known_by_the_names_that_multiprocessing_really_gives():
    """And by no name that a person or another program would choose."""
    segment = shared_memory.SharedMemory(create=True, size=16)
    try:
        names = [
            segment.name.lstrip("/"),
            "sem." + multiprocessing.get_context("spawn").Lock()._semlock.name.lstrip("/"),
        ]
    finally:
        segment.close()
        segment.unlink()
    for profile in profiles("auto", None):
        for name in (*names, "torch_1234_3735928559_0", "nccl-a1B2c3"):
            assert any(fnmatch.fnmatchcase(name, pattern) for pattern in profile.shm_names), (profile.name, name)
        for name in ("psm_", "psm2_shm.1", "psm_mine", "sem.mine", "sem.mp-", "torch", "nccl-topology.xml", "x", ""):
            assert not any(fnmatch.fnmatchcase(name, pattern) for pattern in profile.shm_names), (profile.name, name)
