"""Scenes that need a machine of their own: run in new PID, mount and IPC namespaces with a /dev/shm of their own, as a
pod has them. There a sidecar can watch everything there is, and whatever a scene leaves dies with it.

The test calls `in_namespace`; this file is then the script that the namespace's first process runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from guard_troupe import Troupe, killed_pids, labels_of  # noqa: E402
from sidecar_process import PROC, Sidecar, events_of, eventually, load, running, state_of  # noqa: E402

from sidecar.demo.standin import StandIn  # noqa: E402


class Namespace:
    """A scene that runs. `result` waits for what it returns; only then may it end, at `end`."""

    def __init__(self, scene: str, folder: Path, *words: str) -> None:
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--ipc"]
        self.process = subprocess.Popen(
            [*unshare, sys.executable, str(HERE / "guard_namespace.py"), scene, str(folder), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._watchdog = threading.Timer(90, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def result(self) -> dict[str, Any]:
        """What the scene returned. Raises `AssertionError` where it failed; its traceback is on stderr."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the scene failed: see stderr"
        result = json.loads(line)
        assert isinstance(result, dict)
        return result

    def end(self) -> None:
        """Let the scene's first process end, and with it everything else in there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()  # --kill-child takes the rest along
            self.process.wait()
        self._watchdog.cancel()
        self._watchdog.join()
        self.process.stdout.close()


@contextmanager
def in_namespace(scene: str, folder: Path, *words: str) -> Iterator[dict[str, Any]]:
    """Run one of the scenes below and give what it returned, while it is still there."""
    namespace = Namespace(scene, folder, *words)
    try:
        yield namespace.result()
    finally:
        namespace.end()


# The scenes.


def shared_memory(folder: Path, in_pod: str, mapped: str) -> dict[str, Any]:
    """An engine with a segment and a semaphore, which a killed rank takes along."""
    flags = ["--captures", "process", *(["--in-pod", "--on-rank-death", "kill"] if in_pod else [])]
    bystander = Path("/dev/shm/psm_00000000")
    bystander.write_bytes(b"nobody's")
    with StandIn(tp=2, shm=True) as engine, Sidecar(folder / "dumps", *flags) as sidecar:
        engine.wait_ready()
        sidecar.wait_serving()
        names = list(engine.shm)
        held = os.open(f"/dev/shm/{names[0]}", os.O_RDWR) if mapped else -1
        engine.kill("TP1")
        record = sidecar.incident()
        left = sorted(path.name for path in Path("/dev/shm").iterdir())
        if held >= 0:
            os.close(held)
    said = {entry["event"]: entry["detail"] for entry in record["timeline"] if entry["event"].startswith("shared mem")}
    return {"names": names, "left": left, "said": said, "bystander": bystander.name}


def strangers(folder: Path) -> dict[str, Any]:
    """A person's shell has started the engine, and beside it something else; a third process is by itself."""
    code = """
def engine():
    setproctitle("sglang::http_server")
    say("engine")
    rank("TP0")
    rank("TP1")
    wait()
fork(lambda: witness("same-session"), group=True)
fork(lambda: witness("elsewhere"), session=True)
order()
fork(engine, group=True)
wait()
"""
    strangers = ("same-session", "elsewhere", "server")
    with Troupe(code, title="-bash") as troupe:
        troupe.await_labels("same-session", "elsewhere")
        troupe.order("start")
        troupe.await_labels("engine", "TP0", "TP1")
        flags = ("--captures", "process", "--expected-ranks", "2")
        with Sidecar(folder / "dumps", *flags) as sidecar:
            sidecar.wait_serving()
            troupe.kill("TP1")
            record = sidecar.incident()
        sessions = {PROC.stat(troupe.pid_of(label)).sid for label in ("same-session", "server")}
        states = {label: state_of(troupe.identities[label]) for label in strangers}
        for label in strangers[:2]:
            troupe.kill(label, signal.SIGUSR1)
        eventually(lambda: troupe.hear(0.05) and len(caught(troupe)) >= 2, "both witnesses")
        pids = {label: troupe.pid_of(label) for label in ("engine", "TP0", "TP1")}
        return {
            "killed": sorted(killed_pids(record) - {pids["TP1"]}), "engine": sorted({pids["engine"], pids["TP0"]}),
            "failures": labels_of(record["failures"]), "states": states, "sessions": len(sessions),
            "caught": sorted(caught(troupe)), "engine_runs": running(troupe.identities["TP0"]),
        }  # fmt: skip


def caught(troupe: Troupe) -> list[list[str]]:
    return [[label, *rest] for label, _, rest in troupe.said if label.endswith("-caught")]


def stuck(folder: Path, frozen: str) -> dict[str, Any]:
    """A process of the engine writes to a file system that is frozen; the sidecar outlives that, and the next engine
    is watched as the first one was.
    """
    code = f"""
def stuck():
    os.open({frozen + "/file"!r}, os.O_CREAT | os.O_WRONLY)
rank("TP0")
rank("TP1")
fork(stuck, "stuck")
wait()
"""
    with Sidecar(folder / "dumps", "--captures", "process", "--reap-timeout", "1") as sidecar:
        first = Troupe(code)
        first.await_labels("TP0", "TP1", "stuck")
        sidecar.wait_serving()
        who = first.identities["stuck"]
        eventually(lambda: state_of(who) == "D", "state D")
        first.kill("TP1")
        record = sidecar.incident()
        still = state_of(who)
        wchan = PROC.wchan(who.pid)
        others = [label for label, identity in first.identities.items() if label != "stuck" and running(identity)]
        serving = len(sidecar.events("watching"))
        with StandIn(tp=2) as engine:
            engine.wait_ready()
            eventually(
                lambda: [w for w in sidecar.events("watching")[serving:] if w["state"] == "serving"], "serving again"
            )
            eventually(sidecar.standby, "the next recorder")
            engine.kill("TP0")
            eventually(lambda: len(sidecar.incidents()) == 2, "the second incident")
            second = eventually(lambda: sealed(sidecar.incidents()[1]), "sealed")
            engine_left = [process.label for process in engine.wait_gone()]
        return {
            "record": record, "who": who.pid, "state": still, "wchan": wchan, "others": others,
            "second": {"failures": labels_of(second["failures"]), "termination": second["termination"]["outcome"],
                       "killed": sorted(killed_pids(second)), "events": events_of(second)},
            "engine_left": engine_left, "log": [line["event"] for line in sidecar.lines],
        }  # fmt: skip


def sealed(incident: Path) -> dict[str, Any] | None:
    record = load(incident)
    return record if record["sealed"] else None


SCENES: dict[str, Callable[..., dict[str, Any]]] = {
    "shared_memory": shared_memory, "strangers": strangers, "stuck": stuck,
}  # fmt: skip


def main(scene: str, folder: str, *words: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    result = SCENES[scene](Path(folder), *words)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
