"""The stand-in engine at work: what its HTTP server says and where its ranks stand, as with the real engines."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sidecar_process import eventually

from sidecar.demo.standin import StandIn, StandInError

ENGINES = ("sglang", "vllm")
RUNNING = {"sglang": "sglang:num_running_reqs", "vllm": "vllm:num_requests_running"}
WAITING = {"sglang": "sglang:num_queue_reqs", "vllm": "vllm:num_requests_waiting"}
TOKENS = {"sglang": "sglang:generation_tokens_total", "vllm": "vllm:generation_tokens_total"}
PY_SPY = str(Path(sys.executable).with_name("py-spy"))


def fetch(url: str, timeout: float = 20.0) -> tuple[int, str]:
    """Status and body, whatever the status is."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(engine: StandIn) -> dict[str, float]:
    """Each metric's sum over its labels."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(fetch(engine.url("/metrics"))[1]):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def stack(engine: StandIn, label: str) -> list[str]:
    """The main thread's functions with their files, innermost first: `all_reduce distributed/parallel_state.py`."""
    command = [PY_SPY, "dump", "--json", "--nonblocking", "--pid", str(engine.find(label).pid)]
    for _ in range(20):  # read from a running process, one may be torn
        dump = subprocess.run(command, capture_output=True, timeout=20)
        if dump.returncode == 0:
            break
    threads = json.loads(dump.stdout)
    main = next(thread for thread in threads if thread["thread_name"] == "MainThread")
    return [f"{f['name'].rpartition('.')[2]} {'/'.join(f['filename'].split('/')[-2:])}" for f in main["frames"]]


def spent(pid: int) -> tuple[float, int]:
    """CPU seconds and voluntary context switches so far."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert switches is not None
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK"), int(switches[1])


def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        select.select([], [], [], 0.01)


# The HTTP server.


@pytest.mark.parametrize("name", ENGINES)
def test_the_command_line_says_the_port(name: str) -> None:
    """The port is picked by the system and stands in the server's command line, as does --enable-metrics of SGLang."""
    with StandIn(engine=name, tp=1, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        words = Path(f"/proc/{engine.server}/cmdline").read_text().split("\0")
        assert words[words.index("--port") + 1] == str(engine.port)
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert ("--enable-metrics" in words) is (name == "sglang")
        assert fetch(engine.url("/health"))[0] == 200
        assert fetch(engine.url("/metrics"))[0] == 200
        assert fetch(engine.url("/elsewhere"))[0] == 404


@pytest.mark.parametrize(("name", "flag"), [("sglang", False), ("vllm", True)])
def test_metrics_may_be_off(name: str, flag: bool) -> None:
    with StandIn(engine=name, tp=1, detokenizer=False, health_port=0, metrics=False) as engine:
        engine.wait_ready()
        words = Path(f"/proc/{engine.server}/cmdline").read_text().split("\0")
        assert "--enable-metrics" not in words
        assert ("--disable-log-stats" in words) is flag
        assert fetch(engine.url("/metrics"))[0] == 404


def test_nobody_listens_before_it_is_ready_nor_after_it_closed() -> None:
    """The port is taken from the start, and connections to it are refused until the engine is ready."""
    with StandIn(tp=1, detokenizer=False, health_port=0, title_when="fifo") as engine:
        port = engine.wait_for("spawned")["port"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        engine.tell("title")
        engine.wait_ready()
        assert fetch(engine.url("/health"))[0] == 200
        engine.tell("close-port")

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                pass  # it had come in while the port was closed
            return False

        until(refused)


def test_the_port_dies_with_the_server() -> None:
    """No child keeps the server's socket: its death refuses connections while its ranks live on."""
    with StandIn(engine="vllm", tp=1, health_port=0) as engine:
        engine.wait_ready()
        engine.kill("server")
        engine.process.wait(10)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", engine.port), 5)
        assert "worker" in [process.label for process in engine.alive()]


def test_keep_alive() -> None:
    """Several requests of one connection are answered, as by uvicorn."""
    with StandIn(tp=1, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=20)
        for path in ("/health", "/metrics", "/health_generate"):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, path == "/metrics")
        connection.close()


# Health.


def test_sglang_health_needs_the_ranks() -> None:
    """200 while idle and serving."""
    with StandIn(tp=2, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        for path in ("/health", "/health_generate"):
            assert fetch(engine.url(path))[0] == 200
        engine.work("serve")
        assert fetch(engine.url("/health_generate"))[0] == 200


def test_sglang_health_while_no_rank_answers() -> None:
    """503 after the engine's own limit while no rank gives a token, whatever the reason."""
    with StandIn(tp=2, detokenizer=False, health_port=0, health_limit=0.2) as engine:
        engine.wait_ready()
        for work in ("prefill", "hang", "compile"):
            engine.work(work)
            assert fetch(engine.url("/health_generate"))[0] == 503
        assert fetch(engine.url("/health"))[0] == 503


def test_sglang_health_of_a_stopped_rank() -> None:
    """A rank that is stopped while idle: 503; /health of old says 200, and /health_generate does not."""
    with StandIn(tp=2, detokenizer=False, health_port=0, health_limit=0.3, plain_health=True) as engine:
        engine.wait_ready()
        engine.kill("TP1", signal.SIGSTOP)
        assert fetch(engine.url("/health"))[0] == 200
        assert fetch(engine.url("/health_generate"))[0] == 503


def test_a_health_check_waits_for_the_end_of_a_prefill() -> None:
    """It was asked during the prefill; the answer comes when that ends."""
    with StandIn(tp=2, detokenizer=False, health_port=0, health_limit=60.0) as engine:
        engine.wait_ready()
        engine.work("prefill", running=1)
        answers: list[int] = []
        asker = threading.Thread(target=lambda: answers.append(fetch(engine.url("/health"), 60.0)[0]))
        asker.start()
        engine.work("serve")
        asker.join(60)
        assert answers == [200]


def test_vllm_health_sees_no_hang() -> None:
    """200 with a rank stopped, in a hang, while all spin; 503 once the engine has declared itself dead."""
    with StandIn(engine="vllm", tp=2, health_port=0) as engine:
        engine.wait_ready()
        engine.work("hang", "TP1")
        assert fetch(engine.url("/health"))[0] == 200
        engine.work("spin")
        assert fetch(engine.url("/health"))[0] == 200
        engine.kill("TP1", signal.SIGSTOP)
        assert fetch(engine.url("/health"))[0] == 200
        engine.tell("declare-dead")
        until(lambda: fetch(engine.url("/health"))[0] == 503)


# Metrics.


@pytest.mark.parametrize("name", ENGINES)
def test_serving_moves_the_counters_until_a_rank_is_stopped(name: str) -> None:
    """Tokens are counted step by step; one stopped rank freezes every number, and its going on moves them again."""
    with StandIn(engine=name, tp=2, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        assert samples(engine)[RUNNING[name]] == 0
        engine.work("serve", running=3, waiting=1)
        first = samples(engine)
        assert (first[RUNNING[name]], first[WAITING[name]]) == (3, 1)
        until(lambda: samples(engine)[TOKENS[name]] > first[TOKENS[name]])
        engine.kill("TP1", signal.SIGSTOP)
        until(lambda: Path(f"/proc/{engine.find('TP1').pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        # What the stopped rank had reported before is counted; then TP0 waits for it.
        until(lambda: stack(engine, "TP0")[0] == "all_reduce distributed/parallel_state.py" and quiet(engine, "TP0"))
        frozen = samples(engine)
        assert frozen[RUNNING[name]] == 3
        assert quiet(engine, "TP0")
        assert samples(engine) == frozen
        engine.kill("TP1", signal.SIGCONT)
        until(lambda: samples(engine)[TOKENS[name]] > frozen[TOKENS[name]])


def quiet(engine: StandIn, label: str) -> bool:
    """Whether a rank neither ran nor was woken for half a second."""
    before = spent(engine.find(label).pid)
    select.select([], [], [], 0.5)
    return spent(engine.find(label).pid) == before


@pytest.mark.parametrize("name", ENGINES)
def test_requests_to_a_stopped_engine_are_not_counted(name: str) -> None:
    """The numbers are what the driver said after its last step: requests that came since show in none."""
    with StandIn(engine=name, tp=2, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        before = samples(engine)
        engine.kill("TP1", signal.SIGSTOP)
        engine.work("serve", running=4, wait=False)
        until(lambda: stack(engine, "TP0")[0] == "all_reduce distributed/parallel_state.py")
        assert samples(engine) == before


def test_sglang_counts_the_tokens_of_a_request_at_its_end() -> None:
    """While no request ends, generation_tokens_total stands still although tokens come: as in its source."""
    with StandIn(tp=2, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        engine.work("serve", running=2, endless=True)
        first = samples(engine)
        name = "sglang:realtime_tokens_total"
        until(lambda: samples(engine)[name] > first[name] + 60)
        last = samples(engine)
        for at_its_end in ("sglang:generation_tokens_total", "sglang:prompt_tokens_total", "sglang:num_requests_total"):
            assert last[at_its_end] == first[at_its_end] == 0
        assert last["sglang:inter_token_latency_seconds_count"] > first["sglang:inter_token_latency_seconds_count"]


@pytest.mark.parametrize("name", ENGINES)
def test_no_number_moves_while_no_step_ends(name: str) -> None:
    with StandIn(engine=name, tp=2, detokenizer=False, health_port=0) as engine:
        engine.wait_ready()
        engine.work("serve", running=3)
        for work in ("prefill", "hang", "compile"):
            engine.work(work)
            before = samples(engine)
            assert before[RUNNING[name]] == 3
            select.select([], [], [], 0.2)
            assert samples(engine) == before
        engine.work("idle")
        assert (samples(engine)[RUNNING[name]], samples(engine)[WAITING[name]]) == (0, 0)


# Where the ranks stand.


@pytest.mark.parametrize(
    ("name", "odd", "other"),
    [
        ("sglang", ["wait", "result", "move_ready_grammar_requests", "event_loop_overlap"], "run_batch"),
        ("vllm", ["wait", "result", "start_load_kv", "worker_busy_loop"], "execute_model"),
        ("generic", ["wait", "result", "load_adapter", "serve"], "forward"),
    ],
)
def test_a_hang_has_one_odd_rank_and_all_are_at_rest(name: str, odd: list[str], other: str) -> None:
    with StandIn(engine=name, tp=3, detokenizer=False) as engine:
        engine.wait_ready()
        first, second, third = (rank.label for rank in engine.ranks)
        engine.work("hang", second, running=2)
        seen: list[list[str]] = []

        def stands() -> bool:  # it says that it works a moment before it is there
            seen[:] = [[frame.split()[0] for frame in stack(engine, rank.label)] for rank in engine.ranks]
            return seen[1][0] == odd[0] and [name for name in seen[1] if name in odd] == odd

        eventually(stands, f"{second} in its place")
        eventually(lambda: stack(engine, first) == stack(engine, third), "the others in one place")
        assert stack(engine, first)[0].split()[0] == "all_reduce"
        assert other in [frame.split()[0] for frame in stack(engine, first)]

        def rests() -> bool:
            before = [spent(rank.pid) for rank in engine.ranks]
            select.select([], [], [], 0.3)
            return [spent(rank.pid) for rank in engine.ranks] == before

        eventually(rests, "all at rest")


@pytest.mark.parametrize("name", [*ENGINES, "generic"])
def test_all_spin_in_one_place(name: str) -> None:
    """Each burns CPU, in a synchronize and with the same stack at any time."""
    with StandIn(engine=name, tp=2, detokenizer=False) as engine:
        engine.wait_ready()
        engine.work("spin", running=2)
        until(lambda: all(stack(engine, r.label)[:1] == ["synchronize cuda/streams.py"] for r in engine.ranks))
        stacks = {tuple(stack(engine, rank.label)) for rank in engine.ranks for _ in range(3)}
        assert len(stacks) == 1
        assert stacks.pop()[0] == "synchronize cuda/streams.py"
        before = [spent(rank.pid)[0] for rank in engine.ranks]
        until(lambda: all(spent(r.pid)[0] > cpu + 0.1 for r, cpu in zip(engine.ranks, before, strict=True)))


@pytest.mark.parametrize("name", [*ENGINES, "generic"])
def test_a_compiler_is_a_process_of_the_engine(name: str) -> None:
    """`ptxas` burns CPU as a child of the rank that waits for it, and is gone when the next order comes."""
    with StandIn(engine=name, tp=2, detokenizer=False) as engine:
        engine.wait_ready()
        rank = engine.ranks[0]
        engine.work("compile", running=1)
        compiler = engine.find("ptxas")
        assert (compiler.role, compiler.ppid) == ("compiler", rank.pid)
        assert Path(f"/proc/{compiler.pid}/comm").read_text() == "ptxas\n"
        # Empty for the moment between the exec's first half and its second.
        until(lambda: Path(f"/proc/{compiler.pid}/cmdline").read_text().split("\0")[0].endswith("/ptxas"))
        before = spent(compiler.pid)[0]
        until(lambda: spent(compiler.pid)[0] > before + 0.05)
        waits = ("_try_wait", "_wait", "wait")
        until(lambda: stack(engine, rank.label)[0].split()[0] in waits)
        assert "compile compiler/compiler.py" in stack(engine, rank.label)
        engine.work("idle")
        assert "ptxas" not in [process.label for process in engine.alive()]


def test_a_compiler_does_not_outlive_the_stand_in() -> None:
    """It is killed by the kernel when whoever holds the engine's stdin is gone, its rank dead or not."""
    with StandIn(tp=1, detokenizer=False) as engine:
        engine.wait_ready()
        engine.work("compile")
        compiler = engine.find("ptxas")
        engine.kill("scheduler")
        assert compiler in engine.alive()
        assert engine.process.stdin is not None
        engine.process.stdin.close()
        assert engine.wait_gone() == []


def test_serving_ranks_use_little_and_stand_in_two_places() -> None:
    with StandIn(tp=2, detokenizer=False) as engine:
        engine.wait_ready()
        engine.work("serve")
        places: set[str] = set()
        until(
            lambda: (
                places.add(stack(engine, "TP0")[0].split()[0]) or {"all_reduce", "flash_attn_with_kvcache"} <= places
            )
        )


def test_light_ranks_refuse_work() -> None:
    with StandIn(tp=2, light=True, detokenizer=False) as engine:
        engine.wait_ready()
        with pytest.raises(StandInError, match="light"):
            engine.work("serve")
