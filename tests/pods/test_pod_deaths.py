"""A rank dies in a real pod: evidence on the volume, exit 137, the engine back, and what Prometheus sees of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pod_specs import PYTHON, engine, host_folder, pod, sidecar
from pods import Pod, Seen, artifacts, said, sealed
from sidecar_process import eventually
from soak import EATER

pytestmark = pytest.mark.root
Play = Callable[[dict[str, Any]], Pod]
SMALL = ("--tp", "2", "--light", "--no-detokenizer")


@pytest.mark.parametrize(
    ("looks", "role", "survivors"),
    [
        ("sglang", "scheduler", {"server", "TP0", "TP1", "TP2", "detokenizer"}),
        ("vllm", "worker", {"server", "TP0", "TP1", "TP2", "engine_core"}),
    ],
)
def test_a_killed_rank_is_captured_and_the_container_is_back(
    play: Play, dumps: Path, looks: str, role: str, survivors: set[str]
) -> None:
    """A rank gets SIGKILL: the stacks of all survivors are on the volume, the engine's container ends with 137 and runs
    again, and a scrape from outside the pod shows the death and the new ranks.
    """
    with play(pod(dumps, engine("--engine", looks, "--tp", "4"), sidecar())) as running:
        running.wait_serving(4)
        running.rank("TP3").kill()
        (record,) = sealed(dumps)
        assert record["reason"] == "RankDied"
        assert failures_of(record)[0] == ("TP3", "sigkill", 9)
        assert survivors <= artifacts(record, "pyspy_json").keys()
        assert survivors <= artifacts(record, "process").keys()
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        running.wait_serving(4, times=2)
        assert running.exits("engine") == [137]
        assert running.restarts("rankguard") == 0

        def back() -> Any:
            values = running.metrics()
            return values if values["rankguard_rank_up"].get(("TP3", role)) == 1 else None

        values = eventually(back, "the new rank in the metrics")
        assert values["rankguard_rank_deaths_total"]["sigkill",] == 1
        assert values["rankguard_incidents_total"]["RankDied",] == 1


@pytest.mark.parametrize("guard", ["stays", "was restarted", "is away"])
def test_a_kill_for_memory_is_told_as_such(play: Play, dumps: Path, guard: str) -> None:
    """The engine's container reaches its memory limit, and the kernel takes a rank: `oom_killed`, not `sigkill`; also
    where the guard that found the rank is no more, and where it happened while there was none.
    """
    container = engine(*SMALL, resources={"limits": {"memory": "300Mi"}})
    with play(pod(dumps, container, sidecar())) as running:
        running.wait_serving(2)
        rank = running.rank("TP1")
        Path(f"/proc/{rank.identity.pid}/oom_score_adj").write_text("1000")  # whom the kernel will take
        if guard == "was restarted":
            kill_worker(running, "guard")
            running.wait_line("guard restarted")
        if guard == "is away":
            first = running.worker("guard")
            assert first is not None
            first.kill(signal.SIGSTOP)  # it sees nothing, and is killed as it is
        running.exec("engine", PYTHON, "-c", EATER, str(rank.inside), check=False)
        assert rank.state in (None, "Z", "X")
        if guard == "is away":
            first.kill()
        (record,) = sealed(dumps)
        assert failures_of(record)[0] == ("TP1", "oom_killed", 9)
        assert "killed by the kernel for memory" in record["summary"]
        assert running.metrics()["rankguard_rank_deaths_total"]["oom_killed",] == 1


@pytest.mark.parametrize("entrypoint", ["as another user", "exec", "a shell that waits"])
def test_the_engine_may_be_started_in_any_way(play: Play, dumps: Path, entrypoint: str) -> None:
    """Under another uid; by `exec` from a shell, which changes the command line under the same pid; below a shell that
    waits for it: the ranks are found, captured and killed all the same, and the container ends with 137.
    """
    command = said([PYTHON, "-m", "sidecar.demo.engine", *SMALL])
    container = {
        "as another user": engine(*SMALL, securityContext={"runAsUser": 1000, "runAsGroup": 1000}),
        "exec": engine(shell=f"cd /tmp; exec {command}"),
        "a shell that waits": engine(shell=f"cd /tmp; {command}; echo ended"),
    }[entrypoint]
    with play(pod(dumps, container, sidecar())) as running:
        running.wait_serving(2)
        running.rank("TP0").kill(signal.SIGSEGV)
        (record,) = sealed(dumps)
        assert failures_of(record)[0] == ("TP0", "sigsegv", 11)
        assert {"server", "TP1"} <= artifacts(record, "pyspy_text").keys()
        running.wait_serving(2, times=2)
        assert running.exits("engine") == [137]


def test_what_a_person_runs_in_the_engines_container_is_no_rank(play: Play, dumps: Path) -> None:
    """`kubectl exec` of a Python in the engine's container: it is not counted, and its death is nobody's failure."""
    with play(pod(dumps, engine(*SMALL), sidecar())) as running:
        running.wait_serving(2)
        before = {seen.identity for seen in running.processes("engine")}
        running.exec("engine", "sh", "-c", f"{PYTHON} -c 'import time; time.sleep(600)' >/dev/null 2>&1 &")
        (guest,) = eventually(
            lambda: [
                seen for seen in running.processes("engine") if seen.identity not in before and "sleep" in seen.title
            ],
            "the guest",
        )
        guest.kill()
        eventually(lambda: guest.state is None, "the guest is gone")
        running.rank("TP1").kill()  # what is seen of this comes after all that there was to see of the guest
        (record,) = sealed(dumps)
        assert [f["rank"] for f in record["failures"] if f["first"]] == ["TP1"]
        assert guest.inside not in {line["pid"] for line in running.lines("rank")}
        assert running.lines("rank died")[0]["rank"] == "TP1"


def test_the_engines_own_memory_volume_is_left_clean(play: Play, dumps: Path, memory: Path) -> None:
    """An engine with a memory volume of its own at /dev/shm, which the sidecar does not mount: what the killed ranks
    had there is removed, so that ten restarts do not fill it; what others have there stays.
    """
    (memory / "psm_users").write_text("not the engine's")
    container = engine(*SMALL, "--shm", volumeMounts=[{"name": "shm", "mountPath": "/dev/shm"}])
    with play(pod(dumps, container, sidecar(), volumes=[host_folder("shm", memory)])) as running:
        running.wait_serving(2)
        first = {path.name for path in memory.iterdir()} - {"psm_users"}
        assert first
        running.rank("TP1").kill()
        (record,) = sealed(dumps)
        running.wait_serving(2, times=2)
        left = {path.name for path in memory.iterdir()}
        assert "psm_users" in left
        assert not first & left, record["timeline"]


@pytest.mark.parametrize(("policy", "comes_back"), [("Never", False), ("OnFailure", True)])
def test_other_restart_policies(play: Play, dumps: Path, policy: str, comes_back: bool) -> None:
    """The kill is a failure to the kubelet: OnFailure starts the engine again, Never leaves it; the sidecar stays."""
    with play(pod(dumps, engine(*SMALL), sidecar(), restart=policy)) as running:
        running.wait_serving(2)
        running.rank("TP0").kill()
        sealed(dumps)
        if comes_back:
            running.wait_serving(2, times=2)
        eventually(lambda: running.exits("engine") == [137], "the engine's end")
        assert running.state("engine") == ("running" if comes_back else "exited")
        assert running.state("rankguard") == "running"
        assert running.restarts("rankguard") == 0
        assert running.get("/healthz")[0] == 200


@pytest.mark.parametrize("entrypoint", ["the server", "a shell"])
def test_a_stop_from_outside_is_no_failure(play: Play, dumps: Path, entrypoint: str) -> None:
    """The kubelet stops the engine's container, with no hook that tells of it: SIGTERM to the entrypoint, and when that
    has ended, the runtime's SIGKILL to what is left. Nobody failed, and nothing is counted.
    """
    command = said([PYTHON, "-m", "sidecar.demo.engine", *SMALL])
    container = engine(*SMALL) if entrypoint == "the server" else engine(shell=f"{command}; echo ended")
    with play(pod(dumps, container, sidecar())) as running:
        running.wait_serving(2)
        running.podman.run("stop", "-t", "30", running.full("engine"))
        running.wait_line("watching", state="restarting")
        assert running.exits("engine") == [143]
        running.podman.run("start", running.full("engine"))
        running.wait_serving(2, times=2)
        assert list(dumps.glob("*/incident.json")) == []
        assert sum(running.metrics()["rankguard_rank_deaths_total"].values()) == 0


@pytest.mark.long
def test_ten_deaths_in_a_row(play: Play, dumps: Path) -> None:
    """The sidecar outlives ten restarts of the engine, and each time watches new pids under the same labels; nothing of
    its own grows: no descriptor, no process, and no memory beyond what the first restarts took.
    """
    container = sidecar(settings={"full_incidents_per_hour": 100})
    with play(pod(dumps, engine(*SMALL), container)) as running:
        pids: set[int] = set()
        held = []
        for times in range(1, 11):
            running.wait_serving(2, times=times)
            running.wait_line("recorder stands by", after=times - 1)
            eventually(lambda: _serves(running), "the web is up, with all that it holds")
            held.append({kind: _holds(running, kind) for kind in ("supervisor", "guard", "web")})
            rank = running.rank(f"TP{times % 2}")
            assert rank.inside not in pids
            pids.add(rank.inside)
            rank.kill()
            sealed(dumps, times)
        running.wait_serving(2, times=11)
        assert running.exits("engine") == [137] * 10
        assert running.restarts("rankguard") == 0
        assert running.metrics()["rankguard_rank_deaths_total"]["sigkill",] == 10
        for kind, (descriptors, memory) in held[-1].items():
            assert descriptors <= held[1][kind][0] + 2, (kind, [h[kind] for h in held])
            assert memory <= held[2][kind][1] + 2048, (kind, [h[kind] for h in held])


def _serves(running: Pod) -> bool:
    try:
        return bool(running.metrics())
    except OSError:
        return False


def _holds(running: Pod, kind: str) -> tuple[int, int]:
    """Open descriptors, and anonymous memory in KiB."""
    process = running.supervisor() if kind == "supervisor" else running.worker(kind)
    assert process is not None
    folder = Path(f"/proc/{process.identity.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return len(list((folder / "fd").iterdir())), int(status["RssAnon"].split()[0])


def failures_of(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Label, cause and signal of each failure, the first one first."""
    failures = sorted(record["failures"], key=lambda failure: not failure["first"])
    return [(failure["rank"], failure["cause"], failure["signal"]) for failure in failures]


def kill_worker(running: Pod, kind: str) -> Seen:
    """SIGKILL a worker of the sidecar; returns who it was."""
    found = eventually(lambda: running.worker(kind), f"a {kind}")
    assert isinstance(found, Seen)
    found.kill()
    eventually(lambda: found.state is None, f"the {kind} is reaped")
    return found
