"""The engine's last metrics: readable whatever happens to who writes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import history
from sidecar.history import SECONDS, SIZE, HistoryWriter, create, read

ROOT = Path(__file__).resolve().parents[1]
SLOTS = (0, SIZE // 2)


@pytest.fixture
def fd() -> Iterator[int]:
    made = create()
    yield made
    os.close(made)


def records(fd: int) -> list[dict]:
    return [json.loads(line) for line in read(fd).splitlines()]


def times(fd: int) -> list[float]:
    return [record["at"] for record in records(fd)]


def test_what_is_written_is_read_oldest_first(fd):
    assert read(fd) == b""
    writer = HistoryWriter(fd)
    assert writer.add(1000.5, 10.25, b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting 1\n')
    assert writer.add(1001.5, 11.25, b"")
    assert records(fd) == [
        {"wall": 1000.5, "at": 10.25, "lines": ['vllm:num_requests_running{engine="0"} 3.0',
                                                "vllm:num_requests_waiting 1"]},
        {"wall": 1001.5, "at": 11.25, "lines": []},
    ]  # fmt: skip


def test_what_is_older_than_five_minutes_goes(fd):
    writer = HistoryWriter(fd)
    for at in (0.0, 1.0, SECONDS, SECONDS + 0.5):
        writer.add(0.0, at, b"x 1\n")
    assert times(fd) == [1.0, SECONDS, SECONDS + 0.5]


def test_it_never_outgrows_its_memory_and_keeps_the_newest(fd):
    writer = HistoryWriter(fd)
    for at in range(40):
        assert writer.add(0.0, float(at), b"m 1\n" * 10_000)
    kept = times(fd)
    assert kept == [float(at) for at in range(40 - len(kept), 40)]
    assert 0 < len(kept) < 40
    assert os.fstat(fd).st_size == SIZE


def test_too_much_at_once_is_refused_and_harms_nothing(fd):
    writer = HistoryWriter(fd)
    writer.add(0.0, 1.0, b"x 1\n")
    assert not writer.add(0.0, 2.0, b"x" * SIZE)
    assert times(fd) == [1.0]
    assert writer.add(0.0, 3.0, b"x 1\n")
    assert times(fd) == [1.0, 3.0]


def test_a_new_writer_goes_on_with_what_is_there(fd):
    HistoryWriter(fd).add(0.0, 1.0, b"x 1\n")
    for at in (2.0, 3.0, 4.0):
        HistoryWriter(fd).add(0.0, at, b"x 1\n")
    assert times(fd) == [1.0, 2.0, 3.0, 4.0]
    HistoryWriter(fd).add(0.0, SECONDS + 3.0, b"")
    assert times(fd) == [3.0, 4.0, SECONDS + 3.0]


@pytest.mark.parametrize("broken", SLOTS)
def test_a_slot_that_is_half_written_is_passed_over_for_the_other(fd, broken):
    writer = HistoryWriter(fd)
    writer.add(0.0, 1.0, b"x 1\n")
    writer.add(0.0, 2.0, b"x 1\n")
    os.pwrite(fd, b"#", broken + 40)  # a writer that died after its first byte
    assert times(fd) in ([1.0], [1.0, 2.0])
    writer = HistoryWriter(fd)
    for at in (3.0, 4.0):
        writer.add(0.0, at, b"x 1\n")
    assert times(fd)[-2:] == [3.0, 4.0]


def test_a_writing_that_fails_leaves_the_last_one_readable(fd):
    """A full cgroup or a descriptor that went away costs the newest scrape, and the next ones do no harm."""
    writer = HistoryWriter(fd)
    writer.add(0.0, 1.0, b"x 1\n")
    closed = os.dup(fd)
    os.close(closed)
    writer._fd = closed
    assert not any([writer.add(0.0, 2.0, b"x 1\n"), writer.add(0.0, 3.0, b"x 1\n")])
    assert times(fd) == [1.0]
    writer._fd = fd
    assert writer.add(0.0, 4.0, b"x 1\n")
    assert times(fd)[-1] == 4.0


def test_a_reader_beside_a_busy_writer_always_sees_a_whole_history(fd):
    writer = HistoryWriter(fd)
    writer.add(0.0, 0.0, b"first 1\n")
    stop = threading.Event()

    def write() -> None:
        at = 0.0
        while not stop.is_set():
            at += 1.0
            writer.add(0.0, at, b"m 1\n" * int(at * 7 % 2000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        newest, looks = 0.0, 0
        while looks < 300 or not newest:  # on a busy machine it may be overtaken each time for long
            looks += 1
            seen = times(fd)
            assert seen == sorted(seen)
            if seen:  # a reader that is overtaken three times in a row sees nothing rather than something torn
                assert seen[-1] >= newest
                newest = seen[-1]
    finally:
        stop.set()
        thread.join()


def test_a_writer_that_is_killed_leaves_something_readable(fd):
    """SIGKILL in the middle of its writing: the reader has the last whole history, a new writer goes on."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from sidecar.history import HistoryWriter\n"
        "writer = HistoryWriter(int(sys.argv[2])); at = 0.0\n"
        "while True:\n"
        "    at += 0.001; writer.add(0.0, at, b'm 1\\n' * 20000)\n"
        "    if at < 0.0035: print('wrote', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(fd)], stdout=subprocess.PIPE, pass_fds=(fd,), text=True
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["wrote\n"] * 3
    finally:
        process.kill()
        process.communicate()
    left = times(fd)
    assert left
    assert left == sorted(left)
    assert HistoryWriter(fd).add(0.0, left[-1] + 1.0, b"x 1\n")
    assert times(fd)[-1] == round(left[-1] + 1.0, 3)


@given(st.binary(max_size=200), st.sampled_from(SLOTS), st.integers(0, 60))
def test_garbage_never_raises(garbage, slot, offset):
    fd = create()
    try:
        HistoryWriter(fd).add(0.0, 1.0, b"x 1\n")
        os.pwrite(fd, garbage, slot + offset)
        read(fd)
        assert HistoryWriter(fd).add(0.0, 2.0, b"x 1\n")
        assert times(fd)[-1] == 2.0
    finally:
        os.close(fd)


def test_what_is_no_history_reads_as_empty(tmp_path):
    """A descriptor that is closed, of a pipe, of a short file."""
    reading, writing = os.pipe()
    short = os.open(tmp_path / "short", os.O_RDWR | os.O_CREAT)
    os.write(short, b"rghist1\n")
    try:
        assert [read(-1), read(reading), read(short)] == [b""] * 3
    finally:
        for fd in (reading, writing, short):
            os.close(fd)


def test_the_memfd_is_not_inherited_unasked(fd):
    assert not os.get_inheritable(fd)
    assert history._ROOM < SIZE // 2
