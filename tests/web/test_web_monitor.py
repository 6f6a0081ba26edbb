"""The watch over a living engine: real HTTP servers, real ranks, small periods; what the guard hears of it."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engine_pages import sglang_page, vllm_page
from sidecar_process import eventually, state_of
from web_harness import wait_for, web_process

from sidecar import history
from sidecar.demo.standin import StandIn
from sidecar.engines.profile import Endpoint
from sidecar.log import Log
from sidecar.policy.sightings import Look, RankLook
from sidecar.settings import Settings
from sidecar.system.proc import Proc
from sidecar.system.programs import find_pyspy
from sidecar.web.liveness.cpu_times import CpuTimes
from sidecar.web.liveness.monitor import Monitor
from sidecar.web.liveness.scrape import Page
from sidecar.web.state import EngineState, RankState

PYSPY = find_pyspy(sys.executable, os.environ.get("PATH", ""))
FAST = {"probe_period": 0.1, "stall_timeout": 1.0, "stall_limit": 1.5, "probe_timeout": 0.5, "probe_failures": 2}
STALLS = 2  # stall limits in which nothing may be said of an engine that is well


class Engine:
    """What an engine's server answers. `tokens` rise with each reading while `moves`."""

    def __init__(self) -> None:
        self.health = 200
        self.running, self.waiting, self.tokens, self.moves = 0, 0, 0, False
        self.metrics = True
        self.asked = 0
        self.hang = threading.Event()  # set: answer no health check
        self.free = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = engine.answer(self.path, self)
                try:
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, path: str, handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        self.asked += 1
        if path != "/metrics":
            if self.hang.is_set():
                self.free.wait(60)
            return self.health, b"ok"
        if not self.metrics:
            return 404, b""
        self.tokens += self.moves
        lines = [
            f'vllm:num_requests_running{{engine="0"}} {self.running}',
            f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}',
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}',
        ]
        return 200, ("\n".join(lines) + "\n").encode()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.server.server_address[1], health="/health", metrics="/metrics")

    def close(self) -> None:
        self.free.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(20)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    """Two ranks that stand idle, which is at rest: they do nothing unless they are told to."""
    with StandIn(engine="vllm", tp=2, light=True) as engine:
        engine.wait_ready()
        yield engine


def ranks_of(standin: StandIn) -> tuple[RankState, ...]:
    return tuple(RankState(p.role, p.label, True, p.pid, "", p.label, p.start) for p in standin.ranks)


class Watch:
    """A monitor at work, on this test's event loop. `told` is what a guard would have got."""

    def __init__(self, folder: Path, engine: Engine | None, ranks: tuple[RankState, ...], **more: Any) -> None:
        self.told: list[dict[str, Any]] = []
        self.deaf = False
        self.state = EngineState(
            "serving", "vllm", None, ranks, endpoint=engine.endpoint if engine is not None else None
        )
        self._log = (folder / "log").open("a+")
        settings = Settings(dump_dir=str(folder), **{**FAST, **more.pop("settings", {})})
        self.monitor = Monitor(settings, Log("web", "json", self._log.fileno()), self.tell, pyspy=PYSPY, **more)

    def tell(self, message: dict[str, Any]) -> bool:
        if message["type"] == "up":
            self.state = replace(self.state, up=True)  # as the guard's next word will say
        elif not self.deaf:
            self.told.append(json.loads(json.dumps(message)))
        return not self.deaf

    def show(self, **fields: Any) -> None:
        """The guard says how it stands."""
        self.state = replace(self.state, **fields)
        self.monitor.on_state(self.state)

    def verdicts(self) -> list[str]:
        return [message["verdict"]["liveness"] for message in self.told]

    def log(self) -> list[dict[str, Any]]:
        self._log.seek(0)
        return [json.loads(line) for line in self._log]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == event]

    def close(self) -> None:
        self._log.close()


async def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(0.005)
    return value


def watching(
    tmp_path: Path, engine: Engine | None, ranks: tuple[RankState, ...], story: Callable[[Watch], Any], **more: Any
) -> None:
    """Run `story` beside a monitor of this engine."""

    async def life() -> None:
        watch = Watch(tmp_path, engine, ranks, **more)
        running = asyncio.create_task(watch.monitor.run())
        try:
            watch.monitor.on_state(watch.state)
            await story(watch)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait({running})
            watch.close()

    asyncio.run(life())


async def rounds(engine: Engine, number: int) -> None:
    """Wait until so many more questions were asked."""
    enough = engine.asked + number
    await until(lambda: engine.asked >= enough, f"{number} more questions")


async def some_limits(watch: Watch) -> None:
    """A few stall limits go by, with the monitor at work: it is nothing that could be waited for otherwise."""
    end = time.monotonic() + STALLS * FAST["stall_limit"]
    await until(lambda: time.monotonic() >= end, "the end")


@contextmanager
def stopped(standin: StandIn, label: str) -> Iterator[None]:
    identity = standin.find(label).identity
    standin.kill(label, signal.SIGSTOP)
    try:
        eventually(lambda: state_of(identity) == "T", "it is stopped")
        yield
    finally:
        standin.kill(label, signal.SIGCONT)


def test_a_stopped_rank_while_requests_wait(tmp_path, engine, standin):
    """/health says 200, and it is found all the same, with who it is; told again as long as it holds; and once that
    it is over."""
    engine.running, engine.waiting, engine.moves = 2, 3, True

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        await until(lambda: watch.monitor.running, "a scrape")
        assert not watch.monitor.failing
        await rounds(engine, 20)
        assert watch.told == []
        engine.moves = False
        with stopped(standin, "TP1"):
            await until(lambda: watch.told, "a word to the guard")
            message = watch.told[0]
            assert message["type"] == "liveness"
            assert message["probe"] == "progress"
            assert message["verdict"]["liveness"] == "stuck"
            assert message["verdict"]["odd"] == ["TP1"]
            assert message["verdict"]["since"] >= FAST["stall_timeout"]
            assert any("2 requests run and 3 wait" in words for words in message["verdict"]["because"])
            pids = [{"pid": rank.pid, "start": rank.start} for rank in watch.state.ranks]
            assert [identity for identity in message["ranks"] if identity in pids] == message["ranks"] != []
            assert watch.monitor.failing
            await until(lambda: len(watch.told) > 1, "a repetition")
        engine.moves = True
        await until(lambda: watch.verdicts()[-1] != "stuck", "the good word")
        told = len(watch.told)
        await rounds(engine, 20)
        assert len(watch.told) == told
        assert not watch.monitor.failing
        assert len(watch.events("the engine makes no progress")) == 1
        assert len(watch.events("the engine makes progress again")) == 1

    watching(tmp_path, engine, ranks_of(standin), story)


def test_an_engine_that_is_well(tmp_path, engine, standin):
    """It is never called anything else, and idle it is not even looked at closely."""

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        await until(lambda: watch.monitor.summary()["verdict"] == "idle", "it is idle")
        engine.running, engine.moves = 1, True
        await until(lambda: watch.monitor.summary()["verdict"] == "busy", "it is busy")
        await some_limits(watch)
        assert watch.told == []
        assert watch.monitor.summary()["closer_looks"] == 0

    watching(tmp_path, engine, ranks_of(standin), story)


def test_metrics_before_the_health_check(tmp_path, engine, standin):
    """Its first request waits for a first kernel to be compiled: it is not up before either is done."""
    engine.health, engine.running = 503, 1

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.running, "a scrape")
        await rounds(engine, 10)
        assert not watch.monitor.summary()["up"]
        engine.moves = True
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")

    watching(tmp_path, engine, ranks_of(standin), story)


@pytest.mark.parametrize("how", ["hangs", "refused"])
def test_nothing_counts_before_the_first_success(tmp_path, engine, standin, how):
    """Weights are loaded, which takes any time; a rank that stands still then is nothing."""
    engine.metrics, engine.health = False, 503
    if how == "hangs":
        engine.hang.set()
    endpoint = engine.endpoint if how != "refused" else Endpoint("127.0.0.1", 1, health="/health", metrics="/metrics")

    async def story(watch: Watch) -> None:
        watch.show(state="starting", endpoint=endpoint)
        with stopped(standin, "TP0"):
            await some_limits(watch)
        assert watch.told == []
        assert not watch.monitor.summary()["up"]
        assert watch.monitor.failing  # for a hook, whoever asks
        assert watch.events("the engine's health check failed") == []

    watching(tmp_path, engine, ranks_of(standin), story)


def test_a_health_check_that_fails(tmp_path, engine, standin):
    """With ranks that do nothing, it is a hang, metrics or not."""
    engine.metrics = False

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        engine.hang.set()
        await until(lambda: watch.told, "a word to the guard")
        assert watch.verdicts()[0] == "stuck"
        assert len(watch.events("the engine's health check failed")) == 1
        assert watch.monitor.summary()["last_probe"]["answer"] == "timeout"

    watching(tmp_path, engine, ranks_of(standin), story)


def test_nobody_answers_any_more(tmp_path, standin):
    engine = Engine()

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        engine.close()
        await until(lambda: watch.told, "a word to the guard")
        assert watch.verdicts()[0] == "dead"
        assert watch.told[0]["probe"] == "http"

    try:
        watching(tmp_path, engine, ranks_of(standin), story, settings={"probe_failures": 20})
    finally:
        engine.server.server_close()


def test_a_pause_while_an_incident_is_open(tmp_path, engine, standin):
    """Nothing is asked then, what was frozen meanwhile is no stall, and the clock begins anew."""
    engine.running, engine.moves = 1, True

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        watch.show(incident="i1")
        await asyncio.sleep(0)
        before = None
        while before != engine.asked:  # what was under way is answered
            before = engine.asked
            await asyncio.sleep(0.1)
        engine.moves = False
        with stopped(standin, "TP0"):
            await some_limits(watch)
        assert engine.asked == before
        assert not watch.monitor.summary()["watching"]
        watch.show(incident="")
        await rounds(engine, 2)
        assert watch.told == []
        # It does not move, and that is found now, but not sooner than for any other engine.
        await until(lambda: watch.told, "a word to the guard")
        assert watch.told[0]["verdict"]["since"] < STALLS * FAST["stall_limit"]

    watching(tmp_path, engine, ranks_of(standin), story)


@pytest.mark.parametrize("fields", [{"state": "draining"}, {"state": "restarting"}, {"state": "failing"}])
def test_only_a_running_engine_is_watched(tmp_path, engine, standin, fields):
    async def story(watch: Watch) -> None:
        watch.show(**fields)
        assert not watch.monitor.summary()["watching"]
        await asyncio.sleep(0.3)
        assert engine.asked == 0
        watch.monitor.on_state(None)
        assert not watch.monitor.summary()["watching"]
        watch.show(state="serving")
        await rounds(engine, 2)

    watching(tmp_path, engine, ranks_of(standin), story)


def test_what_is_still_bad_after_an_incident_stays_so(tmp_path, engine, standin):
    """An engine that is only captured: nothing good is said of it while it stands still, and its recovery is."""
    engine.running = 1

    async def story(watch: Watch) -> None:
        with stopped(standin, "TP1"):
            await until(lambda: watch.told, "a word to the guard")
            watch.show(incident="i1", state="failing")
            await asyncio.sleep(0.3)
            watch.show(incident="")
            told = len(watch.told)
            await until(lambda: len(watch.told) > told + 1, "a repetition")
            assert set(watch.verdicts()) == {"stuck"}
        engine.moves = True
        await until(lambda: watch.verdicts()[-1] != "stuck", "the good word")

    watching(tmp_path, engine, ranks_of(standin), story)


def test_another_engine_begins_anew(tmp_path, engine, standin):
    """Whoever was up before: this one loads its weights. Where some come or go it is the same engine."""

    async def story(watch: Watch) -> None:
        ranks = watch.state.ranks
        watch.show(ranks=ranks[:1])
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        watch.show(ranks=ranks)
        assert watch.monitor.summary()["up"]
        watch.show(ranks=ranks[1:])
        watch.show(ranks=())
        assert watch.monitor.summary()["up"]
        engine.health, engine.metrics = 503, False
        watch.show(ranks=tuple(replace(rank, start=rank.start + 1) for rank in ranks), up=False)
        assert not watch.monitor.summary()["up"]
        assert watch.monitor.summary()["verdict"] is None

    watching(tmp_path, engine, ranks_of(standin), story)


def test_what_an_earlier_web_has_seen_up_is_up(tmp_path, engine, standin):
    """Else a hang during which the web is started again, on an engine that answers nothing, would never be found."""
    engine.health, engine.metrics = 503, False

    async def story(watch: Watch) -> None:
        await rounds(engine, 4)
        assert not watch.monitor.summary()["up"]
        watch.show(up=True)
        assert watch.monitor.summary()["up"]
        await until(lambda: "stuck" in watch.verdicts(), "the verdict")

    watching(tmp_path, engine, ranks_of(standin), story)


def test_a_guard_that_does_not_hear_is_told_again(tmp_path, engine, standin):
    engine.running = 1

    async def story(watch: Watch) -> None:
        watch.deaf = True
        with stopped(standin, "TP1"):
            await until(lambda: watch.events("the engine makes no progress"), "the verdict")
            watch.deaf = False
            await until(lambda: watch.told, "a word to the guard")
            watch.deaf = True
        engine.moves = True
        await rounds(engine, 10)
        watch.deaf = False
        await until(lambda: watch.verdicts()[-1] != "stuck", "the good word")

    watching(tmp_path, engine, ranks_of(standin), story)


def test_a_web_that_begins_in_the_middle(tmp_path, engine, standin):
    """The guard says that it was found stuck. It is watched at once, and nothing good is said before it moves."""
    engine.running, engine.health = 1, 503

    async def story(watch: Watch) -> None:
        watch.show(failed=True)
        assert watch.monitor.failing
        await rounds(engine, 4)
        assert watch.told == []
        engine.moves, engine.health = True, 200
        await until(lambda: watch.told, "the good word")
        assert watch.verdicts() == ["busy"]

    watching(tmp_path, engine, ranks_of(standin), story, settings={"stall_timeout": 30.0, "stall_limit": 300.0})


def test_urls_that_were_told(tmp_path, engine, standin):
    """They stand above what the command line says, and none means none."""
    port = engine.endpoint.port
    settings = {"health_url": f"http://127.0.0.1:{port}/mine?api_key=secret", "metrics_url": "none"}

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        summary = watch.monitor.summary()
        assert summary["metrics_url"] is None
        assert summary["last_scrape"] is None
        assert f"127.0.0.1:{port}/mine" in summary["health_url"]
        assert "secret" not in json.dumps(summary)
        assert "secret" not in json.dumps(watch.log())

    watching(tmp_path, engine, ranks_of(standin), story, settings=settings)


def test_a_url_that_cannot_be_asked(tmp_path, engine, standin):
    """Nothing is learnt of the engine, so nothing is said of it but one line of the log."""
    settings = {"health_url": f"http://user:secret@127.0.0.1:{engine.endpoint.port}/", "metrics_url": "none"}

    async def story(watch: Watch) -> None:
        await until(lambda: watch.events("the engine's health check cannot be made"), "a line that says so")
        await some_limits(watch)
        assert len(watch.events("the engine's health check cannot be made")) == 1
        assert not watch.monitor.failing
        assert "secret" not in json.dumps([watch.log(), watch.monitor.summary()])

    watching(tmp_path, engine, ranks_of(standin), story, settings=settings)


def test_an_engine_with_no_server(tmp_path, standin):
    """Nothing is known of it: it is said once, and it is never called stuck."""

    async def story(watch: Watch) -> None:
        said = "whether the engine makes progress is not known: it has neither health check nor metrics"
        await until(lambda: watch.events(said), "a line that says so")
        with stopped(standin, "TP0"):
            await some_limits(watch)
        assert len(watch.events(said)) == 1
        assert watch.told == []

    watching(tmp_path, None, ranks_of(standin), story)


def test_metrics_alone(tmp_path, engine, standin):
    engine.running = 1

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        with stopped(standin, "TP1"):
            await until(lambda: watch.told, "a word to the guard")

    watching(tmp_path, engine, ranks_of(standin), story, settings={"health_url": "none"})


def test_the_history_gets_what_was_scraped(tmp_path, engine, standin):
    engine.running = 7
    fd = history.create()
    try:

        async def story(watch: Watch) -> None:
            await until(lambda: b"num_requests_running" in history.read(fd), "a scrape in the history")

        watching(tmp_path, engine, ranks_of(standin), story, history=history.HistoryWriter(fd))
        assert b"7" in history.read(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("health", ["auto", "none"])
def test_the_history_gets_the_ranks_cpu_times_with_no_metrics_too(tmp_path, engine, standin, health):
    """With a health check alone, and with neither: as long as the guard names ranks."""
    fd = history.create()
    times: dict[str, list[float]] = {}
    proc = Proc()

    def used(pid: int) -> float:
        return proc.stat(pid).cpu_ticks / 100

    before = {rank.pid: used(rank.pid) for rank in ranks_of(standin)}

    def several() -> bool:
        times.clear()
        for line in history.read(fd).splitlines():
            for text in json.loads(line)["lines"]:
                name, value = text.split()
                times.setdefault(name, []).append(float(value))
        return all(len(found) > 2 for found in times.values()) and len(times) == 2

    try:

        async def story(watch: Watch) -> None:
            await until(several, "the CPU times of both ranks")

        settings = {"health_url": health, "metrics_url": "none"}
        watching(tmp_path, engine, ranks_of(standin), story, settings=settings, history=history.HistoryWriter(fd))
        for rank in ranks_of(standin):
            found = times.pop(f'rankguard_rank_cpu_seconds{{rank="{rank.rank}"}}')
            assert [before[rank.pid], *found, used(rank.pid)] == sorted([before[rank.pid], *found, used(rank.pid)])
        assert not times
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("number", "page", "least"),
    [(8, sglang_page(running=[1.0] * 8, waiting=[0.0] * 8), 30), (8, vllm_page(), 30), (1024, vllm_page(), 4)],
)
def test_cpu_times_leave_the_metrics_their_room(number: int, page: bytes, least: int) -> None:
    """Ten minutes of looks and scrapes of real size, each 10 s: at the end the last five are there, of both kinds."""
    fd = history.create()
    try:
        writer = history.HistoryWriter(fd)
        times = CpuTimes(writer, 10.0)
        lines = Page("")
        lines.take(page)
        for second in range(0, 600, 10):
            ranks = [
                RankLook(f"DP{n // 64}_PP{n // 8 % 8}_TP{n % 8}", "worker", "R", cpu=1e6 + n) for n in range(number)
            ]
            times.add(Look(1000.0 + second, tuple(ranks)))
            times.add(Look(1000.4 + second, tuple(ranks)))  # a closer one
            assert writer.add(0.0, 1000.0 + second, lines.lines())
        kept = [json.loads(line) for line in history.read(fd).splitlines()]
    finally:
        os.close(fd)
    cpu = [one["at"] for one in kept if one["lines"][0].startswith("rankguard_rank_cpu_seconds{")]
    metrics = [one["at"] for one in kept if not one["lines"][0].startswith("rankguard_")]
    assert len(metrics) == 31
    assert least <= len(cpu) <= 31
    assert all(len(one["lines"]) == number for one in kept if one["at"] in cpu and one["lines"][0].startswith("rank"))


def test_a_part_that_fails_ends_nothing(tmp_path, engine, standin):
    """A /proc that is not there, so that no look can be taken: one line, and the rest of the watch goes on."""
    engine.running = 1

    async def story(watch: Watch) -> None:
        said = "the liveness watch failed in its part look"
        await until(lambda: watch.events(said), "a line that says so")
        await rounds(engine, 20)
        assert len(watch.events(said)) == 1
        # With no looks at all the limit decides.
        await until(lambda: watch.told, "a word to the guard")
        assert watch.told[0]["verdict"]["since"] >= FAST["stall_limit"]

    watching(tmp_path, engine, ranks_of(standin), story, proc=Proc(str(tmp_path / "nowhere")))


def test_we_ourselves_were_stopped(tmp_path, engine, standin):
    """A web that got no CPU for longer than the limit has seen nothing in that time, and claims nothing of it."""
    engine.running, engine.moves = 1, True

    async def story(watch: Watch) -> None:
        await until(lambda: watch.monitor.summary()["up"], "the engine is up")
        await rounds(engine, 4)
        time.sleep(FAST["stall_limit"] + 1)  # the event loop stands still: what this is about
        await rounds(engine, 10)
        assert watch.told == []
        assert len(watch.events("the liveness watch stood still itself and begins anew")) == 1

    watching(tmp_path, engine, ranks_of(standin), story)


def test_the_web_process(tmp_path, engine, standin):
    """From a state of the guard's to a word to the guard, through the real process; and what people see of it."""
    engine.running = 1
    settings = {"probe_period": 0.2, "stall_timeout": 1.0, "probe_timeout": 1.0}
    with web_process(tmp_path, **settings) as web:
        guard = web.guard()
        told = [
            {"role": r.role, "rank": r.rank, "up": True, "pid": r.pid, "start": r.start, "container": "", "title": ""}
            for r in ranks_of(standin)
        ]
        endpoint = {
            "host": "127.0.0.1", "port": engine.endpoint.port, "tls": False, "health": "/health",
            "metrics": "/metrics", "unhealthy_is_dead": True,
        }  # fmt: skip
        guard.state(told, engine="vllm", endpoint=endpoint, failed=False)
        wait_for(lambda: web.api("status").json()["liveness"]["up"], "the engine is up")
        assert web.get("/livez").status_code == 200
        with stopped(standin, "TP1"):
            heard = wait_for(lambda: [m for m in guard.read() if m["type"] == "liveness"], "a word to the guard")
            assert heard[0]["verdict"]["liveness"] == "stuck"
            shown = web.api("status").json()["liveness"]
            assert shown["verdict"] == "stuck"
            assert shown["odd"] == ["TP1"]
            guard.state(told, engine="vllm", endpoint=endpoint, failed=True, state="failing")
            wait_for(lambda: web.get("/livez").status_code == 503, "the engine called failed")
        # A guard of another version, which says less.
        guard.state(told)
        wait_for(lambda: web.get("/livez").status_code == 200, "the engine not called failed")


@pytest.mark.parametrize(
    "endpoint",
    [
        7, [], {}, {"host": "h"}, {"host": "h", "port": 0}, {"host": "h", "port": True}, {"host": "", "port": 80},
        {"host": "h@x", "port": 80}, {"host": "h/p", "port": 80, "health": "x"}, {"host": "h\n", "port": 80},
        {"host": "h", "port": 80, "metrics": "/m\r\nX: y"}, {"host": "h", "port": 80, "health": "/" * 5000},
    ],
)  # fmt: skip
def test_endpoints_that_are_none(shared, endpoint):
    """The whole message is ignored, with one line; the state before it stays."""
    guard = shared.guard(os.urandom(8).hex())
    guard.state([], engine="before")
    guard.state([], engine="after", endpoint=endpoint)
    guard.settled()
    assert shared.api("status").json()["engine"] == "before"
