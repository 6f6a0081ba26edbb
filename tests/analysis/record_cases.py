"""Make the recorded cases anew: `make record-cases`, or `record_cases.py [NAME…]` in an environment with PyTorch.

Each case is real ranks on gloo, left alone until they stand where their scene leads them, and then captured by the
recorder's own collectors, twice, as it does for a hang; after a death the others are stopped first, as the guard does.
What is not of use for the verdict, and what names this machine, is left out. It takes about ten minutes and needs root
for the kill by the kernel. What the verdict makes of the cases is in `test_analysis_cases.py`.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]

from memory_cgroup import memory_cgroup_of  # noqa: E402

from sidecar.model import Identity  # noqa: E402
from sidecar.policy.deaths import cause_of  # noqa: E402
from sidecar.recorder.capture.base import Scene, Target  # noqa: E402
from sidecar.recorder.captures import Captures  # noqa: E402
from sidecar.recorder.reactor import Reactor  # noqa: E402
from sidecar.system.proc import Proc, status_from_wait  # noqa: E402

CASES = HERE / "cases"
PROC = Proc()
STUCK = {"liveness": "stuck", "because": ["2 requests run"], "odd": [], "since": 31.0}
KEPT = ("pid", "start", "role", "rank", "stat", "wchan", "status", "threads")


@dataclass(frozen=True)
class Plan:
    """`scene`: see scenes.py. `dies`: the rank whose death it is. `stop`: this one is stopped. `hidden`: the last rank
    is on another node. `stuck`: the engine was found so. `memory`: bytes of the dying rank's cgroup."""

    scene: str
    world: int = 3
    dies: int = -1
    kill: int = 0
    stop: int = -1
    hidden: bool = False
    stuck: bool = True
    memory: int = 0
    engine: str = "generic"
    native: bool = False


PLANS = {
    "lock": Plan("lock@2"),
    "four-ranks-one-asleep": Plan("sleep@1", world=4),
    "pipe": Plan("pipe@1"),
    "socket": Plan("socket@0"),
    "fifo": Plan("fifo@2"),
    "file-lock": Plan("flock@1"),
    "full-pipe": Plan("full_pipe@1"),
    "queue": Plan("queue@1"),
    "child": Plan("child@2"),
    "gil-held-asleep": Plan("gil_asleep@1"),
    "gil-held-busy": Plan("gil_busy@1"),
    "deadlock-of-two-locks": Plan("deadlock@1"),
    "loop-on-one-line": Plan("one_line@2"),
    "loop-over-lines": Plan("lines@2"),
    "mismatched-collective": Plan("mismatch"),
    "mismatched-barrier": Plan("mismatch_barrier"),
    "two-groups-crossed": Plan("two_groups"),
    "pipeline": Plan("pipeline"),
    "one-early": Plan("early"),
    "late-rank-elsewhere": Plan("sleep@3", world=4, hidden=True),
    "waits-for-work": Plan("wait_for_work", native=True),
    "stopped": Plan("sleep@9", stop=1),
    "flight-recorder": Plan("flight"),
    "nobody-waits": Plan("nobody_waits"),
    "http-answer": Plan("answer@1"),
    "connects-again": Plan("again@2"),
    "import-lock": Plan("import@1"),
    "two-and-two": Plan("two_and_two", world=4),
    "pipeline-from-the-first": Plan("pipeline_first", world=4),
    "held-by-the-kernel": Plan("held@1"),
    "thread-of-a-pool": Plan("thread@2"),
    "event-loop": Plan("loop@0"),
    "monitored-barrier": Plan("monitored_barrier"),
    "out-of-memory": Plan("oom@2", dies=2, memory=400 << 20),
    "abort": Plan("abort@1", dies=1),
    "segfault": Plan("segfault@0", dies=0),
    "bus-error": Plan("bus@2", dies=2),
    "exit-3": Plan("exit@2", dies=2),
    "exception": Plan("raise@0", dies=0),
    "killed-at-work": Plan("steps@0.3", dies=1, kill=signal.SIGKILL),
    "killed-in-the-collective": Plan("sleep@0", dies=2, kill=signal.SIGKILL),
    "healthy-fast": Plan("steps@0.02", stuck=False),
    "healthy-slow": Plan("steps@1.0", stuck=False),
    "healthy-slower": Plan("steps@3.0", stuck=False),
    "healthy-long-product": Plan("product@1", stuck=False),
    "healthy-compiles": Plan("compile@1", stuck=False),
    "healthy-encodes": Plan("encode", stuck=False),
    "healthy-idle": Plan("idle", stuck=False, engine="sglang"),
}


class Parent:
    """The process that forks the ranks."""

    def __init__(self) -> None:
        hold, self._writer = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "scenes.py"), str(hold)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=(hold,),
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "100"},
        )  # fmt: skip
        os.close(hold)

    def ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        os.close(self._writer)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def record(parent: Parent, plan: Plan) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as place,
        memory_cgroup_of(plan.memory) if plan.memory else nullcontext() as group,
    ):
        folder = Path(place)
        pids = []
        try:
            for rank in range(plan.world):
                inside = str(group.folder) if group is not None and rank == plan.dies else ""
                pids.append(parent.ask({"scene": plan.scene, "rank": rank, "world": plan.world, "folder": place,
                                        "cgroup": inside}))  # fmt: skip
            until(lambda: all((folder / f"ready{rank}").exists() for rank in range(plan.world)))
            identities = [identity_of(pid) for pid in pids]
            if plan.stop >= 0:
                os.kill(pids[plan.stop], signal.SIGSTOP)
            if plan.kill:
                (folder / "go").touch()
                time.sleep(1.0)
                os.kill(pids[plan.dies], plan.kill)
            (folder / "go").touch()
            if plan.scene == "flight":
                until(lambda: all((folder / f"flight{rank}").exists() for rank in range(plan.world)))
            case = _captured(parent, plan, identities, pids, group.kills if group is not None else None)
            if plan.scene == "flight":
                case["flight"] = {f"TP{rank}": flight_of(folder / f"flight{rank}") for rank in range(plan.world)}
        finally:
            for pid in pids:
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    parent.ask({"wait": pid})
        return case


def _captured(parent: Parent, plan: Plan, identities: list[Identity], pids: list[int], kills: Any) -> dict[str, Any]:
    failures = []
    if plan.dies >= 0:
        pid = pids[plan.dies]
        until(lambda: (stat := PROC.stat(pid)) is None or stat.zombie or stat.exiting, pause=0.0002)
        for other in pids:
            if other != pid:
                os.kill(other, signal.SIGSTOP)
        oom = bool(kills and kills())
        failures.append(failure(parent, pids, plan.dies, identities, plan.memory if oom else 0))
        for rank, other in enumerate(pids):  # those that were faster than our stop: gloo tells them of a death
            stat = PROC.stat(other) if other else None
            if stat is not None and (stat.zombie or stat.exiting):
                failures.append(failure(parent, pids, rank, identities, 0))
    else:
        time.sleep(2.0)  # until all stand where they will
    shown = identities[: plan.world - plan.hidden]
    targets = tuple(Target(one, "worker", f"TP{rank}", "", f"TP{rank}", is_rank=True) for rank, one in enumerate(shown))
    frozen = bool(failures)
    documents, apart = capture(targets, frozen, plan.native)
    return {
        "engine": plan.engine,
        "reason": "RankDied" if failures else "EngineStalled" if plan.stuck else "Manual",
        "frozen": frozen,
        "apart": round(apart, 3),
        "liveness": STUCK if plan.stuck and not failures else None,
        "failures": failures,
        "ranks": [{"rank": target.rank, "role": target.role, "pid": target.identity.pid} for target in targets],
        "documents": documents,
    }


def flight_of(path: Path) -> str:
    """The dump, with as many bytes as before in the place of each path of this machine."""
    data = path.read_bytes()
    for known in (str(HERE), sys.prefix, sys.base_prefix):
        data = data.replace(known.encode(), b"/" + b"x" * (len(known) - 1))
    return base64.b64encode(data).decode()


def failure(parent: Parent, pids: list[int], rank: int, identities: list[Identity], memory: int) -> dict[str, Any]:
    pid, pids[rank] = pids[rank], 0
    status = status_from_wait(parent.ask({"wait": pid}))
    return {
        "role": "worker", "rank": f"TP{rank}", "pid": pid, "start": identities[rank].start,
        "status": {"code": status.code, "signal": status.signal, "core_dumped": status.core_dumped, "why_unknown": ""},
        "cause": cause_of(status, bool(memory)).value, "at": 1.0 + 0.01 * (pids.count(0) - 1), "wall": 1.0,
        "seen_by": "pidfd", "detail": f"container limit {memory >> 20} MiB" if memory else "",
    }  # fmt: skip


def capture(targets: tuple[Target, ...], frozen: bool, native: bool) -> tuple[dict[str, Any], float]:
    """What the recorder's collectors take, as `folder/rank`; and how far apart the snapshots are."""
    reactor = Reactor()
    pyspy = str(Path(sys.executable).with_name("py-spy"))
    scene = Scene(PROC, frozen=frozen, pyspy=pyspy, targets=targets)
    wanted = ("process", "pyspy", *(("pyspy_native",) if native else ()))
    captures = Captures(wanted, scene, time.monotonic() + 60, reactor, twice=not frozen)
    documents: dict[str, Any] = {}
    began: dict[str, dict[str, float]] = {}
    while not captures.done:
        for taken in captures.step():
            for piece in taken.pieces:
                if piece.file.endswith(".json") and piece.data:
                    name = piece.file.removesuffix(".json")
                    documents[name] = clean(json.loads(piece.data))
                    began.setdefault(name.partition("/")[0], {})[taken.target.rank] = taken.began
        captures.reap()
        reactor.wait(0.05)
    captures.abandon()
    both = set(began.get("pyspy", {})) & set(began.get("pyspy2", {}))
    return documents, min((began["pyspy2"][rank] - began["pyspy"][rank] for rank in both), default=0.0)


def clean(document: Any) -> Any:
    """Without what is of no use, and with no path of this machine."""
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key in KEPT}
        status = document.get("status", {})
        document["status"] = {key: value for key, value in status.items() if key.endswith("ctxt_switches")}
        return document
    text = json.dumps(document).replace(str(HERE), "/srv/engine")
    text = re.sub(r'"/[^"]*/site-packages/', '"/usr/lib/python3/dist-packages/', text)
    text = re.sub(r'"/[^"]*/lib/python3\.\d+/', '"/usr/lib/python3/', text)
    text = re.sub(r'"/[^"]*/lib/(libpython[^"]*)"', r'"/usr/lib/\1"', text)
    threads = json.loads(text)
    for thread in threads:
        for frame in thread["frames"]:
            frame.pop("locals", None)
            frame.pop("short_filename", None)
            frame["module"] = os.path.basename(frame["module"]) if frame["module"] else None
    return threads


def identity_of(pid: int) -> Identity:
    stat = PROC.stat(pid)
    assert stat is not None
    return stat.identity


def until(condition: Any, seconds: float = 120.0, pause: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(pause)


def main(names: list[str]) -> None:
    CASES.mkdir(exist_ok=True)
    parent = Parent()
    try:
        for name, plan in PLANS.items():
            if names and name not in names:
                continue
            case = record(parent, plan)
            data = json.dumps({"name": name, **case}, separators=(",", ":")).encode()
            (CASES / f"{name}.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))
            print(f"{name}: {len(case['documents'])} documents, {len(data)} bytes", flush=True)
    finally:
        parent.close()


if __name__ == "__main__":
    main(sys.argv[1:])
