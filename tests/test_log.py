"""Log lines: one each, whole, and never a reason to wait or to end."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.log import Log

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
STYLES = pytest.mark.parametrize("style", ["text", "json"])
HOSTILE = [
    "two\nlines", "back\rover", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e",
    "\x00\x7f", "\u202egnp.exe", "\udcff\ud800", 'a "quoted" one', "back\\slash", "x incident=forged", "", " ",
    "\u00a0",
]  # fmt: skip


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe of one page."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(read, False)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:  # a test closed it
            pass


def written(style: str, event: str, **details: object) -> str:
    """What one call writes."""
    read, write = os.pipe()
    log = Log("guard", style, write)
    log(event, **details)
    os.close(write)
    with open(read, "rb") as stream:
        os.set_blocking(read, False)
        data = stream.read() or b""
    os.close(log._fd)
    assert log.dropped == 0
    return data.decode()


def test_a_line_as_text():
    line = written("text", "rank exiting", incident="an-id", rank="TP3", seconds=0.25, none=None, title="a b", many=[1])
    assert re.fullmatch(
        STAMP + r' guard: rank exiting rank=TP3 seconds=0\.250 title="a b" many=\[1\] incident=an-id\n', line
    )


def test_a_line_as_json():
    line = written("json", "rank exiting", incident="an-id", rank="TP3", seconds=0.25, none=None, path=Path("/x"))
    assert line.endswith("}\n")
    data = json.loads(line)
    assert re.fullmatch(STAMP, data.pop("time"))
    assert data == {
        "process": "guard", "event": "rank exiting", "incident": "an-id", "rank": "TP3", "seconds": 0.25, "path": "/x",
    }  # fmt: skip
    assert "incident" not in json.loads(written("json", "started"))


@STYLES
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_writes_no_second_line_and_no_escape(style, text):
    """A process title is anybody's to choose. It cannot start a line, steer a terminal, or pass for another detail."""
    line = written(style, "rank seen", title=text, pid=7)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert line[:-1].isprintable() or (style == "json" and text == "\x00\x7f")
    if style == "json":
        assert json.loads(line)["title"] == text
    else:
        before, _, value = line.partition(" title=")
        assert re.fullmatch(STAMP + " guard: rank seen", before)
        assert value.endswith(" pid=7\n")
        value = value.removesuffix(" pid=7\n")
        assert " " not in value or value[0] == value[-1] == '"'


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters()), st.sampled_from(["text", "json"]))
def test_any_text_is_one_line_that_can_be_read(text, style):
    line = written(style, "rank seen", title=text)
    assert len(line.splitlines()) == 1
    assert line.endswith("\n")
    assert "\x1b" not in line
    if style == "json":
        assert json.loads(line)["title"] == json.loads(json.dumps(text))  # where surrogates may join to a pair


@STYLES
def test_a_pipe_that_nobody_reads_never_blocks(pipe, style):
    """The lines that find no room are dropped and counted; once there is room again, they come again, whole."""
    read, write = pipe
    os.write(write, b"x" * 4096)
    log = Log("guard", style, write)
    for _ in range(3):
        log("freezing")
    assert log.dropped == 3
    assert os.get_blocking(write), "the engine has the same stderr, and wants it blocking"
    assert os.read(read, 8192) == b"x" * 4096
    log("killed")
    line = os.read(read, 8192).decode()
    assert "killed" in line
    assert line.count("\n") == 1
    assert log.dropped == 3


@STYLES
def test_a_socket_that_nobody_reads_never_blocks(style):
    """What cannot be opened again by its path is asked for room first."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = Log("guard", style, ours.fileno())
        while not log.dropped:
            log("freezing", title="x" * 200)
        assert ours.getblocking()
        theirs.setblocking(False)
        before = theirs.recv(1 << 22)
        assert before.count(b"freezing") == before.count(b"\n")


@STYLES
@pytest.mark.parametrize("where", ["pipe", "socket"])
@pytest.mark.parametrize("length", [3000, 5000, 70_000])
def test_a_line_comes_whole_or_not_at_all(style, where, length):
    """Whatever a process calls itself, the line after it is a line of its own."""
    if where == "pipe":
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 8192)
        os.write(write, b"x" * 4000)
    else:
        ours, theirs = socket.socketpair()
        read, write = theirs.detach(), ours.detach()
        os.write(write, b"x" * 4000)
    log = Log("guard", style, write)
    try:
        log("seen", title="t" * length)
        os.set_blocking(read, False)
        first = os.read(read, 1 << 20)[4000:]
        log("killed")
        second = os.read(read, 1 << 20)
    finally:
        os.close(read)
        os.close(write)
        if log._own:
            os.close(log._fd)
    assert first == b"" or first.endswith(b"\n"), f"cut off after {len(first)} bytes"
    assert (first == b"") == (log.dropped == 1)
    if style == "json":
        assert json.loads(second)["event"] == "killed"
        assert first == b"" or json.loads(first)["event"] == "seen"


def test_a_reader_that_is_gone(pipe):
    """The `tee` behind us was killed by the same Ctrl-C: lines are dropped, and the process lives on."""
    read, write = pipe
    log = Log("guard", "text", write)
    os.close(read)
    log("draining")
    log("drained")
    assert log.dropped == 2


def test_a_terminal_that_is_gone():
    """Closing the window hangs the terminal up: the same."""
    main, terminal = os.openpty()
    log = Log("guard", "text", terminal)
    log("one")
    assert b"one" in os.read(main, 1000)
    os.close(main)
    log("two")
    assert log.dropped == 1
    os.close(terminal)


def run(source: str, *, shell: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        ["/bin/sh", "-c", shell, "sh", sys.executable, source], env={"PYTHONPATH": str(root)}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def test_a_process_without_a_stderr(tmp_path):
    """Started with stderr closed, it works in silence; and no file that it opens later becomes its log."""
    source = (
        "import os, sys\nfrom sidecar.log import Log\nlog = Log('guard', 'text')\nlog('one')\n"
        f"fd = os.open({str(tmp_path / 'incident.json')!r}, os.O_RDWR | os.O_CREAT)\nlog('two')\n"
        "print(log.dropped, os.fstat(fd).st_size)"
    )
    done = run(source, shell='exec "$1" -S -c "$2" 2>&-')
    assert (done.returncode, done.stdout) == (0, "2 0\n")


def test_a_log_that_is_a_file_is_appended_to(tmp_path):
    """Two processes with one file as stderr overwrite nothing of each other."""
    path = tmp_path / "log"
    with open(path, "wb") as file:
        first, second = Log("guard", "text", file.fileno()), Log("web", "text", file.fileno())
        for number in range(3):
            first("one", number=number)
            second("two", number=number)
        os.close(first._fd)
        os.close(second._fd)
    lines = io.StringIO(path.read_text()).readlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        f"{who}: {event} number={number}\n" for number in range(3) for who, event in (("guard", "one"), ("web", "two"))
    ]
