"""What the lighter collectors make of their sources, and of sources that lie, hang, end or were never there."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorder_rig import ID, Ranks, Rig, Start, all_bytes, artifacts, identity_of, incident, rank_process

from sidecar.history import HistoryWriter, create
from sidecar.model import RankProcess, Role
from sidecar.recorder.capture import TABLE
from sidecar.recorder.capture.nvml import snapshot
from sidecar.settings import CAPTURES
from sidecar.web.counters import KINDS

REPORT = b"NCCL version 2.27.3\nJob summary\n Nodes 1 Processes 8 GPUs 8\n"
Talk = Callable[[socket.socket, int], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], str]]:
    """Start a server that talks with each of its clients, told which one it is; gives its address."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []
    over = threading.Event()

    def begin(talk: Talk) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            count = 0
            while not over.is_set():
                if not select.select([listener], [], [], 0.05)[0]:
                    continue
                client, _ = listener.accept()
                client.settimeout(5)
                thread = threading.Thread(target=serve_one, args=(client, count))
                threads.append(thread)
                thread.start()
                count += 1

        def serve_one(client: socket.socket, number: int) -> None:
            with client:
                try:
                    talk(client, number)
                except OSError:
                    pass  # the collector has had enough

        thread = threading.Thread(target=accept)
        threads.append(thread)
        thread.start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    begin.over = over  # type: ignore[attr-defined]
    try:
        yield begin
    finally:
        over.set()
        for thread in threads:
            thread.join(6)
        for listener in listeners:
            listener.close()


def lines_of(client: socket.socket) -> Iterator[bytes]:
    with client.makefile("rb") as stream:
        yield from stream


def ras(client: socket.socket, _: int = 0) -> None:
    """NCCL's side of the protocol, as its documentation tells it."""
    for line in lines_of(client):
        command = line.strip().lower()
        if command.startswith(b"client protocol "):
            client.sendall(b"SERVER PROTOCOL 2\n")
        elif command.startswith(b"timeout "):
            client.sendall(b"OK\n")
        elif command == b"verbose status":
            client.sendall(REPORT[:10])
            client.sendall(REPORT[10:])
            return
        else:
            client.sendall(b"ERROR: Unknown command\n")


def capture(
    start: Start, name: str, watched: list[RankProcess], seconds: float = 10.0, frozen: bool = False, **settings: Any
) -> tuple[Rig, list[dict[str, Any]]]:
    """Run one collector, and the process state beside it; gives the artifacts of the former."""
    rig = start(**settings)
    rig.until("standing_by")
    what = incident(captures=("process", name))
    rig.begin(what, watched, frozen=frozen, seconds=seconds)
    rig.until("captures_done", 20)
    rig.seal(what)
    record = rig.record()
    made = [a for a in record["artifacts"] if a["kind"] != "process"]
    assert [a["status"] for a in record["artifacts"] if a["kind"] == "process"] == ["captured"] * len(watched)
    for artifact in made:
        if artifact["path"]:
            data = (rig.dump_dir / ID / artifact["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact["bytes"], artifact["sha256"])
    assert {oct(path.stat().st_mode & 0o777) for path, _ in all_bytes(rig.dump_dir)} == {"0o600"}
    assert not list(rig.dump_dir.rglob("*.partial"))
    return rig, made


def test_the_kinds_that_the_web_counts_from_0_are_those_that_the_collectors_make() -> None:
    """All but the analysis, which collects nothing: nobody can ask for it, and it is not counted."""
    made: dict[str, list[str]] = {name: [] for name in (*CAPTURES, "analysis")}
    for entry in TABLE:
        made[entry.second_of or entry.name] += entry.kinds.values()
    assert made.pop("analysis")
    assert {name: tuple(kinds) for name, kinds in made.items()} == {n: KINDS.get(n, (n,)) for n in CAPTURES}


# -- NCCL RAS ---------------------------------------------------------------------------------------------------------


def nccl(ranks: Ranks, address: str) -> list[RankProcess]:
    return [rank_process(ranks.start(env={"NCCL_RAS_ADDR": address}), "TP0")]


def test_the_report_of_nccl_is_kept_as_it_comes(start: Start, ranks: Ranks, serve: Callable[[Talk], str]) -> None:
    rig, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(ras)))
    assert (artifact["kind"], artifact["rank"], artifact["status"]) == ("nccl_ras", "engine", "captured")
    assert rig.text("nccl_ras/engine.txt").encode() == REPORT


def test_a_rank_that_hangs_on_the_shared_port_is_left_for_another(
    start: Start, ranks: Ranks, serve: Callable[[Talk], str]
) -> None:
    """All ranks of a machine listen on one port, and the kernel chooses whom a connection reaches."""

    def first_hangs(client: socket.socket, number: int) -> None:
        if number == 0:
            serve.over.wait(5)  # type: ignore[attr-defined]
        else:
            ras(client)

    rig, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(first_hangs)))
    assert artifact["status"] == "captured"
    assert rig.text("nccl_ras/engine.txt").encode() == REPORT


def garbage(client: socket.socket, _: int) -> None:
    client.sendall(os.urandom(4096).replace(b"\n", b" ") + b"\n")
    client.recv(100)


def web_server(client: socket.socket, _: int) -> None:
    client.recv(100)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\nsecret-of-another-service")


def closes(client: socket.socket, _: int) -> None:
    client.recv(100)


def refuses_the_timeout(client: socket.socket, _: int) -> None:
    lines = lines_of(client)
    next(lines)
    client.sendall(b"SERVER PROTOCOL 2\n")
    next(lines)
    client.sendall(b"ERROR: no\n")


@pytest.mark.parametrize("talk", [garbage, web_server, closes, refuses_the_timeout])
def test_what_does_not_speak_the_protocol_is_told_apart(
    start: Start, ranks: Ranks, serve: Callable[[Talk], str], talk: Talk
) -> None:
    rig, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(talk)))
    assert artifact["status"] == "failed"
    assert artifact["detail"].endswith("what listens there does not speak NCCL's RAS protocol")
    assert all(b"secret-of-another" not in data for _, data in all_bytes(rig.dump_dir))


def test_a_port_where_nobody_listens_is_no_failure(start: Start, ranks: Ranks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as was:
        address = f"127.0.0.1:{was.getsockname()[1]}"
    _, [artifact] = capture(start, "nccl_ras", nccl(ranks, address))
    assert artifact["status"] == "skipped"
    assert "nobody listens" in artifact["detail"]


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:notaport", ":::", "127.0.0.1:99999999"])
def test_an_address_that_is_none_is_said(start: Start, ranks: Ranks, address: str) -> None:
    _, [artifact] = capture(start, "nccl_ras", nccl(ranks, address))
    assert artifact["status"] == "failed"
    assert artifact["detail"].startswith(f"{address}: ")


def test_who_never_answers_costs_the_limit_and_nothing_else(
    start: Start, ranks: Ranks, serve: Callable[[Talk], str]
) -> None:
    def silent(client: socket.socket, _: int) -> None:
        serve.over.wait(5)  # type: ignore[attr-defined]

    _, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(silent)), seconds=1.5)
    assert artifact["status"] == "timed_out"


def test_a_report_that_does_not_end_is_kept_so_far(start: Start, ranks: Ranks, serve: Callable[[Talk], str]) -> None:
    def stops(client: socket.socket, _: int) -> None:
        lines = lines_of(client)
        for answer in (b"SERVER PROTOCOL 2\n", b"OK\n", REPORT[:30]):
            next(lines)
            client.sendall(answer)
        serve.over.wait(5)  # type: ignore[attr-defined]

    rig, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(stops)), seconds=1.5)
    assert artifact["status"] == "partial"
    assert rig.text("nccl_ras/engine.txt").encode() == REPORT[:30]


def test_a_report_without_end_is_cut(start: Start, ranks: Ranks, serve: Callable[[Talk], str]) -> None:
    def endless(client: socket.socket, _: int) -> None:
        lines = lines_of(client)
        for answer in (b"SERVER PROTOCOL 2\n", b"OK\n"):
            next(lines)
            client.sendall(answer)
        while True:
            client.sendall(b"x" * 65536)

    _, [artifact] = capture(start, "nccl_ras", nccl(ranks, serve(endless)))
    assert artifact["status"] == "partial"
    assert artifact["detail"].endswith("more than is kept")
    assert artifact["bytes"] <= 4 << 20


# -- Flight Recorder --------------------------------------------------------------------------------------------------

# What PyTorch's heartbeat thread does: make the pipe, look at it now and then, dump when anything was written to it.
FLIGHT = """
import os, sys, time
stem, prefix, behaviour = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"], os.environ["DUMP"], sys.argv[1]
data = bytes.fromhex(os.environ["DATA"])
pipe = stem + "7.pipe"
os.mkfifo(pipe, 0o666)
fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
if behaviour == "not-reading":
    os.close(fd)
print("ready", flush=True)
while behaviour in ("not-reading", "deaf"):
    time.sleep(1)
while True:
    try:
        said = os.read(fd, 128)
    except BlockingIOError:
        said = b""
    if said:
        with open(prefix + "7", "wb", buffering=0) as dump:
            dump.write(data[: len(data) // 2])
            if behaviour == "dies":
                os._exit(1)
            while behaviour == "half":
                time.sleep(1)
            time.sleep(0.1)
            dump.write(data[len(data) // 2 :])
    time.sleep(0.05)
"""
DUMP = pickle.dumps({"version": "2.9", "entries": [{"collective_seq_id": n} for n in range(500)]})


def flight(ranks: Ranks, folder: Path, behaviour: str = "ok", **more: str) -> list[RankProcess]:
    env = {
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(folder / "pipe_"),
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "trace_"),
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "DUMP": str(folder / "trace_"),
        "DATA": DUMP.hex(),
        **more,
    }
    return [rank_process(ranks.start(behaviour, code=FLIGHT, env=env), "TP7")]


def test_a_dump_is_triggered_and_copied_as_it_is(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """Which of PyTorch's ranks it is says the name of its pipe: no RANK is set."""
    rig, [artifact] = capture(start, "flight_recorder", flight(ranks, tmp_path))
    assert (artifact["status"], artifact["path"]) == ("captured", "flight_recorder/TP7.pickle")
    assert (rig.dump_dir / ID / artifact["path"]).read_bytes() == DUMP
    assert "never load it" in artifact["detail"]


def test_the_default_place_of_a_dump_is_known(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / ".cache" / "torch").mkdir(parents=True)
    prefix = str(tmp_path / ".cache" / "torch" / "comm_lib_trace_rank_")
    watched = flight(ranks, tmp_path, TORCH_FR_DUMP_TEMP_FILE="", HOME=str(tmp_path), DUMP=prefix)
    _, [artifact] = capture(start, "flight_recorder", watched)
    assert artifact["status"] == "captured"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"}, "skipped", "not enabled: its buffer size is 0"),
        ({"behaviour": "not-reading", "RANK": "7"}, "failed", "nobody reads its pipe"),
        ({"behaviour": "not-reading"}, "skipped", "not enabled: it has made no pipe"),
        ({"behaviour": "deaf"}, "timed_out", "triggered, and no file came in time"),
        ({"behaviour": "dies"}, "failed", "the process ended while it dumped"),
    ],
)
def test_each_way_to_no_dump_is_told_apart(
    start: Start, ranks: Ranks, tmp_path: Path, change: dict[str, str], status: str, said: str
) -> None:
    _, [artifact] = capture(start, "flight_recorder", flight(ranks, tmp_path, **change), seconds=1.5)
    assert (artifact["status"], artifact["detail"], artifact["path"]) == (status, said, "")


def test_a_rank_without_the_recorder_is_skipped(start: Start, ranks: Ranks) -> None:
    _, [artifact] = capture(start, "flight_recorder", [rank_process(ranks.start(), "TP0")])
    assert artifact["status"] == "skipped"
    assert "TORCH_NCCL_DEBUG_INFO_PIPE_FILE is not set" in artifact["detail"]


def test_half_a_dump_is_partial(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    rig, [artifact] = capture(start, "flight_recorder", flight(ranks, tmp_path, "half"), seconds=1.5)
    assert artifact["status"] == "partial"
    assert DUMP.startswith((rig.dump_dir / ID / artifact["path"]).read_bytes())


def test_a_dump_of_before_is_told_from_an_answer(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """PyTorch dumps by itself when a collective times out; that may be all there is."""
    watched = flight(ranks, tmp_path, "deaf")
    (tmp_path / "trace_7").write_bytes(DUMP)
    _, [artifact] = capture(start, "flight_recorder", watched, seconds=1.5)
    assert artifact["status"] == "partial"
    assert "an earlier dump" in artifact["detail"]


def test_a_dump_that_is_no_file_is_not_followed(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    watched = flight(ranks, tmp_path, DUMP=str(tmp_path / "elsewhere_"))
    os.mkfifo(tmp_path / "trace_7")
    _, [artifact] = capture(start, "flight_recorder", watched, seconds=1.5)
    assert artifact["status"] == "timed_out"


def test_frozen_ranks_are_asked_nothing(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    watched = flight(ranks, tmp_path)
    ranks.stop(watched[0].identity)
    _, [artifact] = capture(start, "flight_recorder", watched, frozen=True)
    assert (artifact["rank"], artifact["status"]) == ("engine", "skipped")
    assert artifact["detail"] == "needs a running process: the ranks are frozen"


# -- GPUs, metrics, native stacks -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is an NVIDIA driver here")
def test_no_driver_is_no_failure(start: Start, ranks: Ranks) -> None:
    _, [artifact] = capture(start, "nvml", [rank_process(ranks.start(), "TP0")])
    assert artifact["status"] == "skipped"
    assert artifact["detail"].startswith("no NVIDIA driver here: ")


def test_what_one_gpu_refuses_to_tell_costs_only_that() -> None:
    """The module pynvml, as far as it goes here, is a stand-in: there is no GPU on most machines."""

    class Refused(Exception):
        pass

    def refuses(*_: object) -> Any:
        raise Refused("Not Supported")

    nvml = SimpleNamespace(
        NVMLError=Refused,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlClocksThrottleReasonGpuIdle=1,
        nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlClocksThrottleReasonAll=15,
        nvmlSystemGetDriverVersion=lambda: b"580.82",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: refuses() if index else index,
        nvmlDeviceGetName=lambda _: "H200",
        nvmlDeviceGetUUID=lambda _: b"GPU-1",
        nvmlDeviceGetPciInfo=lambda _: SimpleNamespace(busId=b"0000:18:00.0"),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=100, memory=3),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=5, total=9),
        nvmlDeviceGetPowerUsage=lambda _: 120_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
        nvmlDeviceGetTemperature=lambda *_: 41,
        nvmlDeviceGetClockInfo=lambda _, sort: 1000 * sort,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 9,
        nvmlDeviceGetRemappedRows=lambda _: (1, 2, 0, 1),
        nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=7, usedGpuMemory=None)],
        nvmlDeviceGetTotalEccErrors=refuses,
        NVML_MEMORY_ERROR_TYPE_CORRECTED=0,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
    )
    found = json.loads(json.dumps(snapshot(nvml)))
    assert (found["driver"], found["cuda"]) == ("580.82", 13.0)
    first, second = found["gpus"]
    assert first["throttled_by"] == ["GpuIdle", "HwSlowdown"]
    assert (first["utilisation"], first["power"], first["power_limit"]) == (1.0, 120.5, 700.0)
    assert first["processes"] == [{"pid": 7, "memory": None}]
    assert first["remapped_rows"] == {"corrected": 1, "uncorrected": 2, "pending": False, "failed": True}
    assert first["ecc"] == {"corrected": None, "uncorrected": None}
    assert first["refused"]["ecc"] == "Not Supported"
    assert "retired_pages" in first["refused"], "a function that this version of the module has not"
    assert second == {"index": 1, "refused": {"handle": "Not Supported"}}


def test_the_last_metrics_of_the_engine_come_from_memory(start: Start, ranks: Ranks) -> None:
    fd = create()
    try:
        HistoryWriter(fd).add(time.time(), time.monotonic(), b"vllm:num_requests_running 3.0\n")
        rig, [artifact] = capture(start, "metrics", [rank_process(ranks.start(), "TP0")], history_fd=fd, frozen=False)
    finally:
        os.close(fd)
    assert (artifact["kind"], artifact["status"]) == ("engine_metrics", "captured")
    assert json.loads(rig.text("metrics/engine.jsonl"))["lines"] == ["vllm:num_requests_running 3.0"]


def test_cpu_times_alone_are_said_to_be_alone(start: Start, ranks: Ranks) -> None:
    """They are kept; that the engine's own metrics are missing is said."""
    fd = create()
    try:
        HistoryWriter(fd).add(time.time(), time.monotonic(), b'rankguard_rank_cpu_seconds{rank="TP0"} 12.34\n')
        rig, [artifact] = capture(start, "metrics", [rank_process(ranks.start(), "TP0")], history_fd=fd, frozen=False)
    finally:
        os.close(fd)
    assert (artifact["kind"], artifact["status"]) == ("engine_metrics", "partial")
    assert artifact["detail"] == "no metrics of the engine were read: only the CPU times of its ranks"
    assert json.loads(rig.text("metrics/engine.jsonl"))["lines"] == ['rankguard_rank_cpu_seconds{rank="TP0"} 12.34']


def test_no_metrics_are_no_failure(start: Start, ranks: Ranks) -> None:
    _, [artifact] = capture(start, "metrics", [rank_process(ranks.start(), "TP0")])
    assert artifact["status"] == "skipped"


def test_native_stacks_are_taken_of_what_runs_and_it_runs_on(start: Start, ranks: Ranks) -> None:
    running, stopped = ranks.start(), ranks.start()
    ranks.stop(stopped)
    rig, made = capture(start, "pyspy_native", [rank_process(running, "TP0"), rank_process(stopped, "TP1")], seconds=30)
    found = {(a["kind"], a["rank"]): a for a in made}
    assert found["pyspy_native_json", "TP0"]["status"] == "captured"
    assert "waits_in_a_collective" in rig.text("pyspy_native/TP0.txt")
    assert found["pyspy_native_json", "TP1"]["detail"] == "needs a running process: it is stopped"


# -- the crash folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., RankProcess]]:
    """Start what looks like SGLang's server from outside, with these arguments."""
    package = tmp_path / "packages" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> RankProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", "--model-path", "m", *arguments],
            env={**os.environ, "PYTHONPATH": str(package.parent)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return rank_process(identity_of(process.pid), "server", Role.SERVER)

    try:
        yield begin
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_the_crash_folder_is_copied_and_nothing_outside_of_it(
    start: Start, server: Callable[..., RankProcess], tmp_path: Path
) -> None:
    """Only regular files that the engine wrote since it began: no links, no pipes, no coredumps, nothing old."""
    folder = tmp_path / "crashes"
    (folder / "host-0").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not the engine's")
    (folder / "old.pkl").write_bytes(b"of an earlier engine")
    os.utime(folder / "old.pkl", (1, 1))
    watched = server("--crash-dump-folder", str(folder), "--api-key", "key-of-a-user-123")
    (folder / "host-0" / "crash_dump_2026 11.pkl").write_bytes(b"prompts")
    (folder / "host-0" / "core.cuda.1.2").write_bytes(b"a coredump")
    (folder / "link.pkl").symlink_to(outside / "secret")
    (folder / "folder").symlink_to(outside)
    (folder / "host-0" / "up").symlink_to("../../outside")
    os.mkfifo(folder / "pipe.pkl")
    rig, made = capture(start, "crash_folder", [watched])
    assert [a["path"] for a in made] == ["crash_folder/server-host-0-crash_dump_2026_11.pkl"]
    assert (rig.dump_dir / ID / made[0]["path"]).read_bytes() == b"prompts"
    assert made[0]["status"] == "captured"
    assert "sensitive" in made[0]["detail"]
    for path, data in all_bytes(rig.dump_dir):
        assert b"not the engine's" not in data, path
        assert b"key-of-a-user-123" not in data, path


def test_a_crash_folder_that_is_a_link_is_the_servers_business(
    start: Start, server: Callable[..., RankProcess], tmp_path: Path
) -> None:
    """A link means what it means to the server: it is followed below its root."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    watched = server("--crash-dump-folder", str(tmp_path / "link"))
    (tmp_path / "real" / "a.pkl").write_bytes(b"prompts")
    _, made = capture(start, "crash_folder", [watched])
    assert [a["status"] for a in made] == ["captured"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), "skipped", "server has no --crash-dump-folder"),
        (("--crash-dump-folder", "/nowhere/at/all"), "failed", "its crash folder cannot be read: ENOENT"),
    ],
)
def test_no_crash_folder_is_said(
    start: Start, server: Callable[..., RankProcess], arguments: tuple[str, ...], status: str, said: str
) -> None:
    _, [artifact] = capture(start, "crash_folder", [server(*arguments)])
    assert (artifact["status"], artifact["detail"]) == (status, said)


def test_a_file_that_does_not_fit_is_named_and_the_others_are_taken(
    start: Start, server: Callable[..., RankProcess], tmp_path: Path
) -> None:
    folder = tmp_path / "crashes"
    folder.mkdir()
    watched = server("--crash-dump-folder", str(folder))
    (folder / "small.pkl").write_bytes(b"small")
    with (folder / "big.pkl").open("wb") as big:
        big.truncate(65 << 20)
    _, made = capture(start, "crash_folder", [watched])
    assert {a["status"]: a["detail"] for a in made}["failed"].startswith("big.pkl was not copied")
    assert [a["bytes"] for a in made if a["status"] == "captured"] == [5]


# -- all of them ------------------------------------------------------------------------------------------------------


def test_no_secret_of_the_engine_is_in_any_artifact(
    start: Start, ranks: Ranks, server: Callable[..., RankProcess], tmp_path: Path
) -> None:
    (tmp_path / "fr").mkdir()
    watched = flight(ranks, tmp_path / "fr", HF_TOKEN="hf_secret-1", NCCL_RAS_ADDR="127.0.0.1:1")
    watched.append(server("--api-key", "secret-2", "--crash-dump-folder", str(tmp_path)))
    rig = start()
    what = incident(captures=CAPTURES)
    rig.begin(what, watched, frozen=False, seconds=20)
    rig.until("captures_done", 25)
    rig.seal(what)
    assert {a["kind"] for a in rig.record()["artifacts"]} >= {"process", "pyspy_json", "flight_recorder", "nccl_ras"}
    for path, data in all_bytes(rig.dump_dir):
        assert b"secret-1" not in data, path
        assert b"secret-2" not in data, path


def test_a_target_that_dies_in_the_middle_costs_only_itself(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "fr").mkdir()
    dies, lives = flight(ranks, tmp_path / "fr", "deaf")[0], rank_process(ranks.start(), "TP1")
    rig = start()
    what = incident(captures=("process", "pyspy", "flight_recorder", "pyspy_native"))
    rig.begin(what, [dies, lives], frozen=False, seconds=20)
    while rig.receive()["type"] != "captured":
        pass
    ranks.kill(dies.identity)
    rig.until("captures_done", 25)
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["flight_recorder", "TP7"]["status"] in ("failed", "skipped")
    assert found["pyspy_native_json", "TP1"]["status"] == "captured"
