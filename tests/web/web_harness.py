"""The web process as the supervisor starts it, with this test as its supervisor and its guard."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from sidecar.messages import Channel
from sidecar.settings import Launch, Settings, launch_to_fd

ROOT = Path(__file__).resolve().parents[2]
ENTRY = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sidecar.web.__main__ import main;"
    " main(int(sys.argv[2]), int(sys.argv[3]))"
)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = 15.0) -> T:
    """The first true value of `condition`, asked again and again until the deadline: the longer it takes, the rarer,
    since who asks takes processor time from who is to answer.
    """
    begin = time.monotonic()
    pause = select.poll()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begin
        assert waited < seconds, f"waited {seconds} s in vain for {what}"
        pause.poll(min(50.0, max(10.0, waited * 100)))


def listener(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    sock.listen()
    return sock


class Guard:
    """The guard's end: sends states and events, collects what comes back."""

    def __init__(self, channel: Channel, epoch: str) -> None:
        self.channel = channel
        self.epoch = epoch
        self.seq = 0
        self.received: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        wait_for(lambda: self.channel.send(message), "room in the channel")

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        self.seq += 1
        message = {"type": "event", "seq": self.seq, "epoch": self.epoch, "name": name, **fields}
        self.send(message)
        return message

    def state(self, ranks: list[dict[str, Any]] | None = None, **fields: Any) -> None:
        message = {"type": "state", "state": "serving", "engine": "sglang", "expected": None, "incident": ""}
        self.send({**message, "ranks": ranks or [], "features": {"pidfd": True}, **fields})

    def settled(self) -> None:
        """Wait until all that was sent is handled: messages are read in order, and the last one is acknowledged."""
        self.event("settled")
        self.wait_acked(self.seq)

    def read(self) -> list[dict[str, Any]]:
        while (got := self.channel.receive()) is not None:
            self.received.append(got[0])
        return self.received

    def acked(self) -> int:
        """The highest number that was acknowledged; an ack speaks for all before it."""
        return max((m["seq"] for m in self.read() if m["type"] == "ack" and m["epoch"] == self.epoch), default=0)

    def wait_acked(self, seq: int, seconds: float = 15.0) -> None:
        wait_for(lambda: self.acked() >= seq, f"the ack of {seq}", seconds)


def rank(label: str, up: bool = True, role: str = "scheduler", **fields: Any) -> dict[str, Any]:
    return {"role": role, "rank": label, "up": up, "pid": 4711, "container": "c1", "title": label, **fields}


class WebProcess:
    """`settings` are those of `Settings`; the ports are picked here unless `bind` is False."""

    def __init__(self, folder: Path, *, bind: bool = True, api_host: str = "127.0.0.1", **settings: Any) -> None:
        self.folder = folder
        settings.setdefault("dump_dir", str(folder))
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self.sockets: dict[str, socket.socket] = {}
        self.channels: list[Channel] = []
        self.launch_fields = {"config_errors": settings.pop("config_errors", ())}
        if bind:
            self.sockets = {"listen": listener(), "api_listen": listener(host=api_host)}
        self.settings = Settings(**settings)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again as the supervisor does: same sockets, a new control channel."""
        assert self.process is None or self.process.poll() is not None
        launch = Launch(
            settings=self.settings,
            listen_fds={name: (sock.fileno(),) for name, sock in self.sockets.items()},
            **self.launch_fields,
        )
        self.control, theirs = Channel.pair()
        self.channels.append(self.control)
        launch_fd = launch_to_fd(launch)
        fds = (theirs.fileno(), launch_fd, *(s.fileno() for s in self.sockets.values()))
        command = [sys.executable, "-W", "error", "-I", "-c", ENTRY, str(ROOT), str(theirs.fileno()), str(launch_fd)]
        self.process = subprocess.Popen(command, pass_fds=fds, stderr=self.stderr, stdin=subprocess.DEVNULL)
        theirs.close()
        os.close(launch_fd)

    def guard(self, epoch: str = "e1") -> Guard:
        """Connect a (new) guard. `epoch` "" makes one up."""
        epoch = epoch or os.urandom(8).hex()
        ours, theirs = Channel.pair()
        self.channels.append(ours)
        assert self.control.send({"type": "guard"}, (theirs.fileno(),))
        theirs.close()
        return Guard(ours, epoch)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        size = os.fstat(self.stderr.fileno()).st_size
        return os.pread(self.stderr.fileno(), size, 0).decode()

    def port(self, name: str = "listen") -> int:
        return int(self.sockets[name].getsockname()[1])

    def request(self, method: str, path: str, port: str = "listen", **kwargs: Any) -> httpx.Response:
        # `verify`: otherwise each client reads a hundred CA certificates first, for a port without TLS.
        with httpx.Client(trust_env=False, timeout=15, verify=False) as client:
            return client.request(method, f"http://127.0.0.1:{self.port(port)}{path}", **kwargs)

    def get(self, path: str, port: str = "listen", **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, port, **kwargs)

    def api(self, path: str, method: str = "GET", **kwargs: Any) -> httpx.Response:
        return self.request(method, f"/api/v1/{path}", "api_listen", **kwargs)

    def metrics(self) -> dict[str, float]:
        """Every sample by its text, as `rankguard_rank_up{rank="TP0",role="scheduler"}`."""
        answer = self.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        samples = [s for family in text_string_to_metric_families(answer.text) for s in family.samples]
        found = {sample_text(s): s.value for s in samples}
        assert len(found) == len(samples), "a sample is there twice"
        return found

    def openmetrics(self) -> dict[str, float]:
        """The same, asked for as OpenMetrics and read by the strict parser of that format."""
        answer = self.get("/metrics", headers={"accept": OPENMETRICS})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        return {sample_text(s): s.value for family in openmetrics_families(answer.text) for s in family.samples}

    def wait_metric(self, text: str, value: float) -> None:
        wait_for(lambda: self.metrics().get(text) == value, f"{text} {value}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for channel in self.channels:
            channel.close()
        for sock in self.sockets.values():
            sock.close()
        self.stderr.close()


def sample_text(sample: Any) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)


@contextmanager
def web_process(folder: Path, **settings: Any) -> Iterator[WebProcess]:
    web = WebProcess(folder, **settings)
    try:
        yield web
        log = web.log()
        assert "Traceback" not in log, log
        assert "Warning" not in log, log
    finally:
        web.close()


def switches(pid: int) -> int:
    """Times that any thread of the process went to sleep of its own accord, since its start."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total
