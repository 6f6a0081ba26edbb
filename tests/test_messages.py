"""The channel between two of our processes: never blocks, loses nothing that it took, refuses what is no message."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import PeerGone, ProtocolError
from sidecar.messages import FDS_PER_MESSAGE, INLINE_LIMIT, Channel

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=9)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
# A busy machine is no failure.
patient = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@patient
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_message_comes_as_it_was_sent(content):
    """Any JSON, surrogates of undecodable bytes included, and nothing waits afterwards."""
    message = content | {"type": "hello \udcff", "text": "\ud800 é \x00"}
    ours, theirs = Channel.pair()
    try:
        assert ours.send(message)
        assert theirs.receive() == (message, [])
        assert theirs.receive() is None
        assert ours.receive() is None
    finally:
        ours.close()
        theirs.close()


def test_messages_come_in_order_and_apart(pair):
    for number in range(20):
        assert pair[number % 2].send({"type": "n", "number": number})
    assert [pair[1].receive()[0]["number"] for _ in range(10)] == list(range(0, 20, 2))
    assert [pair[0].receive()[0]["number"] for _ in range(10)] == list(range(1, 20, 2))


@pytest.mark.parametrize("size", [INLINE_LIMIT - 30, INLINE_LIMIT, INLINE_LIMIT + 1, 300_000, 8 << 20])
def test_a_big_message_comes_whole(pair, size):
    """A packet is bounded by the socket's buffer; what is bigger travels in a memfd, which nobody keeps open."""
    before = descriptors()
    message = {"type": "big", "text": "x" * size}
    assert pair[0].send(message)
    assert pair[1].receive() == (message, [])
    assert descriptors() == before


@pytest.mark.parametrize("size", [0, INLINE_LIMIT + 1], ids=["small", "big"])
@pytest.mark.parametrize("count", [1, FDS_PER_MESSAGE])
def test_descriptors_come_along(pair, size, count):
    """In their order, as descriptors of the receiver's own, closed on exec, beside a small message and a big one."""
    before = descriptors()
    read, write = os.pipe()
    marks = [os.memfd_create(f"mark-{number}") for number in range(count - 1)]
    try:
        assert pair[0].send({"type": "fds", "text": "x" * size}, (write, *marks))
        message, fds = pair[1].receive()
        assert message["type"] == "fds"
        assert len(fds) == count
        assert not set(fds) & {write, *marks}
        assert not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[0], b"through")
        assert os.read(read, 100) == b"through"
        assert [os.readlink(f"/proc/self/fd/{fd}").split()[0] for fd in fds[1:]] == [
            f"/memfd:mark-{number}" for number in range(count - 1)
        ]
        for fd in fds:
            os.close(fd)
    finally:
        for fd in (read, write, *marks):
            os.close(fd)
    assert descriptors() == before


def test_a_reader_that_is_gone(pair):
    """Sending raises `PeerGone`, and no SIGPIPE; a big message and one with descriptors do as well."""
    pair[1].close()
    before = descriptors()
    for message, fds in (({"type": "x"}, ()), ({"type": "x", "text": "x" * INLINE_LIMIT}, ()), ({"type": "x"}, (0,))):
        with pytest.raises(PeerGone):
            pair[0].send(message, fds)
    with pytest.raises(PeerGone):
        pair[0].receive()
    assert descriptors() == before


def test_what_was_sent_before_the_end_still_comes(pair):
    """Only after the last message there is the end."""
    pair[0].send({"type": "last words"})
    pair[0].close()
    assert pair[1].receive() == ({"type": "last words"}, [])
    for _ in range(2):
        with pytest.raises(PeerGone):
            pair[1].receive()


def test_the_last_words_of_one_that_never_read_ours(pair):
    """Closing with something of ours unread is an error to the kernel, said once: what was sent before still comes."""
    assert pair[1].send({"type": "sealed"})
    assert pair[0].send({"type": "note"})
    pair[1].close()
    assert pair[0].receive() == ({"type": "sealed"}, [])
    with pytest.raises(PeerGone):
        pair[0].receive()


def test_the_end_of_a_process_is_seen(tmp_path):
    """Killed with unread messages in its buffer, a process leaves `PeerGone` to both calls."""
    ours, theirs = Channel.pair()
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
    ) as child:
        try:
            theirs.close()
            assert ours.send({"type": "unread"})
        finally:
            child.kill()
        child.wait(30)
    with pytest.raises(PeerGone):
        ours.send({"type": "late"})
    with pytest.raises(PeerGone):
        ours.receive()
    ours.close()


@pytest.mark.parametrize("size", [10, INLINE_LIMIT - 100, INLINE_LIMIT + 1], ids=["small", "full", "big"])
def test_a_full_buffer_refuses_and_loses_nothing_that_was_taken(pair, size):
    """With nobody reading, `send` says False at some point and never blocks; what it took is all there, in order."""
    before = descriptors()
    taken = 0
    while pair[0].send({"type": "n", "number": taken, "text": "x" * size}):
        taken += 1
        assert taken < 100_000
    assert not pair[0].send({"type": "n", "number": -1, "text": "x" * size})
    assert descriptors() == before
    assert taken > 0
    for number in range(taken):
        received = pair[1].receive()
        assert received is not None
        assert received[0]["number"] == number
    assert pair[1].receive() is None
    assert pair[0].send({"type": "n", "number": "again"})
    assert pair[1].receive() == ({"type": "n", "number": "again"}, [])


GARBAGE = {
    "no JSON": b"hello",
    "half a message": b'{"type": "x"',
    "two messages": b'{"type":"x"}{"type":"y"}',
    "no text": b"\xff\xfe\x00",
    "a list": b"[1]",
    "a string": b'"type"',
    "null": b"null",
    "no type": b"{}",
    "a type that is no string": b'{"type": 7}',
    "the mark of a big message without its body": b"@",
    "deeper than any parser goes": b"[" * INLINE_LIMIT,
    "longer than any packet of ours": b'{"type":"x","t":"' + b"x" * INLINE_LIMIT + b'"}',
    "a number too long to be one": b'{"type":"x","n":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_protocol_error(pair, data):
    """Said as such, with every descriptor that came along closed; the channel goes on after it."""
    before = descriptors()
    pair[0].sock.send(data)
    with pytest.raises(ProtocolError):
        pair[1].receive()
    null = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(pair[0].sock, [data], [null, null])
    os.close(null)
    with pytest.raises(ProtocolError):
        pair[1].receive()
    assert descriptors() == before
    assert pair[0].send({"type": "fine"})
    assert pair[1].receive() == ({"type": "fine"}, [])


@pytest.mark.parametrize("what", ["folder", "pipe", "write-only", "null"])
def test_a_big_message_whose_body_is_none(pair, tmp_path, what):
    """The mark of a big message with a descriptor that holds nothing: `ProtocolError`, and nothing stays open."""
    before = descriptors()
    read, write = os.pipe()
    fd = {
        "folder": lambda: os.open(tmp_path, os.O_RDONLY),
        "pipe": lambda: os.dup(read),
        "write-only": lambda: os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT),
        "null": lambda: os.open(os.devnull, os.O_RDONLY),
    }[what]()
    if what == "write-only":
        os.write(fd, b'{"type":"x"}')
    socket.send_fds(pair[0].sock, [b"@"], [fd, read])
    for used in (fd, read, write):
        os.close(used)
    with pytest.raises(ProtocolError):
        pair[1].receive()
    assert descriptors() == before


def test_more_descriptors_than_a_message_has_is_a_protocol_error(pair):
    """The kernel cuts the rest off and says so; those that came are closed."""
    before = descriptors()
    socket.send_fds(pair[0].sock, [b'{"type":"x"}'], [0] * (FDS_PER_MESSAGE + 3))
    with pytest.raises(ProtocolError):
        pair[1].receive()
    assert descriptors() == before


@patient
@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_make_it_raise_anything_else(data):
    ours, theirs = Channel.pair()
    try:
        ours.sock.send(data)
        try:
            message, _ = theirs.receive()
            assert isinstance(json.loads(data), dict)
            assert isinstance(message["type"], str)
        except ProtocolError:
            pass
    finally:
        ours.close()
        theirs.close()


@pytest.mark.root
def test_descriptors_that_nobody_takes_over_never_stop_the_sender():
    """Without privileges the kernel bounds the descriptors on their way: then `send` refuses, as with a full buffer."""
    source = """
import os, resource, sys
from sidecar.messages import Channel
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ours, theirs = Channel.pair()
taken = 0
while ours.send({"type": "x"}, (0,) * 20): taken += 1
for _ in range(taken): [os.close(fd) for fd in theirs.receive()[1]]
print("refused", theirs.receive(), ours.send({"type": "x"}, (0,)))
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", source], env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("refused None True\n", "")


def test_a_receiver_without_descriptors_left(pair):
    """It cannot take any over: an error of ours, not a crash; and the next message without one comes."""
    null = os.open(os.devnull, os.O_RDONLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert pair[0].send({"type": "x"}, (null,))
        os.close(lowest := os.dup(null))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        with pytest.raises(ProtocolError):
            pair[1].receive()
        assert pair[0].send({"type": "plain"})
        assert pair[1].receive() == ({"type": "plain"}, [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(null)
