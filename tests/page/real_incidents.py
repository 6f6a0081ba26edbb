"""The incidents that the tests of the page look at: left by real runs, broken by hand, and ten thousand of them.

Each volume is made once and then only read; a test that changes one takes a copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dump_folders import incident, put
from liveness_parts import WATCHING, WORKING, status
from memory_cgroup import memory_cgroup_of
from sidecar_process import Sidecar, eventually, load

from sidecar.demo.standin import StandIn
from sidecar.system.clock import id_stamp

MANY = 10_000
# In the command line and the environment of the ranks that run out of memory.
SECRETS = ("sk-proj-0a1b2c3d4e5f6a7b", "hf_QwErTyUiOpAsDfGhJk")
_LIMIT = 160 << 20
_HUNGRY = """
import sys, threading
def produce(queue=[]):
    threading.Event().wait()
threading.Thread(target=produce, daemon=True, name="prefetch").start()
def load_batch():
    sys.stdin.readline()
    held = []
    while True:
        held.append(b"x" * (1 << 20))
load_batch()
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """A dump folder of many pods. Each other field is the path of an incident, `<namespace>/<pod>/<id>`."""

    folder: Path
    death: str
    stall: str
    memory: str

    def paths(self) -> dict[str, str]:
        return {"death": self.death, "stall": self.stall, "memory": self.memory}

    def record(self, path: str) -> dict[str, Any]:
        return load(self.folder / path)


def make_volume(folder: Path, serving_seconds: float = 4.0) -> Volume:
    """Three engines fail at the same time: a rank is killed, one hangs while requests run, one has no memory left."""
    death, stall, memory = (folder / pod for pod in ("prod/llama-70b-0", "prod/mixtral-1", "staging/embedder-0"))
    with ExitStack() as stack:
        engine, hanging = (stack.enter_context(StandIn(tp=4, **WORKING)) for _ in range(2))
        watcher = stack.enter_context(beside(death, engine.process.pid))
        observer = stack.enter_context(beside(stall, hanging.process.pid))
        keeper, eat, *starving = stack.enter_context(_hungry(memory))
        for one, other in ((engine, watcher), (hanging, observer)):
            one.wait_ready()
            other.wait_serving()
            other.wait("the engine answers")
        engine.work("serve", running=3)
        hanging.work("serve", running=3, waiting=2)
        since = status(observer)["uptime_seconds"]
        eventually(lambda: status(observer)["uptime_seconds"] > since + serving_seconds, "some seconds of work", 120)
        hanging.work("hang", "TP3", running=3, waiting=7, wait=False)
        keeper.wait_serving()
        eat()
        engine.kill("TP2")
        watching = (watcher, observer, keeper)
        await_sealed(watching, (engine, hanging, *starving))
        for sidecar in watching:
            sidecar.stop()
    paths = [str(next(pod.glob("*/incident.json")).parent.relative_to(folder)) for pod in (death, stall, memory)]
    return Volume(folder, *paths)


def beside(pod: Path, root: int, *arguments: str) -> Sidecar:
    """A Rankguard as in the pod whose folder this is, for the processes below `root` alone."""
    pod.mkdir(parents=True)
    return Sidecar(
        pod, "--root-pid", str(root), *WATCHING, "--liveness-deadline", "15", *arguments, env=_names_of(pod)
    )  # fmt: skip


def await_sealed(sidecars: Sequence[Sidecar], engines: Sequence[Any]) -> None:
    """Wait until each has one incident, sealed. What has ended of the engines is collected meanwhile."""

    def sealed() -> bool:
        for engine in engines:
            engine.collect()
        return all([load(folder)["sealed"] for folder in one.incidents()] == [True] for one in sidecars)

    eventually(sealed, "sealed incidents", 60)


def _names_of(pod: Path) -> dict[str, str]:
    return {"POD_NAMESPACE": pod.parent.name, "POD_NAME": pod.name, "NODE_NAME": "gpu-node-7"}


@contextmanager
def _hungry(pod: Path) -> Iterator[tuple[Any, ...]]:
    """Gives who watches, what lets a rank eat up to its limit, and the two ranks, which have secrets about them.

    The second is in a memory cgroup; where none can be made it is killed in place of that."""
    pod.mkdir(parents=True)
    token = f"embedder-{uuid.uuid4().hex}"
    flags = ("--engine", "generic", "--rank-pattern", rf"^{token} TP(?P<TP>\d+)\b", "--expected-ranks", "2")
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(_Rank(f"{token} TP{n}", "-c", _HUNGRY, "--model", "bge", "--api-key", SECRETS[0]))
            for n in range(2)
        ]
        eat = ranks[1].eat
        try:
            cgroup = stack.enter_context(memory_cgroup_of(_LIMIT))
            (cgroup.folder / "cgroup.procs").write_text(str(ranks[1].process.pid))
            stack.callback(ranks[1].end)  # before the group can go
        except pytest.skip.Exception:
            eat = ranks[1].process.kill
        yield stack.enter_context(Sidecar(pod, *flags, "--probe-period", "0.3", env=_names_of(pod))), eat, *ranks


def make_many(folder: Path) -> None:
    """`MANY` incidents of twenty pods within some months. Each is `put` with another time, pod, rank and reason."""
    home = put(folder / "prod" / "llm-0", incident(0.1, pod="prod/llm-0"))
    pattern = (home / "incident.json").read_text()
    reasons = ("RankDied", "RankDied", "EngineStalled", "LivenessFailed", "RankMissing")
    for n in range(1, MANY):
        reason, rank, pod = reasons[n % len(reasons)], f"TP{n % 7}", f"llm-{n % 20}"
        other = folder / "prod" / pod / f"{id_stamp(time.time() - 720.0 * n)}-{reason.lower()}-{rank.lower()}"
        other.mkdir(parents=True)
        record = pattern.replace(home.name, other.name).replace("RankDied", reason).replace("TP3", rank)
        (other / "incident.json").write_text(record.replace("llm-0", pod))


class _Rank:
    """A Python process with a title of its own, in a session of its own."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(
            argv, executable=Path(sys.executable).resolve(), stdin=subprocess.PIPE, start_new_session=True,
            env={"PATH": os.environ["PATH"], "HF_TOKEN": SECRETS[1], "RANK": argv[0][-1]},
        )  # fmt: skip

    def __enter__(self) -> _Rank:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def eat(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def collect(self) -> None:
        self.process.poll()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
