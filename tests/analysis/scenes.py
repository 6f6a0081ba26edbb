"""The ranks whose stacks are recorded: `scenes.py HOLD` is a parent that has PyTorch loaded and forks them on demand.

A line of JSON on its input, {"scene", "rank", "world", "folder"}, gives a process whose pid it answers; {"wait": pid}
answers its wait status. Each rank joins a group of its own run on gloo, does one all_reduce, says so by a file in
FOLDER, and when there is a file `go` plays its part of the scene. All end when the pipe HOLD has no writer any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from sidecar.demo.seat import allow_ptrace, die_with

FOR_EVER = 1_000_000


def all_reduce() -> None:
    dist.all_reduce(torch.ones(8))


def model_step(seconds: float = 0.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(64, 64) @ torch.ones(64, 64)
        time.sleep(0.005)
    all_reduce()


def run_steps(seconds: float) -> None:
    while True:
        model_step(seconds)


# -- what one rank does while the others wait for it ------------------------------------------------------------------


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def sleep_for_ever() -> None:
    time.sleep(FOR_EVER)


def read_a_pipe() -> None:
    reading, _ = os.pipe()
    os.read(reading, 1)


def read_a_socket() -> None:
    ours, _theirs = socket.socketpair()
    ours.recv(1)


def open_a_fifo() -> None:
    os.mkfifo("fifo")
    os.open("fifo", os.O_WRONLY)


def lock_a_file() -> None:
    first = os.open("lock", os.O_RDWR | os.O_CREAT)
    second = os.open("lock", os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX)
    fcntl.flock(second, fcntl.LOCK_EX)


def wait_for_a_child() -> None:
    subprocess.run(["sleep", str(FOR_EVER)], check=False)


def hold_the_gil_asleep() -> None:
    ctypes.PyDLL(None).pause()


def hold_the_gil_busy() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def loop_on_one_line() -> None:
    while True:
        pass


def loop_over_lines() -> None:
    number = 0
    while True:
        number += 1
        if number % 7 == 0:
            number += 3
        else:
            number -= 1


def take(first: threading.Lock, second: threading.Lock, both: threading.Barrier) -> None:
    with first:
        both.wait()
        with second:
            pass


def two_locks() -> None:
    one, other, both = threading.Lock(), threading.Lock(), threading.Barrier(2)
    threading.Thread(target=take, args=(other, one, both), name="loader", daemon=True).start()
    take(one, other, both)


def long_matrix_product() -> None:
    big = torch.ones(6000, 6000)
    while True:
        big @ big


def write_to_a_full_pipe() -> None:
    _, writing = os.pipe()
    while True:  # py-spy's pause ends a call in part
        os.write(writing, bytes(1 << 20))


def wait_for_a_queue() -> None:
    import queue

    queue.Queue().get()


def read_an_answer() -> None:
    """Of a server that takes the connection and says nothing."""
    import http.client

    server = socket.create_server(("127.0.0.1", 0))
    ask = http.client.HTTPConnection("127.0.0.1", server.getsockname()[1])
    ask.request("GET", "/weights")
    ask.getresponse()


def connect_again() -> None:
    """To a port that nobody listens at, for ever."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        while True:
            try:
                socket.create_connection(taken.getsockname()).close()
            except OSError:
                time.sleep(0.5)


def import_what_is_being_imported() -> None:
    """Another thread imports a module that does not get to its end."""
    Path("slow_module.py").write_text("import threading\nthreading.Event().wait()\n")
    sys.path.insert(0, os.getcwd())
    threading.Thread(target=__import__, args=("slow_module",), name="importer", daemon=True).start()
    time.sleep(0.5)
    __import__("slow_module")


def be_held_by_the_kernel() -> None:
    """As long as its vfork's child neither ends nor becomes another program."""
    libc = ctypes.PyDLL(None)
    if libc.vfork() == 0:
        libc.prctl(1, int(signal.SIGKILL))
        libc.pause()


def wait_for_a_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    ThreadPoolExecutor(1, thread_name_prefix="fetcher").submit(read_a_socket).result()


def run_an_event_loop() -> None:
    import asyncio

    asyncio.run(asyncio.Event().wait())


def encode_for_long() -> None:
    """Steps that take a second each in one call of C, for which the others wait."""
    text = {str(number): [number] * 20 for number in range(20_000)}
    while True:
        for _ in range(5):
            json.dumps(text)
        all_reduce()


def eat_memory() -> None:
    held = []
    while True:
        held.append(bytearray(b"x" * (1 << 20)))


def end_by(how: Callable[[], object]) -> Callable[[], None]:
    def end() -> None:
        how()

    return end


# -- places that have the names of an engine's ------------------------------------------------------------------------


def in_file(path: str, code: str) -> Callable[..., None]:
    """The function `entry` of this code, as if it came from that file."""
    names: dict[str, object] = {"dist": dist, "torch": torch, "subprocess": subprocess, "time": time}
    exec(compile(code, path, "exec"), names)
    entry = names["entry"]
    assert callable(entry)
    return entry


IDLE = """
def recv_requests(rank):
    box = [None]
    dist.broadcast_object_list(box, src=0) if rank else time.sleep(1_000_000)
def event_loop_overlap(rank):
    recv_requests(rank)
entry = event_loop_overlap
"""
NINJA = """
def run_ninja():
    subprocess.run(["sleep", "1000000"])
entry = run_ninja
"""
SITE = "/usr/lib/python3/dist-packages/"


def idle(rank: int) -> None:
    in_file(SITE + "sglang/srt/managers/scheduler.py", IDLE)(rank)


def compile_a_kernel() -> None:
    in_file(SITE + "flashinfer/jit/cpp_ext.py", NINJA)()


# -- scenes -----------------------------------------------------------------------------------------------------------


def attention(group: object) -> None:
    dist.all_reduce(torch.ones(8), group=group)


def mlp(group: object) -> None:
    dist.all_reduce(torch.ones(8), group=group)


def play(scene: str, rank: int, groups: SimpleNamespace) -> None:
    """`lock@2`: rank 2 does what `lock` stands for, the others enter the all_reduce; some scenes are of all."""
    what, _, who = scene.partition("@")
    if what == "steps":
        run_steps(float(who))
    elif what == "idle":
        idle(rank)
    elif what == "mismatch":
        dist.broadcast(torch.ones(8), src=0) if rank == 2 else all_reduce()
    elif what == "mismatch_barrier":
        dist.barrier() if rank == 1 else dist.all_gather([torch.ones(8) for _ in range(dist.get_world_size())],
                                                         torch.ones(8))  # fmt: skip
    elif what == "two_groups":
        attention(groups.one) if rank == 1 else mlp(groups.two)
    elif what == "pipeline":
        wait_for_a_lock() if rank == 2 else dist.recv(torch.ones(8), src=rank + 1)
    elif what == "early":
        all_reduce() if rank == 0 else read_a_socket()
    elif what == "wait_for_work":
        _wait_for_work(rank)
    elif what == "flight":
        wait_for_a_lock() if rank == 2 else all_reduce()
    elif what == "two_and_two":
        if rank < 2:
            all_reduce()
        else:
            dist.all_gather([torch.ones(8) for _ in range(dist.get_world_size())], torch.ones(8))
    elif what == "pipeline_first":
        lock_a_file() if rank == 0 else dist.recv(torch.ones(8), src=rank - 1)
    elif what == "monitored_barrier":
        sleep_for_ever() if rank == 2 else dist.monitored_barrier()
    elif what == "encode":
        encode_for_long() if rank == 1 else run_steps(0.0)
    elif what == "nobody_waits":
        wait_for_a_lock() if rank == 1 else read_a_pipe()
    elif str(rank) == who:
        if what in DEATHS:
            time.sleep(0.5)  # until the others wait
        PARTS[what]()
    else:
        all_reduce()


def _wait_for_work(rank: int) -> None:
    if rank == 1:
        sleep_for_ever()
    work = dist.all_reduce(torch.ones(8), async_op=True)
    work.wait()


PARTS: dict[str, Callable[[], None]] = {
    "lock": wait_for_a_lock, "sleep": sleep_for_ever, "pipe": read_a_pipe, "socket": read_a_socket,
    "fifo": open_a_fifo, "flock": lock_a_file, "child": wait_for_a_child, "gil_asleep": hold_the_gil_asleep,
    "gil_busy": hold_the_gil_busy, "one_line": loop_on_one_line, "lines": loop_over_lines, "deadlock": two_locks,
    "product": long_matrix_product, "full_pipe": write_to_a_full_pipe, "queue": wait_for_a_queue,
    "compile": compile_a_kernel, "oom": eat_memory, "answer": read_an_answer, "again": connect_again,
    "import": import_what_is_being_imported, "held": be_held_by_the_kernel, "thread": wait_for_a_thread,
    "loop": run_an_event_loop,
    "abort": end_by(os.abort), "segfault": end_by(lambda: ctypes.string_at(1)),
    "exit": end_by(lambda: os._exit(3)), "raise": end_by(lambda: {}["weights"]),
    "bus": end_by(lambda: os.kill(os.getpid(), signal.SIGBUS)),
}  # fmt: skip


def dump_flight(folder: Path, rank: int) -> None:
    """What PyTorch's Flight Recorder has, when all stand where they will."""
    while not (folder / "go").exists():
        time.sleep(0.1)
    time.sleep(1.0)
    (folder / "part").with_suffix(f".{rank}").write_bytes(torch._C._distributed_c10d._dump_fr_trace())
    (folder / f"part.{rank}").rename(folder / f"flight{rank}")
    threading.Event().wait()


DEATHS = ("oom", "abort", "segfault", "exit", "bus", "raise")


def be_rank(scene: str, rank: int, world: int, folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    allow_ptrace()
    torch.set_num_threads(1)
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    groups = SimpleNamespace(one=dist.new_group(), two=dist.new_group()) if scene == "two_groups" else SimpleNamespace()
    all_reduce()
    if scene == "flight":
        threading.Thread(target=dump_flight, args=(folder, rank), name="flight", daemon=True).start()
    (folder / f"ready{rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    play(scene, rank, groups)


def main(hold: int) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitpid(order["wait"], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                sys.stdin = open(os.devnull)  # noqa: SIM115
                die_with(hold)
                if order.get("cgroup"):
                    Path(order["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
                try:
                    be_rank(order["scene"], order["rank"], order["world"], Path(order["folder"]))
                finally:
                    os._exit(1)
        print(answer, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
