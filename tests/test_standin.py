"""The stand-in engine looks and behaves from outside as the real engines were seen to."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.options import Options, parse
from sidecar.demo.standin import Process, StandIn, StandInError, engine_command
from sidecar.errors import ProcessGone
from sidecar.model import Identity
from sidecar.system.proc import Proc

SPAWNED = re.compile(rb"-c\0from multiprocessing\.spawn import spawn_main; .*\0--multiprocessing-fork\0$")


def cmdline(process: Process | int) -> bytes:
    pid = process if isinstance(process, int) else process.pid
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def title(process: Process) -> str:
    return cmdline(process).rstrip(b"\0").decode()


def stat(process: Process | int):  # type: ignore[no-untyped-def]
    proc = Proc()
    try:
        return proc.stat(process if isinstance(process, int) else process.pid)
    finally:
        proc.close()


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Poll `condition` until it holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        select.select([], [], [], 0.005)


def gone(identity: Identity) -> bool:
    """Ended: no such process any more, or a zombie that waits for whoever is its parent now."""
    now = stat(identity.pid)
    return now is None or now.identity != identity or now.zombie


# What it looks like.


def test_sglang_titles_and_command_line() -> None:
    """Ranks bear SGLang's titles with the trailing NULs of setproctitle; the server keeps its Python command line."""
    with StandIn(engine="sglang", tp=4) as engine:
        engine.wait_ready()
        assert [title(rank) for rank in engine.ranks] == [f"sglang::scheduler_TP{n}" for n in range(4)]
        assert all(cmdline(rank).endswith(b"\0\0\0") for rank in engine.ranks)
        assert title(engine.find("detokenizer")) == "sglang::detokenizer"
        words = cmdline(engine.server).split(b"\0")
        assert words[1:3] == [b"-m", b"sglang.launch_server"]
        assert words[words.index(b"--tp-size") + 1] == b"4"
        assert words[-2:] == [b"30000", b""]


def test_one_group_one_session_and_a_resource_tracker() -> None:
    """Everything shares the server's group and session; beside the ranks there is a real resource tracker."""
    with StandIn(engine="vllm", tp=2) as engine:
        engine.wait_ready()
        assert {(stat(p).pgid, stat(p).sid) for p in engine.processes} == {(engine.server, engine.server)}
        assert b"multiprocessing.resource_tracker" in cmdline(engine.find("resource_tracker"))
        core = engine.find("engine_core")
        assert stat(core).ppid == engine.server
        assert {stat(rank).ppid for rank in engine.ranks} == {core.pid}


def test_sizes_can_be_left_out_of_the_command_line() -> None:
    with StandIn(engine="vllm", tp=2, tp_in_cmdline=False) as engine:
        engine.wait_ready()
        assert b"/vllm\0serve\0" in cmdline(engine.server)
        assert b"parallel" not in cmdline(engine.server)


def test_titles_come_late_and_change() -> None:
    """Before its title a rank is a spawned child; vLLM's workers are named twice."""
    with StandIn(engine="vllm", tp=2, title_when="fifo") as engine:
        engine.wait_for("spawned")
        assert all(SPAWNED.search(cmdline(rank)) for rank in engine.ranks)
        engine.tell("title")
        engine.wait_for("titled")
        assert [title(rank) for rank in engine.ranks] == ["VLLM::Worker", "VLLM::Worker"]
        assert title(engine.find("engine_core")) == "VLLM::EngineCore"
        engine.tell("title")
        engine.wait_ready()
        assert [title(rank) for rank in engine.ranks] == ["VLLM::Worker_TP0", "VLLM::Worker_TP1"]


def test_titles_may_never_come() -> None:
    with StandIn(tp=2, title_when="never") as engine:
        engine.wait_ready()
        assert all(SPAWNED.search(cmdline(rank)) for rank in engine.ranks)


def test_exec_keeps_pid_and_start_time() -> None:
    """The command line changes under an unchanged pid and start time, as with `bash -c "…; exec …"`."""
    with StandIn(tp=1, start_when="fifo") as engine:
        engine.wait_for("starting")
        before = stat(engine.server)
        assert b"sidecar.demo.engine" in cmdline(engine.server)
        engine.tell("start")
        engine.wait_ready()
        assert stat(engine.server).start == before.start == engine.find("server").start
        assert b"sglang.launch_server" in cmdline(engine.server)


def test_data_parallel_has_a_controller() -> None:
    with StandIn(tp=2, dp=2) as engine:
        engine.wait_ready()
        assert title(engine.find("controller")) == "sglang::data_parallel_controller"
        assert [rank.label for rank in engine.ranks] == ["DP0_TP0", "DP0_TP1", "DP1_TP0", "DP1_TP1"]
        assert {stat(rank).ppid for rank in engine.ranks} == {engine.find("controller").pid}


def test_a_single_rank_has_no_suffix() -> None:
    with StandIn(tp=1, detokenizer=False) as engine:
        engine.wait_ready()
        assert [(title(rank), rank.label) for rank in engine.ranks] == [("sglang::scheduler", "scheduler")]


def test_torchrun_ranks_have_sessions_of_their_own() -> None:
    with StandIn(engine="generic", tp=2, own_sessions=True) as engine:
        engine.wait_ready()
        assert [stat(rank).sid for rank in engine.ranks] == [rank.pid for rank in engine.ranks]
        assert b"torch.distributed.run\0--nproc-per-node=2" in cmdline(engine.server)
        for number, rank in enumerate(engine.ranks):
            environment = Path(f"/proc/{rank.pid}/environ").read_bytes().split(b"\0")
            assert f"RANK={number}".encode() in environment
            assert b"WORLD_SIZE=2" in environment
            assert b"LOCAL_WORLD_SIZE=2" in environment


@pytest.mark.parametrize("threads", [0, 2])
def test_threads(threads: int) -> None:
    with StandIn(tp=2, threads=threads) as engine:
        engine.wait_ready()
        assert {stat(rank).threads for rank in engine.ranks} == {1 + threads}


def test_memory_is_touched() -> None:
    with StandIn(tp=1, memory_mib=48) as engine:
        engine.wait_ready()
        status = Path(f"/proc/{engine.ranks[0].pid}/status").read_text()
        match = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert match is not None
        assert int(match[1]) >= 48 * 1024


def test_helpers_are_there_until_the_ranks_are_ready() -> None:
    """Short-lived helpers are in the group while the engine starts, and gone when it is ready."""
    with StandIn(tp=1, helpers=True, title_when="fifo") as engine:
        engine.wait_for("spawned")
        helpers = [process for process in engine.processes if process.role == "helper"]
        assert [cmdline(helper) for helper in helpers] == [b"lscpu\0", b"file\0-b\0", b"sh\0"]
        assert {stat(helper).pgid for helper in helpers} == {engine.server}
        engine.tell("title")
        engine.wait_ready()
        assert all(gone(helper.identity) for helper in helpers)


@pytest.mark.parametrize("escape", ["session", "daemon"])
def test_one_child_leaves_the_group(escape: str) -> None:
    with StandIn(tp=1, escape=escape) as engine:
        engine.wait_ready()
        escaped = stat(engine.find("escaped"))
        assert escaped.sid != engine.server
        assert escaped.pgid != engine.server
        assert (escaped.ppid == engine.server) is (escape == "session")


def test_shared_memory_is_mapped_by_the_ranks_and_left_by_a_kill() -> None:
    """A SIGKILL of everything leaves psm_ and sem.mp- behind, as with the real ones; then the fixture removes them."""
    with StandIn(tp=2, shm=True) as engine:
        engine.wait_ready()
        segment, semaphore = engine.shm
        assert re.fullmatch(r"psm_[0-9a-f]{8}", segment)
        assert semaphore.startswith("sem.mp-")
        for rank in engine.ranks:
            assert segment in Path(f"/proc/{rank.pid}/maps").read_text()
        for process in engine.processes:
            engine.kill(process.label)
        assert engine.wait_gone() == []
        assert Path("/dev/shm", segment).exists()
        assert Path("/dev/shm", semaphore).exists()
    assert not Path("/dev/shm", segment).exists()
    assert not Path("/dev/shm", semaphore).exists()


@pytest.mark.parametrize(
    ("engine_name", "label", "work", "frames"),
    [
        ("sglang", "TP0", "idle", ["broadcast", "recv_requests", "event_loop_overlap", "run_scheduler_process"]),
        ("sglang", "TP1", "forward", ["all_reduce", "forward", "run_batch", "event_loop_overlap"]),
        ("sglang", "TP0", "forward", ["flash_attn_with_kvcache", "run_batch", "event_loop_overlap"]),
        ("vllm", "TP0", "idle", ["acquire_read", "dequeue", "worker_busy_loop"]),
        ("vllm", "TP1", "forward", ["all_reduce", "execute_model", "worker_busy_loop"]),
        ("vllm", "engine_core", "idle", ["wait", "get", "_process_input_queue", "run_busy_loop"]),
        ("vllm", "engine_core", "forward", ["acquire_read", "get_response", "collective_rpc", "step", "run_busy_loop"]),
    ],
)
def test_stacks(engine_name: str, label: str, work: str, frames: list[str]) -> None:
    """The innermost frame is where a real rank waits, and the callers are a real rank's, on a stopped process too."""
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    with StandIn(engine=engine_name, tp=2, work=work, waiting=("TP1",)) as engine:
        engine.wait_ready()
        engine.kill(label, signal.SIGSTOP)
        command = [py_spy, "dump", "--json", "--nonblocking", "--pid", str(engine.find(label).pid)]
        threads = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)
        main = next(thread for thread in threads if thread["thread_name"] == "MainThread")
        names = [frame["name"].rpartition(".")[2] for frame in main["frames"]]
        assert names[0] == frames[0]
        assert [name for name in names if name in frames][-1] == frames[-1]
        assert set(frames) <= set(names)


def test_hundreds_of_light_ranks() -> None:
    """Light ranks are forked: titles, threads and stacks as the others', the server as their parent."""
    with StandIn(light=True, tp=64, threads=1, detokenizer=False) as engine:
        engine.wait_ready()
        assert [title(rank) for rank in engine.ranks] == [f"sglang::scheduler_TP{n}" for n in range(64)]
        assert {(stat(rank).ppid, stat(rank).threads) for rank in engine.ranks} == {(engine.server, 2)}


# How it behaves.


def test_vllm_server_exits_0_after_a_worker_is_killed() -> None:
    """As seen: the engine core ends the other workers and itself, and the server's status is 0."""
    with StandIn(engine="vllm", tp=3, server_behaviour="vllm", reaction=0.0, grace=5.0) as engine:
        engine.wait_ready()
        engine.kill("TP1")
        assert engine.process.wait(10) == 0
        assert engine.wait_gone() == []


def test_vllm_kills_after_its_grace() -> None:
    """A worker that ignores SIGTERM is killed when the grace is over."""
    with StandIn(engine="vllm", tp=2, server_behaviour="vllm", reaction=0.0, grace=0.3, ignore_sigterm=True) as engine:
        engine.wait_ready()
        began = engine.kill("TP1")
        assert engine.process.wait(10) == 0
        assert time.monotonic() - began >= 0.3
        assert engine.wait_gone() == []


def test_sglang_kills_everything_and_itself() -> None:
    with StandIn(tp=3, server_behaviour="sglang", reaction=0.0) as engine:
        engine.wait_ready()
        engine.kill("TP1")
        assert engine.process.wait(10) == -signal.SIGKILL
        assert engine.wait_gone() == []


@pytest.mark.parametrize("reap", [True, False])
def test_a_server_that_stays_answers_200_for_ever(reap: bool) -> None:
    """A dead rank changes nothing: /health says 200, the others live; the dead one is collected, or stays a zombie."""
    with StandIn(tp=2, health_port=0, plain_health=True, reap=reap) as engine:
        engine.wait_ready()
        victim = engine.find("TP1")
        engine.kill("TP1")
        until(lambda: stat(victim) is None if reap else stat(victim).zombie)
        with urllib.request.urlopen(f"http://127.0.0.1:{engine.port}/health", timeout=5) as answer:
            assert answer.status == 200
        assert "TP0" in [process.label for process in engine.alive()]
        assert (stat(victim) is None) is reap


def test_ranks_outlive_a_killed_server() -> None:
    """vLLM's and torchrun's ranks stay for ever when the server is killed, with another parent."""
    with StandIn(engine="vllm", tp=2) as engine:
        engine.wait_ready()
        engine.kill("server")
        engine.process.wait(10)
        until(lambda: stat(engine.find("engine_core")).ppid != engine.server)
        assert {process.label for process in engine.alive()} >= {"engine_core", "TP0", "TP1"}


@pytest.mark.parametrize("name", ["sglang", "vllm", "generic"])
def test_a_clean_stop_ends_with_0(name: str) -> None:
    with StandIn(engine=name, tp=2, shm=True, exit_clean_on_term=True) as engine:
        engine.wait_ready()
        segment = engine.shm[0]
        engine.kill("server", signal.SIGTERM)
        assert engine.process.wait(10) == 0
        assert engine.wait_gone() == []
        assert not Path("/dev/shm", segment).exists()


def test_a_rank_that_ignores_sigterm() -> None:
    with StandIn(tp=1, ignore_sigterm=True) as engine:
        engine.wait_ready()
        ignored = re.search(r"SigIgn:\s+([0-9a-f]+)", Path(f"/proc/{engine.ranks[0].pid}/status").read_text())
        assert ignored is not None
        assert int(ignored[1], 16) & 1 << (signal.SIGTERM - 1)


def test_a_rank_exits_with_a_status() -> None:
    """Told to exit with 3, a rank does; its zombie says so."""
    with StandIn(tp=2, reap=False) as engine:
        engine.wait_ready()
        engine.tell("exit", "TP1", "3")
        until(lambda: stat(engine.find("TP1")).zombie)
        assert os.waitstatus_to_exitcode(stat(engine.find("TP1")).exit_code) == 3


def test_a_zombie_leader_whose_threads_still_run() -> None:
    with StandIn(tp=1) as engine:
        engine.wait_ready()
        rank = engine.ranks[0]
        engine.tell("leader-exit", rank.label)
        until(lambda: stat(rank).zombie)
        assert len(os.listdir(f"/proc/{rank.pid}/task")) == 3
        assert rank.label in [process.label for process in engine.alive()]


# Nothing stays.


def test_nothing_survives_a_failing_test() -> None:
    """Stopped ranks, an escaped one and an orphaned engine: all gone when the block is left by an exception."""
    engine = StandIn(engine="vllm", tp=2, escape="daemon", ignore_sigterm=True)

    def fail() -> None:
        with engine:
            engine.wait_ready()
            engine.kill("server")
            for label in ("TP0", "TP1", "escaped"):
                engine.kill(label, signal.SIGSTOP)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(engine.everyone()) == 6
    assert [identity for identity in engine.everyone() if not gone(identity)] == []


def test_nothing_survives_its_starter(tmp_path: Path) -> None:
    """The one who started it is SIGKILLed: even what is stopped or escaped is killed by the kernel."""
    script = (
        "import json, signal, sys\n"
        "from sidecar.demo.standin import StandIn\n"
        "engine = StandIn(tp=2, escape='daemon').wait_ready()\n"
        "engine.kill('TP1', signal.SIGSTOP)\n"
        "print(json.dumps([[i.pid, i.start] for i in engine.everyone()]), flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as starter:
        try:
            assert starter.stdout is not None
            everyone = [Identity(*pair) for pair in json.loads(starter.stdout.readline())]
            assert len(everyone) == 6
            assert not any(gone(identity) for identity in everyone)
        finally:
            starter.kill()
        until(lambda: all(gone(identity) for identity in everyone))


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(["--light", "--engine", "generic"])
    assert refusal.value.code == 2
    assert "--light" in capsys.readouterr().err.splitlines()[-1]


def test_an_engine_that_cannot_start_is_said_to() -> None:
    refused = StandIn(light=True, engine="generic", stderr=subprocess.DEVNULL)
    with refused, pytest.raises(StandInError, match="ended \\(status 2\\)"):
        refused.wait_ready()
    with pytest.raises(TypeError):
        StandIn(tensor_parallel=4)


def test_killing_twice_is_an_error() -> None:
    with StandIn(tp=1) as engine:
        engine.wait_ready()
        engine.kill("scheduler")
        until(lambda: stat(engine.find("scheduler")) is None)
        with pytest.raises(ProcessGone):
            engine.kill("scheduler")


def test_flags_round_trip() -> None:
    options = Options(engine="vllm", tp=8, reap=False, waiting=("TP1", "TP2"), health_port=0, grace=0.5, helpers=True)
    assert parse(options.to_arguments()) == options
    assert engine_command(options)[1:3] == ["-m", "sidecar.demo.engine"]
