"""The tiers of rights, in real pods: what the doctor says, what `run` says, and what there is of both when a rank dies.

Each pod with too few rights is played once more with the YAML that the doctor printed, which must then be enough.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pod_specs import DUMPS, FULL, LOCKING, PYTHON, ROOT, SIGNALS, USER, engine, pod, remedied, sidecar
from pods import Pod, artifacts, said, sealed
from sidecar_process import eventually

pytestmark = [pytest.mark.root, pytest.mark.long]
Play = Callable[[dict[str, Any]], Pod]
SMALL = ("--tp", "2", "--light", "--no-detokenizer")
GUARDS = {"pidfd", "thread_pidfd", "pidfd_hup", "pidfd_info"}  # the guard's own word in the metrics
LOOKS = {"ptrace", "root", "environment", "descriptors", "cgroup"}
WORKERS = 4  # processes of a sidecar at rest: supervisor, guard, recorder, web


def test_full_before_another_user(play: Play, dumps: Path) -> None:
    """Root with the three: everything works on an engine of another user. Before there is an engine no tier is claimed:
    rights are tried on who is there, and what the capabilities promise is told.
    """
    command = said([PYTHON, "-m", "sidecar.demo.engine", *SMALL])
    later = engine(shell=f"until [ -e /tmp/go ]; do sleep 0.1; done; exec {command}", securityContext=USER)
    with play(pod(dumps, later, _sidecar(FULL))) as running:
        running.wait_line("connected to the guard")
        status, found = _doctor(running)
        assert (status, found["tier"]) == (0, None)
        assert "the full tier" in found["because"]
        assert {one["status"] for one in found["checks"]} <= {"ok", "unknown", "not_applicable"}, found
        running.exec("engine", "touch", "/tmp/go")
        assert _examined(running, "full", 0) == {}
        assert _stacks(_dies(running, dumps)) == {"server", "TP0"}


def test_full_before_an_engine_that_locks_memory(play: Play, dumps: Path) -> None:
    """IPC_LOCK, usual for RDMA, is no matter to SYS_PTRACE."""
    with play(pod(dumps, engine(*SMALL, securityContext=LOCKING), _sidecar(FULL))) as running:
        assert _examined(running, "full", 0) == {}
        assert "IPC_LOCK" in _doctor(running)[1]["targets"][0]["capabilities"]
        assert _stacks(_dies(running, dumps)) == {"server", "TP0"}


def test_signals_only(play: Play, dumps: Path) -> None:
    """Root with KILL: the engine is killed, and the record says why there are no stacks. With what the doctor prints it
    is the full tier.
    """
    spec = pod(dumps, engine(*SMALL, securityContext=ROOT), _sidecar(SIGNALS))
    with play(spec) as running:
        missing = _examined(running, "signals only", 0)
        assert missing.keys() >= LOOKS | {"memory_maps"}
        record = _dies(running, dumps)
        assert _stacks(record) == set()
        _refused(record)
    twin, full = missing["ptrace"]["remedies"]
    assert "drop: []" in twin["yaml"]
    with play(remedied(spec, full)) as running:
        assert _examined(running, "full", 0) == {}
        assert _stacks(_dies(running, dumps)) == {"server", "TP0"}


def test_nothing_at_all(play: Play, dumps: Path) -> None:
    """Another user without a capability: the death is seen and told, the freeze and the kill are denied, and the
    container stays; the next engine is watched. With what the doctor prints it is the twin of an engine of root's.
    """
    os.chown(dumps, 1000, 1000)
    spec = pod(dumps, engine(*SMALL, securityContext=ROOT), _sidecar(USER, reap_timeout=2))
    with play(spec) as running:
        missing = _examined(running, "none", 1)
        assert missing.keys() >= LOOKS | {"signals", "memory_maps"}
        _read_by_a_person(running, missing)
        before = {seen.title: seen for seen in running.processes("engine")}
        running.rank("TP1").kill()
        (record,) = sealed(dumps)
        assert record["termination"]["outcome"] == "denied"
        assert record["termination"]["killed"] == []
        assert {"server", "TP0"} <= {one["rank"] for one in record["termination"]["survivors"]}
        assert "killing the engine was denied" in record["summary"]
        events = [entry["event"] for entry in record["timeline"]]
        assert {"freeze denied", "kill denied"} <= set(events)
        assert [entry["detail"] for entry in record["timeline"] if entry["event"] == "killed"] == ["0 processes"]
        _refused(record)
        assert before["sglang::scheduler_TP0"].state in ("S", "R")
        assert running.exits("engine") == []
        assert running.metrics()["rankguard_terminations_total"]["denied",] == 1
        for seen in running.processes("engine"):
            seen.kill()
        running.wait_serving(2, times=2)
        _stayed(running)
    with play(remedied(spec, missing["signals"]["remedies"][0])) as running:
        assert _examined(running, "twin", 0).keys() <= {"memory_maps"}
        assert _stacks(_dies(running, dumps)) == {"server", "TP0"}


def test_a_twin_that_lacks_a_capability_of_the_engines(play: Play, dumps: Path) -> None:
    """Root and root, and the engine may lock memory: the kill works, stacks are refused, and the doctor names what is
    missing. With exactly that there are stacks.
    """
    spec = pod(dumps, engine(*SMALL, securityContext=LOCKING), _sidecar(ROOT))
    with play(spec) as running:
        missing = _examined(running, "signals only", 0)
        assert missing.keys() >= LOOKS
        assert "it has IPC_LOCK, which we lack" in missing["ptrace"]["seen"]
        _refused(_dies(running, dumps))
    twin = missing["ptrace"]["remedies"][0]
    assert yaml.safe_load(twin["yaml"]) == {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
    with play(remedied(spec, twin)) as running:
        assert _examined(running, "twin", 0).keys() <= {"memory_maps"}
        assert _stacks(_dies(running, dumps)) == {"server", "TP0"}


def test_a_twin_and_the_volumes_that_it_can_write(play: Play, dumps: Path) -> None:
    """The same user without a capability, with a hostPath, which is root's: it is told with what to do, `run` goes on,
    and the engine is killed. With the emptyDir that the doctor prints there is a record, with stacks.
    """
    dumps.chmod(0o755)
    spec = pod(dumps, engine(*SMALL, securityContext=USER), _sidecar(USER))
    with play(spec) as running:
        missing = _examined(running, "twin", 1)
        assert missing.keys() == {"volume", "memory_maps"}
        assert "uid 1000 can write an emptyDir, but no hostPath" in missing["volume"]["seen"]
        running.rank("TP1").kill()
        running.wait_line("gone", outcome="reaped")
        running.wait_serving(2, times=2)
        assert running.exits("engine") == [137]
        eventually(lambda: sum(running.metrics()["rankguard_records_lost_total"].values()) > 0, "the loss is counted")
        assert list(dumps.iterdir()) == []
        _stayed(running)
    with play(remedied(spec, missing["volume"]["remedies"][0])) as running:
        assert _examined(running, "twin", 0).keys() == {"memory_maps"}
        assert _stacks(_dies(running, running.mounted("rankguard", DUMPS))) == {"server", "TP0"}


def _sidecar(security: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return sidecar({**security, "readOnlyRootFilesystem": True}, settings=settings)


def _doctor(running: Pod) -> tuple[int, dict[str, Any]]:
    """`kubectl exec POD -c rankguard -- rankguard doctor --json`: its exit status, and the document."""
    done = running.exec("rankguard", "rankguard", "doctor", "--json", check=False)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return done.returncode, document


def _examined(running: Pod, tier: str, status: int) -> dict[str, dict[str, Any]]:
    """What is missing, by name: by the doctor, the metrics and the log, which must say the same. Nothing of it is left
    running.
    """
    running.wait_serving(2)
    code, found = _doctor(running)
    assert (found["tier"], code) == (tier, status), found
    assert found["ok"] == (status == 0)
    states = {one["capability"]: one["status"] for one in found["checks"]}
    expected = {name: state == "ok" for name, state in states.items() if state in ("ok", "missing")}
    assert set(states.values()) <= {"ok", "missing", "unknown", "not_applicable"}, states

    def shown() -> dict[str, bool]:
        try:
            values = running.metrics().get("rankguard_capability_available", {})
        except (OSError, AssertionError):  # the web is being started
            return {}
        return {name: bool(value) for (name,), value in values.items() if name not in GUARDS}

    told = {name: there for name, there in expected.items() if name not in GUARDS}
    # The rounds of `run` have the lowest priority: beside other pods on a small machine that can take a while.
    eventually(lambda: shown() == told, f"{told} in the metrics", 120)
    missing = {one["capability"]: one for one in found["checks"] if one["status"] == "missing"}
    last = {line["capability"]: line for line in running.lines() if "capability" in line}
    logged = {name: line["lost"] for name, line in last.items() if line["event"] == "a capability is missing"}
    assert logged == {name: one["lost"] for name, one in missing.items()}
    eventually(lambda: len(running.processes("rankguard")) == WORKERS, "the doctor has left nothing behind")
    return missing


def _read_by_a_person(running: Pod, missing: dict[str, dict[str, Any]]) -> None:
    """The same as text: a line for each, the YAML to paste for what is missing, and the sum of it at the end."""
    done = running.exec("rankguard", "rankguard", "doctor", check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    for name, one in missing.items():
        assert [line for line in lines if line.split()[:2] == ["missing", name]], done.stdout
        assert f"lost: {one['lost']}" in done.stdout
        for remedy in one["remedies"]:
            assert f"in {remedy['place']}:" in done.stdout
            assert "\n".join(f"{' ' * 13}{line}" for line in remedy["yaml"].split("\n")) in done.stdout
    assert "Tier: none (the engine's processes may not be signalled)" in lines
    assert "Required, and missing: signals" in lines


def _dies(running: Pod, dumps: Path) -> dict[str, Any]:
    """A rank is killed, and with it the engine; the record of that. The engine is back, and we were not restarted."""
    for folder in dumps.glob("*/"):  # of a pod before, whose removal may have looked like a failure
        shutil.rmtree(folder)
    running.rank("TP1").kill()
    (record,) = sealed(dumps)
    assert [failure["rank"] for failure in record["failures"] if failure["first"]] == ["TP1"]
    assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
    assert {"server", "TP0"} <= {one["rank"] for one in record["termination"]["killed"]}
    running.wait_serving(2, times=2)
    assert running.exits("engine") == [137]
    _stayed(running)
    return record


def _stayed(running: Pod) -> None:
    assert running.restarts("rankguard") == 0
    assert running.state("rankguard") == "running"
    assert running.get("/healthz")[0] == 200


def _stacks(record: dict[str, Any]) -> set[str]:
    """Those of the survivors whose stacks were captured."""
    return {"server", "TP0"} & artifacts(record, "pyspy_json").keys()


def _refused(record: dict[str, Any]) -> None:
    """The record says why there are no stacks, and who tells more."""
    failed = artifacts(record, "pyspy_json", "failed")
    assert failed.keys() >= {"server", "TP0"}, record["artifacts"]
    for rank in ("server", "TP0"):
        assert "permission denied" in failed[rank]["detail"]
        assert "rankguard doctor" in failed[rank]["detail"]
