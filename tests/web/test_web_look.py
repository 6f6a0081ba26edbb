"""Closer looks at real processes: what is seen of each, and that nothing about a target or py-spy holds them up."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sidecar_process import descendants, eventually, identity_of, kill_identity, running, state_of

from sidecar.demo.standin import StandIn
from sidecar.policy.sightings import Gpu, Look, RankLook
from sidecar.system import activity
from sidecar.system.proc import Proc
from sidecar.system.programs import find_pyspy
from sidecar.web.liveness.gpu import Gpus
from sidecar.web.liveness.look import MOST_STACKS, quick_look, take_look
from sidecar.web.liveness.pyspy import PySpy
from sidecar.web.state import RankState

PYSPY = find_pyspy(sys.executable, os.environ.get("PATH", ""))
PROC = Proc()
AT_REST = (
    "import sys, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "print(1, flush=True)\nsys.stdin.read()"
)


class Process:
    """A Python process that runs `source`; it ends with its stdin, or at the end of the block."""

    def __init__(self, source: str = AT_REST, *arguments: str, program: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [program, "-S", "-c", source, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.identity = identity_of(self.process.pid)
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "it did not start"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)

    @property
    def pid(self) -> int:
        return self.process.pid


def rank_of(pid: int, label: str = "TP0", role: str = "scheduler", **fields: object) -> RankState:
    values = {"up": True, "container": "", "title": label, "start": identity_of(pid).start, **fields}
    return RankState(role=role, rank=label, pid=pid, **values)


def look_at(*ranks: RankState, pyspy: str = PYSPY, seconds: float = 20.0, gpus: tuple[Gpu, ...] = ()) -> Look:
    async def life() -> Look:
        spy = PySpy(pyspy)
        try:
            return await take_look(ranks, "sglang", PROC, spy, Gpus(lambda: gpus), time.monotonic() + seconds)
        finally:
            spy.close()

    return asyncio.run(life())


def only(look: Look) -> RankLook:
    assert len(look.ranks) == 1
    return look.ranks[0]


def program(folder: Path, text: str) -> str:
    """A program in the place of py-spy."""
    path = folder / "py-spy"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_process_at_rest():
    """All that there is to see of it, and that two looks find it in the same place with nothing done between them."""
    with Process() as target:
        eventually(lambda: state_of(target.identity) == "S", "it rests")
        first, second = (only(look_at(rank_of(target.pid))) for _ in range(2))
    assert (first.rank, first.role, first.state, first.traced) == ("TP0", "scheduler", "S", False)
    assert first.spot is not None
    assert second.spot == first.spot
    assert first.switches is not None
    assert first.wchan != "0"


def test_a_process_that_computes():
    with Process("print(1, flush=True)\nwhile True: pass") as target:
        first = only(look_at(rank_of(target.pid)))
        later = eventually(
            lambda: (look := only(look_at(rank_of(target.pid)))).cpu > first.cpu + 0.05 and look, "CPU time used"
        )
    assert later.state == "R"


def test_switches_are_counted_of_every_thread():
    """A rank whose main thread waits may work in another one."""
    source = (
        "import sys, threading, time\n"
        "def work():\n  while True: time.sleep(0.001)\n"
        "threading.Thread(target=work, daemon=True).start()\nprint(1, flush=True)\nsys.stdin.read()"
    )
    with Process(source) as target:
        first = activity.switches(PROC, target.pid)
        assert first is not None
        eventually(lambda: (activity.switches(PROC, target.pid) or 0) > first + 50, "its second thread switches")


def test_stopped_ranks_of_an_engine():
    """The stopped one shows T, and its stack can still be read; the other ones show where they stand."""
    with StandIn(engine="sglang", tp=2, light=True, detokenizer=False) as engine:
        engine.wait_ready()
        ranks = [rank_of(process.pid, process.label, process.role) for process in engine.ranks]
        assert all(rank.state != "T" for rank in quick_look(ranks, PROC).ranks)
        stopped = engine.find("TP1")
        engine.kill("TP1", signal.SIGSTOP)
        eventually(lambda: state_of(stopped.identity) == "T", "it is stopped")
        look = look_at(*ranks)
        quick = quick_look(ranks, PROC)
    assert {rank.rank: rank.state == "T" for rank in look.ranks} == {"TP0": False, "TP1": True}
    assert all(rank.spot is not None for rank in look.ranks), look
    assert not any(rank.traced for rank in look.ranks)
    assert quick.quick
    assert {rank.rank: rank.state == "T" for rank in quick.ranks} == {"TP0": False, "TP1": True}


def test_no_stop_comes_from_looking():
    """Its target must not even for a moment be stopped: such a stop is what looks are there to find."""
    source = (
        "import sys, time\nprint(1, flush=True)\nmost = 0\nwhile not sys.stdin.readable() or True:\n"
        "  time.sleep(0.001)\n"
    )
    with Process(source) as target:
        states: set[str | None] = set()

        async def life() -> None:
            spy = PySpy(PYSPY)
            taking = asyncio.create_task(
                take_look([rank_of(target.pid)], "", PROC, spy, Gpus(tuple), time.monotonic() + 20)
            )
            while not taking.done():
                states.add(state_of(target.identity))
                await asyncio.sleep(0)
            assert only(await taking).spot is not None

        asyncio.run(life())
    assert states <= {"R", "S", "D"}


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """Somebody has it under ptrace, as a debugger would, and lets it run."""
    source = (
        "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.ptrace.argtypes = [ctypes.c_long] * 4\n"
        "ok = libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0\n"  # PTRACE_SEIZE
        "print('traced' if ok else '', flush=True)\nsys.stdin.read()"
    )
    with Process(source, str(pid)):
        eventually(lambda: activity.tracer(PROC, pid), "it is traced")
        yield


def test_a_debugger():
    with Process() as target, traced(target.pid):
        assert only(look_at(rank_of(target.pid))).traced
        os.kill(target.pid, signal.SIGSTOP)
        eventually(lambda: state_of(target.identity) in ("t", "T"), "it stands still")
        assert only(look_at(rank_of(target.pid))).traced
        assert only(quick_look([rank_of(target.pid)], PROC)).traced


def test_our_own_pyspy_is_no_debugger(tmp_path):
    """A py-spy below our supervisor is ours, one below somebody else is not."""
    with Process("import sys; print(1, flush=True); sys.stdin.read()", program=sys.executable) as child:
        assert not activity.is_own_pyspy(PROC, child.pid, os.getpid())
    source = (
        "import ctypes, sys\nctypes.CDLL(None).prctl(15, b'py-spy', 0, 0, 0)\n"  # PR_SET_NAME
        "print(1, flush=True)\nsys.stdin.read()"
    )
    with Process(source) as child, Process() as stranger:
        assert activity.is_own_pyspy(PROC, child.pid, os.getpid())
        assert not activity.is_own_pyspy(PROC, child.pid, stranger.pid)


def test_a_pyspy_that_hangs(tmp_path):
    """The look is there in time, with all but the stack, and nothing is left behind."""
    note = tmp_path / "pid"
    hanging = program(tmp_path, f"echo $$ >> '{note}'; exec sleep 1000")
    with Process() as target:
        look = only(look_at(rank_of(target.pid), pyspy=hanging, seconds=1.0))
    assert look.spot is None
    assert look.switches is not None
    (pid,) = note.read_text().split()
    assert not Path("/proc", pid).exists()

    async def life() -> None:
        spy = PySpy(hanging)
        assert await spy.stacks(os.getpid(), time.monotonic() + 0.5) is None
        assert not Path("/proc", note.read_text().split()[-1]).exists()  # not only at the end of it all

    asyncio.run(life())


def test_a_look_that_is_given_up_leaves_no_zombie(tmp_path):
    """The engine has gone in the middle of a look: what was sent after it is ended, and reaped though nobody asks."""
    hanging = program(tmp_path, "echo there >&2; exec sleep 600")

    async def life(pid: int) -> None:
        before = set(descendants(os.getpid()))
        spy = PySpy(hanging)
        looking = asyncio.create_task(spy.stacks(pid, time.monotonic() + 600))
        while not set(descendants(os.getpid())) - before:
            await asyncio.sleep(0.005)
        looking.cancel()
        end = time.monotonic() + 30
        while (left := set(descendants(os.getpid())) - before) and time.monotonic() < end:
            await asyncio.sleep(0.005)
        assert left == set()
        spy.close()

    with Process() as target:
        asyncio.run(life(target.pid))


def test_a_pyspy_that_eats_memory(tmp_path):
    """Shared memory too, which no RLIMIT counts: it is ended long before the deadline, and nothing is left behind."""
    note = tmp_path / "pid"
    eater = "import mmap; held = []\nwhile True: held.append(mmap.mmap(-1, 1 << 20)); held[-1].write(bytes(1 << 20))"
    eating = program(tmp_path, f"echo $$ >> '{note}'; exec '{sys.executable}' -I -c '{eater}'")

    async def life() -> None:
        spy = PySpy(eating)
        try:
            assert await spy.stacks(os.getpid(), time.monotonic() + 60) is None
        finally:
            spy.close()

    began = time.monotonic()
    asyncio.run(life())
    assert time.monotonic() - began < 60  # not the deadline
    assert not [pid for pid in note.read_text().split() if Path("/proc", pid).exists()]


@pytest.mark.parametrize(
    "text", ["exit 3", "echo '{'", "echo '{}'", "echo '[1, null, {\"frames\": 7}]'", "yes", "kill -9 $$", "echo '[]'"]
)
def test_a_pyspy_that_answers_nonsense(tmp_path, text):
    with Process() as target:
        assert only(look_at(rank_of(target.pid), pyspy=program(tmp_path, text))).spot is None


def test_a_stack_that_cannot_be_read_at_once_is_read_again(tmp_path):
    """py-spy fails now and then on a stack that changes while it reads it."""
    once = program(tmp_path, f'[ -e "{tmp_path}/tried" ] || {{ : > "{tmp_path}/tried"; exit 1; }}; exec {PYSPY} "$@"')
    with Process() as target:
        assert only(look_at(rank_of(target.pid), pyspy=once)).spot is not None


@pytest.mark.parametrize("pyspy", ["", "/nowhere/py-spy"])
def test_no_pyspy(pyspy):
    with Process() as target:
        assert only(look_at(rank_of(target.pid), pyspy=pyspy)).spot is None


def test_a_rank_that_dies_while_it_is_looked_at(tmp_path):
    """It is left out, whatever its stack was: its death is somebody else's business."""
    with Process() as target, Process() as other:
        killing = program(tmp_path, f'kill -9 {target.pid}; while kill -0 {target.pid}; do :; done; exec {PYSPY} "$@"')
        reaper = subprocess.Popen(["true"])
        reaper.wait()

        async def life() -> Look:
            spy = PySpy(killing)
            ranks = [rank_of(target.pid), rank_of(other.pid, "TP1")]
            taking = asyncio.create_task(take_look(ranks, "sglang", PROC, spy, Gpus(tuple), time.monotonic() + 20))
            while not taking.done():
                target.process.poll()  # reap it
                await asyncio.sleep(0.001)
            return await taking

        look = asyncio.run(life())
        assert [rank.rank for rank in look.ranks] == ["TP1"]
        assert only(look).spot is not None


def test_only_what_is_to_be_looked_at():
    """Not a pid whose start time is another's or not known, not who is down, and no server."""
    with Process() as target:
        pid, start = target.pid, target.identity.start
        wrong = [
            rank_of(pid, start=start + 1), rank_of(pid, start=0), rank_of(pid, up=False),
            rank_of(pid, role="server"), rank_of(pid, role="detokenizer"),
        ]  # fmt: skip
        assert look_at(*wrong).ranks == ()
        assert quick_look(wrong, PROC).ranks == ()


def test_ranks_of_the_same_label_are_told_apart():
    with Process() as one, Process() as two:
        ranks = [rank_of(one.pid, "worker"), rank_of(two.pid, "worker")]
        names = {f"worker (pid {one.pid})", f"worker (pid {two.pid})"}
        assert {rank.rank for rank in look_at(*ranks).ranks} == names
        assert {rank.rank for rank in quick_look(ranks, PROC).ranks} == names


def test_compilers(tmp_path):
    """Known by their names, as descendants of the engine, and not somebody else's."""
    ptxas = tmp_path / "ptxas"
    ptxas.symlink_to("/bin/cat")
    source = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\nsys.stdin.read()"
    )
    with Process(source, str(ptxas)) as target, Process(source, str(ptxas)) as stranger:
        (child,) = [pid for pid in PROC.pids() if (stat := PROC.stat(pid)) and stat.ppid == target.pid]
        eventually(lambda: PROC.comm(child) == "ptxas", "it has its name")
        compilers = look_at(rank_of(target.pid)).compilers
        assert [(compiler.pid, compiler.name) for compiler in compilers] == [(child, "ptxas")]
        assert look_at(rank_of(stranger.pid, role="server")).compilers != compilers


def test_a_large_engine_gets_a_sample_with_the_odd_ones(tmp_path):
    """Stacks are taken of so many at most, and always of who is stopped."""
    note = tmp_path / "asked"
    counting = program(tmp_path, f'echo "$5" >> "{note}"; exit 1')
    source = (
        "import os, sys\nfor _ in range(int(sys.argv[1])):\n"
        "  if not os.fork():\n    sys.stdin.read()\n    os._exit(0)\n"
        "print(1, flush=True)\nsys.stdin.read()"
    )
    with Process(source, str(MOST_STACKS + 6)) as parent:
        children = [pid for pid in PROC.pids() if (stat := PROC.stat(pid)) and stat.ppid == parent.pid]
        ranks = [rank_of(pid, f"TP{number}") for number, pid in enumerate(sorted(children))]
        last = ranks[-1]
        os.kill(last.pid, signal.SIGSTOP)
        eventually(lambda: state_of(identity_of(last.pid)) == "T", "it is stopped")
        look = look_at(*ranks, pyspy=counting, seconds=60)
        for rank in ranks:
            kill_identity(identity_of(rank.pid))
    assert len(look.ranks) == MOST_STACKS + 6
    asked = set(note.read_text().split())
    assert len(asked) == MOST_STACKS
    assert {str(last.pid), str(ranks[0].pid)} <= asked


def test_gpus_that_answer_late_or_never():
    """They are no data, and a call that hangs is not made a second time."""
    calls = 0
    release = ctypes.c_int(0)

    def hang() -> tuple[Gpu, ...]:
        nonlocal calls
        calls += 1
        while not release.value:
            time.sleep(0.005)
        return (Gpu(0, 0.5, 0.1),)

    async def life() -> None:
        gpus = Gpus(hang)
        assert await gpus.look(time.monotonic() + 0.05) == ()
        assert await gpus.look(time.monotonic() + 0.05) == ()
        assert calls == 1
        release.value = 1
        while not await gpus.look(time.monotonic() + 0.05):
            await asyncio.sleep(0.01)
        assert await gpus.look(time.monotonic() + 20) == (Gpu(0, 0.5, 0.1),)

    asyncio.run(life())


def test_gpus_that_fail():
    def fail() -> tuple[Gpu, ...]:
        raise RuntimeError("no driver")

    async def life() -> None:
        assert await Gpus(fail).look(time.monotonic() + 20) == ()

    asyncio.run(life())


def test_the_machine_s_own_gpus():
    """With no NVML there is no data, and no error; with it, shares between 0 and about 1."""

    async def life() -> tuple[Gpu, ...]:
        return await Gpus().look(time.monotonic() + 30)

    for gpu in asyncio.run(life()):
        assert 0 <= gpu.utilisation <= 1
        assert gpu.power is None or 0 <= gpu.power < 3


def test_nothing_is_left_open():
    """Neither descriptors nor children, after looks that went well and looks that did not."""
    with Process() as target:
        look_at(rank_of(target.pid))
        before = sorted(os.listdir("/proc/self/fd"))
        for pyspy in (PYSPY, "/bin/false", ""):
            look_at(rank_of(target.pid), pyspy=pyspy)
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert running(target.identity)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
