"""The sidecar's container is never restarted, and never in the way: whatever is set wrong, missing, full or killed."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pod_specs import PYTHON, engine, pod, sidecar
from pods import Pod, fill, sealed
from sidecar_process import eventually

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]
SMALL = ("--tp", "2", "--light", "--no-detokenizer")


@contextmanager
def volume(folder: Path, size: str, *options: str) -> Iterator[Path]:
    """A small file system at `folder`, unmounted at the end even if something still uses it."""
    words = ",".join((f"size={size}", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", words, "none", str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True, timeout=30)


def never_restarted(running: Pod) -> None:
    assert running.restarts("rankguard") == 0
    assert running.state("rankguard") == "running"
    assert running.exits("rankguard") == []


def test_its_processes_killed_in_turn_and_at_random(play: Play, dumps: Path) -> None:
    """Guard, web and recorder, each in turn and then at random: another takes its place, the engine runs on, and the
    death that follows is seen, captured and counted once.
    """
    chance = random.Random(4)
    kinds = ["guard", "web", "recorder"]
    with play(pod(dumps, engine(*SMALL), sidecar())) as running:
        running.wait_serving(2)
        before = [seen.identity for seen in running.processes("engine")]
        for kind in kinds + [chance.choice(kinds) for _ in range(7)]:
            found: Any = eventually(lambda kind=kind: running.worker(kind), f"a {kind}")
            found.kill()
            eventually(lambda found=found: found.state is None, "it is reaped")
        for kind in kinds:
            eventually(lambda kind=kind: running.worker(kind), f"a {kind}")
        # Each has come to its work: the web answers by what the guard told it, and a recorder stands by.
        eventually(lambda: _ranks_up(running) == 2, "the ranks in the metrics")
        assert [seen.identity for seen in running.processes("engine")] == before
        assert list(dumps.glob("*/incident.json")) == []
        running.rank("TP1").kill()
        (record,) = sealed(dumps)
        assert [f["rank"] for f in record["failures"] if f["first"]] == ["TP1"]
        running.wait_serving(2)
        eventually(lambda: _deaths(running) == 1, "the death counted once")
        never_restarted(running)


@pytest.mark.parametrize("then", ["one rank", "all of it"])
def test_a_death_while_the_guard_is_down(play: Play, dumps: Path, then: str) -> None:
    """A rank, or the whole engine, dies in the moment in which there is no guard: the next one tells of it."""
    with play(pod(dumps, engine(*SMALL), sidecar())) as running:
        running.wait_serving(2)
        guard = running.worker("guard")
        assert guard is not None
        guard.kill(19)  # it sees nothing any more, and dies so
        running.rank("TP0").kill()
        if then == "all of it":
            for seen in running.processes("engine"):
                seen.kill()
        guard.kill()
        (record,) = sealed(dumps)
        assert ("TP0", "sigkill") in [(f["rank"], f["cause"]) for f in record["failures"]]
        eventually(lambda: running.exits("engine") == [137], "the engine's end")
        never_restarted(running)


def test_bad_settings(play: Play, dumps: Path) -> None:
    """In a pod no setting ends the container: what is refused has its default, is named in the log and counted, and
    Rankguard only observes: the death is recorded, and nothing is killed.
    """
    wrong = {"engine": "tensorrt", "death_deadline": "soon", "stall_timeout": -1, "rank_pattern": "(", "no_such": 1}
    with play(
        pod(dumps, engine(*SMALL), sidecar(settings=wrong, args=["run", "--listen", "nowhere:port", "--what"]))
    ) as running:
        running.wait_serving(2)
        refused = [
            line["detail"] for line in running.lines("setting refused, its default is used and nothing will be killed")
        ]
        for name in ("ENGINE", "DEATH_DEADLINE", "STALL_TIMEOUT", "RANK_PATTERN", "NO_SUCH", "--listen", "--what"):
            assert [line for line in refused if name in line], (name, refused)
        survivor = running.rank("TP1")
        running.rank("TP0").kill()
        (record,) = sealed(dumps)
        assert record["decision"]["action"] == "observe"
        assert survivor.state == "S"
        assert running.exits("engine") == []
        assert running.metrics()["rankguard_config_errors"][()] == len(refused)
        never_restarted(running)


@pytest.mark.parametrize("trouble", ["missing", "full", "read-only", "full while it runs"])
def test_a_volume_that_cannot_be_written(play: Play, dumps: Path, trouble: str) -> None:
    """No volume is mounted and the root file system is read-only; the volume is full from the start or fills up; it is
    read-only: the engine starts, its death is seen and ends in the kill, the loss is counted, and the container stays.
    """
    options = ("ro",) if trouble == "read-only" else ()
    with volume(dumps, "1m", *options):
        if trouble == "full":
            fill(dumps / "filler")
        container = sidecar(dumps=trouble != "missing")
        with play(pod(None if trouble == "missing" else dumps, engine(*SMALL), container)) as running:
            running.wait_serving(2)
            if trouble == "full while it runs":
                fill(dumps / "filler")
            running.rank("TP0").kill()
            running.wait_line("killed")
            running.wait_serving(2, times=2)
            assert running.exits("engine") == [137]
            eventually(lambda: _deaths(running) == 1, "the death in the metrics")
            if trouble in ("missing", "read-only"):
                lost = eventually(lambda: running.metrics()["rankguard_records_lost_total"], "the loss in the metrics")
                eventually(
                    lambda: sum(running.metrics()["rankguard_records_lost_total"].values()) > 0, f"a loss: {lost}"
                )
            never_restarted(running)


def test_a_busy_port(play: Play, dumps: Path) -> None:
    """Another container has the port: the watch goes on without it, a death is acted on, and the port is taken when it
    is free.
    """
    holder = engine(
        name="holder",
        command=[
            PYTHON,
            "-c",
            "import socket, time; s = socket.socket(); s.bind(('', 21400)); s.listen(); time.sleep(3600)",
        ],
    )
    with play(pod(dumps, holder, engine(*SMALL), sidecar())) as running:
        running.wait_serving(2)
        running.rank("TP0").kill()
        sealed(dumps)
        running.podman.run("rm", "-f", "-t", "0", running.full("holder"))
        assert running.get("/healthz")[0] == 200
        assert _deaths(running) == 1
        never_restarted(running)


def test_a_collector_that_eats_memory(play: Play, dumps: Path, tmp_path: Path) -> None:
    """In a container of 192 MiB the collectors take all they can get: they are ended before the kernel has to choose,
    the record says so, and the engine is killed as ever.
    """
    eater = tmp_path / "py-spy"
    eater.write_text(f"#!{PYTHON}\nheld = []\nwhile True:\n    held.append(b'x' * (1 << 20))\n")
    eater.chmod(0o755)
    container = sidecar(
        resources={"limits": {"memory": "192Mi"}},
        mounts=[{"name": "eater", "mountPath": "/opt/rankguard/bin/py-spy"}],
    )
    volumes = [{"name": "eater", "hostPath": {"path": str(eater), "type": "File"}}]
    with play(pod(dumps, engine("--tp", "4"), container, volumes=volumes)) as running:
        running.wait_serving(4)
        running.rank("TP0").kill()
        (record,) = sealed(dumps)
        eaten = [a for a in record["artifacts"] if a["kind"].startswith("pyspy") and a["rank"] in ("TP1", "TP2", "TP3")]
        assert eaten
        assert {a["status"] for a in eaten} == {"failed"}, eaten
        assert any("memory" in a["detail"].lower() for a in eaten), eaten
        running.wait_serving(4, times=2)
        assert running.exits("engine") == [137]
        assert _oom_kills(running, "rankguard") == 0
        never_restarted(running)


def _oom_kills(running: Pod, container: str) -> int:
    """How often the kernel has killed in this container's memory cgroup (version 1)."""
    pid = running.inspect(container)["State"]["Pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(","))
    text = Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control").read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def _deaths(running: Pod) -> float:
    return sum(running.metrics()["rankguard_rank_deaths_total"].values())


def _ranks_up(running: Pod) -> float:
    up = running.metrics().get("rankguard_rank_up", {})
    return sum(value for labels, value in up.items() if "scheduler" in labels)
