"""/livez of a real Rankguard, whatever becomes of its web: a sidecar that is down must not get an engine killed."""

import itertools
import os
import resource
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from life_parts import Ranks, ask, assert_killed_once, port_of, watched
from sidecar_process import Sidecar, eventually, identity_of, kill_identity

import sidecar
from sidecar.supervisor.livez import LOOKS, MOST_OPEN, Livez

GET = b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n"
STARTING = b"the web process is being started\n"

# A guard that says but one thing: in its first life that the engine is stuck, in its second nothing.
SAYS_STUCK = """
import os, select
from sidecar.messages import Channel

def main(channel_fd, launch_fd, heartbeat_fd):
    channel = Channel.from_fd(channel_fd)
    if not os.path.exists(os.environ["SAID"]):
        open(os.environ["SAID"], "w").close()
        channel.send({"type": "livez", "failed": True})
    poll = select.poll()
    poll.register(channel.fileno(), 0)
    poll.poll()
"""


def livez(port: int, request: bytes = GET) -> bytes:
    """The whole answer on a connection of its own, b"" where it was cut. A refused one raises."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        try:
            sock.sendall(request)
            answer = b""
            while chunk := sock.recv(4096):
                answer += chunk
                if whole(answer):
                    break
        except ConnectionError:
            return b""
        return answer


def whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(length) and len(body) >= int(length[0].partition(b":")[2])


def by_supervisor(answer: bytes) -> bool:
    """Its answers say so in a header that the web's do not have."""
    return b"\r\nretry-after:" in answer.lower()


def test_never_refused_while_the_web_is_killed(tmp_path: Path) -> None:
    """Polled all the time, while it is killed again and again: 200 from the one or the other. A connection that the
    killed web had taken is cut, which is one of the kubelet's three failures; it is never two in a row.
    """
    with Ranks() as engine, Sidecar(tmp_path / "dumps", "--captures", "none", *engine.flags) as running:
        engine.start()
        running.wait_serving()
        port = port_of(running)
        answers: list[bytes] = []

        def poll_until(condition: Callable[[], bool], what: str) -> None:
            def polled() -> bool:
                answers.append(livez(port))
                return condition()

            eventually(polled, what)

        web = identity_of(running.worker("web"))
        for kills in range(1, 6):
            poll_until(lambda: not by_supervisor(answers[-1]), "the web's answer")
            kill_identity(web)
            poll_until(lambda n=kills: len(running.events("process ended")) >= n, "its end")
            while (pid := running.worker("web")) in (0, web.pid):
                poll_until(lambda: bool(answers[-1]), "an answer")
            web = identity_of(pid)
        poll_until(lambda: bool(answers[-1]) and not by_supervisor(answers[-1]), "the last web")
        assert {answer.split(b"\r\n")[0] for answer in answers if answer} == {b"HTTP/1.1 200 OK"}
        cut = [not answer for answer in answers]
        assert sum(cut) <= 5
        assert (True, True) not in list(itertools.pairwise(cut))
        assert ask(port, "/metrics")[0] == 200


def without_a_web(running: Sidecar, port: int, request: bytes = GET) -> bytes:
    """What the supervisor answers, since the web is killed until it does."""

    def answer() -> bytes | None:
        with suppress(AssertionError):  # it has ended meanwhile
            kill_identity(identity_of(running.worker("web")))
        came = livez(port, request)
        return came if by_supervisor(came) else None

    came = eventually(answer, f"an answer of the supervisor\n{running.log()}")
    assert isinstance(came, bytes)
    return came


def test_what_the_guard_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 without a web too, where the guard has said so; and no longer once that guard is gone: nobody knows."""
    package = tmp_path / "root" / "sidecar"
    shutil.copytree(Path(sidecar.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "guard" / "__main__.py").write_text(SAYS_STUCK)
    monkeypatch.chdir(package.parent)  # `python -m sidecar` takes this one
    # The flags are for a guard that watches, should this one not take its place: it finds nothing.
    with Sidecar(tmp_path / "dumps", *Ranks().flags, env={"SAID": str(tmp_path / "said")}) as running:
        port = port_of(running)
        eventually((tmp_path / "said").exists, "the guard's word")
        answer = without_a_web(running, port)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"stuck or dead, and is still there\n")
        guard = identity_of(running.worker("guard"))
        kill_identity(guard)
        eventually(lambda: running.worker("guard") not in (0, guard.pid), "the next guard")
        assert without_a_web(running, port).startswith(b"HTTP/1.1 200 ")
        assert without_a_web(running, port, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(STARTING)


NONSENSE = """
import select
from sidecar.messages import Channel
def main(control_fd, launch_fd, heartbeat_fd):
    control = Channel.from_fd(control_fd)
    for message in (
        {"type": "watch"}, {"type": "watch", "ranks": [7]}, {"type": "arm", "incident": 1, "plan": 7, "deadline": "x"},
        {"type": "forget", "identities": [{}]}, {"type": "journal", "incident": 3}, {"type": "finished"},
        {"type": "finished", "exit_status": "x"}, {"type": "disarm"}, {"type": ""},
    ):
        while not control.send(message):
            pass
    select.select([], [], [])
"""


def test_a_guard_that_talks_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's root process does not end over it: that could take a whole group of nodes down."""
    package = tmp_path / "root" / "sidecar"
    shutil.copytree(Path(sidecar.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "guard" / "__main__.py").write_text(NONSENSE)
    monkeypatch.chdir(package.parent)
    with Sidecar(tmp_path / "dumps", *Ranks().flags) as running:
        running.wait("a message of the guard makes no sense", type="disarm")
        port = port_of(running)
        guard = identity_of(running.worker("guard"))
        kill_identity(guard)
        eventually(lambda: running.worker("guard") not in (0, guard.pid), "the next guard")
        assert without_a_web(running, port).startswith(b"HTTP/1.1 200 ")
        assert running.process.poll() is None


def test_a_mistake_of_the_supervisors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is in its own code ends one round and not the container: the next death is dealt with as ever."""
    package = tmp_path / "root" / "sidecar"
    shutil.copytree(Path(sidecar.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    workers = package / "supervisor" / "workers.py"
    right = "    def check_heartbeats(self) -> None:\n"
    assert right in workers.read_text()
    workers.write_text(workers.read_text().replace(right, f"{right}        return 1 / 0\n"))
    monkeypatch.chdir(package.parent)
    with watched(tmp_path / "dumps", "--captures", "process") as (engine, running):
        assert "ZeroDivisionError" in running.wait("a mistake of the supervisor's")["error"]
        kill_identity(identity_of(running.worker("guard")))
        engine.kill("TP1")
        assert_killed_once(engine, running)
        assert running.process.poll() is None


# The part of the supervisor that answers, in a poll loop of this test's.


class Loop:
    """Rounds as the supervisor's. `web_pid` 0: there is no web."""

    def __init__(self, listening: socket.socket) -> None:
        self.livez = Livez([listening.fileno()])
        self.web_pid = 0
        self.port = int(listening.getsockname()[1])

    def round(self) -> None:
        poll = select.poll()
        self.livez.register(poll, self.web_pid)
        at = self.livez.next_at()
        left = 0.02 if at is None else min(0.02, max(0.0, at - time.monotonic()))
        self.livez.work(dict(poll.poll(left * 1000)), time.monotonic())

    def until(self, condition: Callable[[], object], what: str) -> None:
        def met() -> object:
            self.round()
            return condition()

        eventually(met, what)

    def connect(self, stack: ExitStack, data: bytes) -> socket.socket:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
        sock.setblocking(False)
        sock.sendall(data)
        return sock

    def answer(self, sock: socket.socket) -> bytes:
        """All that comes until the end of the connection."""
        came = bytearray()

        def ended() -> bool:
            try:
                data = sock.recv(4096)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            came.extend(data)
            return not data

        self.until(ended, "the end of the connection")
        return bytes(came)


@contextmanager
def alone() -> Iterator[tuple[Loop, socket.socket, ExitStack]]:
    """A loop with its listening socket, and what closes the clients at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        loop = Loop(listening)
        stack.callback(lambda: [sock.close() for sock in loop.livez._listening.values()])
        stack.callback(lambda: [loop.livez._close(fd) for fd in list(loop.livez._open)])
        yield loop, listening, stack


@pytest.mark.parametrize(
    ("request_", "failed", "begin", "end"),
    [
        (GET, False, b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok\n"),
        (GET.replace(b"/livez", b"/livez?verbose=1"), False, b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok\n"),
        (GET.replace(b"GET", b"HEAD"), False, b"HTTP/1.1 200 OK\r\n", b"close\r\n\r\n"),
        (GET, True, b"HTTP/1.1 503 ", b"is still there\n"),
        (GET.replace(b"GET", b"POST"), False, b"HTTP/1.1 503 ", STARTING),
        (GET.replace(b"livez", b"livezz"), False, b"HTTP/1.1 503 ", STARTING),
        (GET.replace(b"livez", b"hooks/prestop"), False, b"HTTP/1.1 503 ", STARTING),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", False, b"HTTP/1.1 503 ", STARTING),
        (b"\r\n\r\n", False, b"HTTP/1.1 503 ", STARTING),
        (b"GET /livez HTTP/1.1\r\nx: " + b"a" * (2048 - 24), False, b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok\n"),
    ],
)
def test_answers(request_: bytes, failed: bool, begin: bytes, end: bytes) -> None:
    with alone() as (loop, _, stack):
        loop.livez.failed = failed
        answer = loop.answer(loop.connect(stack, request_))
        assert answer.startswith(begin)
        assert answer.endswith(end)


def test_slow_clients_keep_nobody_out() -> None:
    """However many hold a connection with half a request, the next one is answered; they cost eight descriptors, and
    those for two seconds. One that has gone costs nothing.
    """
    with alone() as (loop, _, stack):
        before = len(os.listdir("/proc/self/fd"))
        slow = [loop.connect(stack, b"GET /livez") for _ in range(3 * MOST_OPEN)]
        assert b" 200 OK" in loop.answer(loop.connect(stack, GET))
        ours = len(os.listdir("/proc/self/fd")) - before - len(slow) - 1
        assert ours <= MOST_OPEN
        assert loop.livez.next_at() is not None
        with socket.create_connection(("127.0.0.1", loop.port)) as gone:
            gone.sendall(b"GET")
            loop.until(lambda: len(loop.livez._open) == MOST_OPEN, "it let in")
        assert [loop.answer(sock) for sock in slow] == [b""] * len(slow)
        loop.until(lambda: loop.livez.next_at() is None, "all of them gone")
        assert len(os.listdir("/proc/self/fd")) - before == len(slow) + 1


def test_a_web_that_starts_takes_over() -> None:
    """It gets what it takes; what it leaves lying is answered for it, until it has taken one. The next begins anew."""
    with alone() as (loop, listening, stack):
        loop.web_pid = 4711
        assert b" 200 OK" in loop.answer(loop.connect(stack, GET))  # nobody else takes it
        theirs = loop.connect(stack, GET)
        loop.round()
        accepted = stack.enter_context(listening.accept()[0])
        waiting = loop.livez.next_at()
        assert waiting is not None
        loop.until(lambda: loop.livez.next_at() is None, "the sockets left to the web")
        accepted.sendall(b"by the web")
        accepted.close()
        assert loop.answer(theirs) == b"by the web"
        hangs = loop.connect(stack, GET)
        for _ in range(3 * LOOKS):
            loop.round()
            assert loop.livez.next_at() is None  # it costs the supervisor no wakeup any more
        loop.web_pid = 0
        assert b" 200 OK" in loop.answer(hangs)


def test_no_descriptor_left() -> None:
    """The connection waits, and the loop sleeps meanwhile; with descriptors again it is answered."""
    with alone() as (loop, _, stack):
        sock = loop.connect(stack, GET)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        held = [os.dup(sock.fileno()) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            with suppress(OSError):
                while True:
                    held.append(os.dup(sock.fileno()))
            poll = select.poll()
            loop.livez.register(poll, 0)
            loop.livez.work(dict(poll.poll(5000)), time.monotonic())
            at = loop.livez.next_at()
            assert at is not None
            assert at > time.monotonic()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in held:
                os.close(fd)
        assert b" 200 OK" in loop.answer(sock)
