"""Who may do what to whom, tried by a real doctor with real rights on real processes of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_rig import FULL, USER, check, nothing, process, result, root_with, statuses, ways
from sidecar_process import identity_of

from sidecar.doctor.credentials import USUAL, USUAL_MORE

pytestmark = pytest.mark.root
LOOKS = ("ptrace", "root", "environment", "descriptors", "memory_maps")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dump folder that everybody may write, as an emptyDir."""
    where = tmp_path / "dumps"
    where.mkdir()
    where.chmod(0o777)
    for parent in where.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    return where


def test_root_with_the_three_reaches_everybody(folder: Path) -> None:
    """The full tier: a target of another user, and one of root's with a capability that we lack."""
    with process(user=USER) as other, process(prefix=root_with("ipc_lock")) as locked:
        found = check(folder, other, locked, prefix=root_with(*FULL))
    assert statuses(found, "signals", *LOOKS) == ["ok"] * 6
    assert found.tier == "full"
    assert not found.fails
    assert {target["uid"] for target in found.targets} == {0, USER}
    assert ["IPC_LOCK"] in [target["capabilities"] for target in found.targets]


def test_a_capability_of_the_targets_that_we_lack(folder: Path) -> None:
    """ptrace wants ours to contain the target's: the remedy adds exactly what is missing, and another gives the three.

    Signals are enough for the kill, so nothing required is missing.
    """
    with process(prefix=root_with("ipc_lock", "net_raw")) as target:
        found = check(folder, target, prefix=root_with("net_raw"))
        ptrace = result(found, "ptrace")
        assert statuses(found, "signals", *LOOKS) == ["ok"] + ["missing"] * 5
        assert "EPERM: it has IPC_LOCK, which we lack" in ptrace.seen
        assert found.tier == "signals only"
        assert not found.fails
        assert ways(ptrace) == [
            {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}},
            {"securityContext": {"capabilities": {"add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]}}},
        ]
        # The first of them is the twin, and it does give it.
        found = check(folder, target, prefix=root_with("net_raw", "ipc_lock"))
        assert statuses(found, "signals", *LOOKS) == ["ok"] * 6
        assert found.tier == "twin"


def test_the_same_user_without_any_capability(folder: Path) -> None:
    """A twin needs none where its target has none."""
    with process(user=USER) as target:
        found = check(folder, target, user=USER)
    assert statuses(found, "signals", *LOOKS) == ["ok"] * 6
    assert found.tier == "twin"


def test_another_user_without_any_capability(folder: Path) -> None:
    """Nothing works, that signals do not is a failure, and the twin's YAML names the target's user."""
    with process(prefix=root_with("ipc_lock")) as target:
        found = check(folder, target, user=USER)
    assert statuses(found, "signals", *LOOKS) == ["missing"] * 6
    assert found.tier == "none"
    assert found.fails
    assert [one.capability for one in found.results if one.fails] == ["signals"], result(found, "volume")
    twin, full = ways(result(found, "ptrace"))
    assert (twin["securityContext"]["runAsUser"], twin["securityContext"]["runAsGroup"]) == (0, 0)
    assert full["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]}


def test_root_without_dac_override_before_another_user(folder: Path) -> None:
    """It looks in, and may not read what belongs to the other: one capability is missing, and only that is told."""
    with process(user=USER) as target:
        found = check(folder, target, prefix=root_with("sys_ptrace", "kill"))
    assert statuses(found, "signals", *LOOKS) == ["ok", "ok", "ok", "missing", "missing", "ok"]
    assert "EACCES" in result(found, "environment").seen
    assert found.tier == "signals only"
    full, twin = ways(result(found, "environment"))
    assert full == {"securityContext": {"capabilities": {"add": ["DAC_OVERRIDE"]}}}
    assert twin["securityContext"]["runAsUser"] == USER
    assert twin["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_root_without_kill_before_another_user(folder: Path) -> None:
    """Required where anything may follow from a failure, and not where it is only observed."""
    with process(user=USER) as target:
        found = check(folder, target, prefix=root_with("sys_ptrace"))
        observing = {"on_rank_death": "observe", "on_liveness_failure": "observe"}
        only = check(folder, target, prefix=root_with("sys_ptrace"), **observing)
    assert result(found, "signals").fails
    assert "without KILL" in result(found, "signals").seen
    assert statuses(only, "signals") == ["missing"]
    assert not only.fails


def test_two_users_have_no_twin(folder: Path) -> None:
    with process(user=USER) as one, process(user=USER + 1) as two:
        found = check(folder, one, two, prefix=root_with("kill"))
    assert ways(result(found, "ptrace")) == [
        {"securityContext": {"capabilities": {"add": ["SYS_PTRACE", "DAC_OVERRIDE"]}}}
    ]
    assert result(found, "ptrace").seen.count("EPERM") == 2


def test_a_twin_of_root_drops_nothing(folder: Path) -> None:
    """An engine of root's has what the runtime gives to all: a sidecar that drops it is told not to, and adds the rest;
    it is not told to add fourteen by name, which Pod Security `baseline` refuses.
    """
    with process(prefix=root_with(*USUAL, *USUAL_MORE, "ipc_lock")) as target:
        found = check(folder, target, prefix=root_with("kill"))
    twin, full = ways(result(found, "ptrace"))
    assert twin == {"securityContext": {"capabilities": {"drop": [], "add": ["IPC_LOCK"]}}}
    assert full == {"securityContext": {"capabilities": {"add": ["SYS_PTRACE", "DAC_OVERRIDE"]}}}


def test_a_remedy_loses_nobody_who_is_reached(folder: Path) -> None:
    """The twin of one user is not told to become another's, who is refused: that would lose the first."""
    with process(user=USER) as own, process() as roots:
        found = check(folder, own, roots, user=USER)
    assert f"uid {USER}" not in result(found, "memory_maps").seen
    for capability in ("signals", "ptrace", "memory_maps"):
        assert ways(result(found, capability)) == [
            {
                "securityContext": {
                    "runAsUser": 0,
                    "runAsNonRoot": False,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE", "KILL", "DAC_OVERRIDE"]},
                }
            }
        ]


def test_one_of_each_kind_is_tried(folder: Path) -> None:
    """Eight ranks with the same rights are one target, and all of them are counted."""
    with process(user=USER) as a, process(user=USER) as b, process(user=USER) as c, process(user=USER + 1) as d:
        found = check(folder, a, b, c, d)
    assert sorted((target["uid"], target["like"]) for target in found.targets) == [(USER, 2), (USER + 1, 0)]
    assert "and 2 like it" in result(found, "ptrace").seen


def test_a_pid_that_is_somebody_elses_by_now_is_not_tried(folder: Path) -> None:
    """The guard names ranks by pid and start time; with another start time it is another process."""
    with process() as target:
        start = identity_of(target).start
        right = check(folder, order={"known": ((target, start, "scheduler", "TP0"),)}, **nothing())
        wrong = check(folder, order={"known": ((target, start - 1, "scheduler", "TP0"),)}, **nothing())
    assert [one["rank"] for one in right.targets] == ["TP0"]
    assert statuses(right, "ptrace") == ["ok"]
    assert [one for one in wrong.targets if one["engine"]] == []
    assert statuses(wrong, "signals", "ptrace") == ["unknown", "unknown"]


def test_with_nobody_to_try_it_on_nothing_is_claimed(folder: Path) -> None:
    """Unknown, with what the capabilities promise; and nothing fails for that."""
    some = check(folder, prefix=root_with("sys_ptrace"), **nothing())
    assert statuses(some, "signals", *LOOKS) == ["unknown"] * 6
    assert "SYS_PTRACE is there" in result(some, "ptrace").seen
    assert "no KILL" in result(some, "signals").seen
    assert some.tier == ""
    assert not some.fails


def test_a_process_that_changed_its_user_is_not_dumpable(folder: Path) -> None:
    """It is its user's by now, and the kernel still lets nobody of that user look in: the reason is told."""
    ids = f"{USER}, {USER}, {USER}"
    code = f"import os, time; os.setresgid({ids}); os.setresuid({ids}); print(flush=True); time.sleep(600)"
    started = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert started.stdout is not None
    try:
        started.stdout.readline()
        found = check(folder, started.pid, user=USER)
    finally:
        started.kill()
        started.wait(20)
        started.stdout.close()
    assert statuses(found, "signals", "ptrace") == ["ok", "missing"]
    assert "not dumpable" in result(found, "ptrace").seen


def test_a_seccomp_filter_is_told_apart_from_a_missing_right(folder: Path, tmp_path: Path) -> None:
    """Where even ourselves may not be read, no capability helps: the remedy is another profile."""
    if os.uname().machine != "x86_64":
        pytest.skip("the filter is written for x86-64")
    filtered = tmp_path / "filtered.py"
    filtered.write_text(FILTER)
    with process() as target:
        found = check(folder, target, prefix=[sys.executable, "-S", str(filtered)])
    ptrace = result(found, "ptrace")
    assert ptrace.status.value == "missing"
    assert "seccomp" in ptrace.seen
    assert ways(ptrace) == [{"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}]
    assert statuses(found, "root", "environment") == ["ok", "ok"]


# Refuses process_vm_readv(2) (310 on x86-64) with EPERM from here on, and runs the rest of its command line.
FILTER = """
import ctypes, os, struct, sys
instructions = (
    (0x20, 0, 0, 0), (0x15, 0, 1, 310), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000),
)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""
