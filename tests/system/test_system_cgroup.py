"""Which container and which memory cgroup: recorded texts of every runtime, and a real kill for memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidecar_process import PROC, eventually
from system_processes import Script

from sidecar.system.cgroup import OomCounter, container_id, memory_cgroup, memory_mount
from sidecar.system.proc import Proc

A = "3f2a" * 16
B = "07bc" * 16
POD = "kubepods-burstable-pod4f1e6f34_3c0e_4d5e_9a55_6a4a0c5c9d11.slice"
CONTAINERS = {
    "containerd, cgroupfs": f"4:memory:/kubepods/burstable/pod4f1e6f34-3c0e-4d5e-9a55-6a4a0c5c9d11/{A}",
    "containerd, systemd": f"0::/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{A}.scope",
    # With the systemd driver set on one side only (kubernetes/kubernetes#104039).
    "containerd, drivers at odds": f"9:memory:/system.slice/containerd.service/{POD}:cri-containerd:{A}",
    "cri-o": f"0::/kubepods.slice/kubepods-burstable.slice/{POD}/crio-{A}.scope",
    "cri-o with a cgroup inside": f"0::/kubepods.slice/{POD}/crio-{A}.scope/container",
    "docker, cgroupfs": f"12:pids:/docker/{A}\n1:name=systemd:/docker/{A}\n0::/system.slice/containerd.service",
    "docker, systemd": f"0::/system.slice/docker-{A}.scope",
    "podman": f"0::/machine.slice/libpod-{A}.scope/container",
    "podman, no root": f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
    "seen from a sidecar in a cgroup namespace": f"0::/../cri-containerd-{A}.scope",
    "a container in a container": f"0::/kubepods.slice/{POD}/cri-containerd-{B}.scope/docker/{A}",
}


@pytest.mark.parametrize("text", CONTAINERS.values(), ids=CONTAINERS)
def test_the_innermost_container(text):
    assert container_id(text + "\n") == A
    assert container_id(f"11:cpu,cpuacct:/\n{text}") == A


HOSTS = [
    "",
    "0::/\n",
    "0::/user.slice/user-1000.slice/session-3.scope\n",
    "12:cpuset:/\n11:memory:/user.slice\n1:name=systemd:/init.scope\n0::/init.scope\n",
    f"0::/docker/{A[:-1]}\n",
    f"0::/docker/{A}0\n",
    f"0::/docker/{A.upper()}\n",
    f"0::/x{A}\n",
    f"0::/{A}.scopes\n",
    f"0::/kubepods.slice/{POD}\n",
]


@pytest.mark.parametrize("text", HOSTS)
def test_a_plain_host_is_no_container(text):
    """63 or 65 digits, capitals, or an id that is only part of a word are no container's id."""
    assert container_id(text) == ""


@given(st.text(st.sampled_from("0:/-.\n3fxA \\") | st.characters(), max_size=300))
def test_any_text_gives_an_id_or_none(text):
    """What comes out is 64 hex digits or nothing, whatever goes in, so it is safe in a log and in a path."""
    found = container_id(text + A)
    assert found in ("", A)
    memory_cgroup(text)
    memory_mount(text, "v1")
    memory_mount(text, "v2")


V1 = "13:pids:/a\n4:memory:/kubepods/x\n3:cpu,cpuacct:/b\n1:name=systemd:/c\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (V1, ("v1", "/kubepods/x")),
        ("0::/system.slice/x.service\n", ("v2", "/system.slice/x.service")),
        ("0::/\n", ("v2", "/")),
        ("0::/../sibling\n", ("v2", "/../sibling")),
        ("0::/unified\n" + V1, ("v1", "/kubepods/x")),  # hybrid, whichever comes first
        (V1 + "0::/unified\n", ("v1", "/kubepods/x")),
        ("2:cpu:/a\n0::/memory is in v2\n", ("v2", "/memory is in v2")),
        ("7:hugetlb,memory,rdma:/joint\n", ("v1", "/joint")),
        ("4:memory:/with:colons:in/it\n", ("v1", "/with:colons:in/it")),
        ("1:name=memory:/named\n", ("", "")),
        ("2:cpu:/a\n", ("", "")),
        ("", ("", "")),
        ("memory\n:::\nx", ("", "")),
    ],
)
def test_the_memory_cgroup_of_a_process(text, found):
    assert memory_cgroup(text) == found


MOUNTS_V1 = r"""
31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:11 master:2 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
MOUNTS_IN_A_CONTAINER = "812 800 0:32 /docker/x /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup cgroup rw,memory\n"
MOUNTS_V2 = "26 23 0:22 /../.. /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("text", "version", "found"),
    [
        (MOUNTS_V1, "v1", ("/sys/fs/cgroup/memory", "/")),
        (MOUNTS_V1, "v2", ("/sys/fs/cgroup/unified", "/")),
        (MOUNTS_IN_A_CONTAINER, "v1", ("/sys/fs/cgroup/memory", "/docker/x")),
        (MOUNTS_V2, "v2", ("/sys/fs/cgroup", "/../..")),
        (MOUNTS_V2, "v1", ("", "")),
        ("35 31 0:32 / /data rw - ext4 /dev/memory rw,memory\n", "v1", ("", "")),
        ("35 31 0:32 / /x rw - cgroup cgroup rw,xmemory\n", "v1", ("", "")),
        ("", "v1", ("", "")),
        ("- cgroup2 cgroup2 rw\n - cgroup2\ngarbage", "v2", ("", "")),
    ],
)
def test_where_the_memory_controller_is_mounted(text, version, found):
    assert memory_mount(text, version) == found


def test_the_mount_of_this_machine_holds_our_own_cgroup():
    """The two readings fit together: mount point and path lead to a folder that lists this process."""
    version, path = memory_cgroup(PROC.cgroup(os.getpid()))
    point, root = memory_mount(Path("/proc/self/mountinfo").read_text(), version)
    if not point or root != "/":
        pytest.skip("no view of the host's cgroups from here")
    assert str(os.getpid()) in Path(point, path.strip("/"), "cgroup.procs").read_text().split()


def test_nobody_has_no_counter():
    """A process that is gone, or one without a memory cgroup: nothing is claimed and nothing raised."""
    with Script("pass") as script:
        script.process.wait(30)
        counter = OomCounter(PROC, script.pid)
    assert (counter.fd, counter.take()) == (-1, False)
    counter.close()


LIMIT = 48 << 20
GREEDY = f"say('ready')\nhear()\nheld = bytearray(os.urandom(1 << 20)) * {4 * LIMIT >> 20}\nsay('never')"


@contextmanager
def memory_group() -> Iterator[Path]:
    """A memory cgroup of 48 MiB beneath our own, v1 or v2. Skips where none can be made."""
    version, path = memory_cgroup(PROC.cgroup(os.getpid()))
    point, root = memory_mount(Path("/proc/self/mountinfo").read_text(), version)
    base = Path(point, path.removeprefix(root if root != "/" else "").strip("/"))
    group = base / f"rankguard-test-{os.getpid()}"
    limit = {"v1": "memory.limit_in_bytes", "v2": "memory.max"}.get(version, "")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        if not limit or not (group / limit).exists():
            pytest.skip("the memory controller is not handed down here")
        (group / limit).write_text(str(LIMIT))
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            if (group / name).exists():
                (group / name).write_text(str(LIMIT) if "limit" in name else "0")
        yield group
    finally:
        if group.exists():
            eventually(lambda: not (group / "cgroup.procs").read_text(), "the cgroup empty")
            group.rmdir()


@pytest.mark.root
def test_a_kill_for_memory_is_counted_once():
    """The counter rises with a real kill by the kernel, explains exactly one death each, and outlives the cgroup."""
    with memory_group() as group:
        counters = []
        try:
            with Script(GREEDY) as first, Script(GREEDY) as second:
                for script in (first, second):
                    script.heard()
                    (group / "cgroup.procs").write_text(str(script.pid))
                    counters.append(OomCounter(PROC, script.pid))
                    assert counters[-1].fd >= 0
                    assert not counters[-1].take()
                first.tell()
                assert first.process.wait(30) == -signal.SIGKILL
                assert [counters[0].take(), counters[0].take()] == [True, False]
                # Another's death for memory is counted in the same cgroup: a later one is told from the earlier.
                late = OomCounter(PROC, second.pid)
                counters.append(late)
                assert not late.take()
                second.tell()
                assert second.process.wait(30) == -signal.SIGKILL
                assert [counters[0].take(), counters[0].take()] == [True, False]
                assert [counters[1].take(), counters[1].take(), counters[1].take()] == [True, True, False]
                assert [late.take(), late.take()] == [True, False]
            eventually(lambda: not (group / "cgroup.procs").read_text(), "the cgroup empty")
            group.rmdir()
            assert not any(counter.take() for counter in counters)
        finally:
            for counter in counters:
                counter.close()
                counter.close()
        assert [counter.fd for counter in counters] == [-1] * 3


@pytest.mark.root
def test_a_kill_by_hand_is_no_kill_for_memory():
    """SIGKILL in the same cgroup leaves the counter where it was."""
    with memory_group() as group, Script(GREEDY) as script:
        script.heard()
        (group / "cgroup.procs").write_text(str(script.pid))
        counter = OomCounter(PROC, script.pid)
        try:
            script.process.kill()
            script.process.wait(30)
            assert counter.fd >= 0
            assert not counter.take()
            assert counter.limit == LIMIT
        finally:
            counter.close()


@pytest.mark.root
def test_a_cgroup_without_a_limit_has_none():
    """Neither the word nor the number that the kernel has for it is taken for a size."""
    with memory_group() as group, Script("say('ready'); hear()") as script:
        script.heard()
        for name, no_limit in (
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", "-1"),
            ("memory.max", "max"),
        ):
            if (group / name).exists():
                (group / name).write_text(no_limit)
        (group / "cgroup.procs").write_text(str(script.pid))
        counter = OomCounter(PROC, script.pid)
        try:
            assert counter.fd >= 0
            assert counter.limit is None
        finally:
            counter.close()


IN_ITS_ROOT = "os.chroot(sys.argv[1]); os.chdir('/'); say('ready'); hear()"
EVENTS = ("memory.oom_control", "memory.events")


@contextmanager
def counter_of_another_container(folder: Path, root: Path, seen: int | None = None) -> Iterator[OomCounter]:
    """The counter of a process with this root, for one who has no view of the host's cgroups."""
    with Script(IN_ITS_ROOT, str(root)) as script:
        script.heard()
        (folder / "self").mkdir(parents=True)
        (folder / "self" / "mountinfo").touch()
        (folder / "self" / "fd").symlink_to("/proc/self/fd")
        (folder / str(script.pid)).symlink_to(f"/proc/{script.pid}")
        counter = OomCounter(Proc(str(folder)), script.pid, seen)
        try:
            yield counter
        finally:
            counter.close()


@pytest.mark.root
def test_a_counter_in_the_targets_root(tmp_path):
    """A container shows its own cgroup at the top of its mount, with its limit."""
    base = tmp_path / "root" / "sys" / "fs" / "cgroup"
    base.mkdir(parents=True)
    for name in EVENTS:
        (base / name).write_text("oom_kill 7\n")
    for name in ("memory.limit_in_bytes", "memory.max"):
        (base / name).write_text(f"{LIMIT}\n")
    with counter_of_another_container(tmp_path / "proc", tmp_path / "root") as counter:
        assert (counter.count(), counter.seen, counter.limit) == (7, 7, LIMIT)


@pytest.mark.root
@pytest.mark.parametrize("link", ["the file", "a folder", "the limit"])
def test_a_link_in_the_targets_root_leads_nowhere(tmp_path, link):
    """Its root is hostile: what a link there leads to is not taken for its cgroup's."""
    ours = tmp_path / "ours"
    ours.mkdir()
    base = tmp_path / "root" / "sys" / "fs" / "cgroup"
    for name in (*EVENTS, "memory.limit_in_bytes", "memory.max"):
        (ours / name).write_text("oom_kill 7\n" if name in EVENTS else f"{LIMIT}\n")
        if link != "a folder":
            base.mkdir(parents=True, exist_ok=True)
            (base / name).symlink_to(ours / name)
        if link == "the limit" and name in EVENTS:
            (base / name).unlink()
            (base / name).write_text("oom_kill 2\n")
    if link == "a folder":
        base.parent.mkdir(parents=True)
        base.symlink_to(ours)
    with counter_of_another_container(tmp_path / "proc", tmp_path / "root") as counter:
        assert (counter.count(), counter.limit) == (2 if link == "the limit" else None, None)


@pytest.mark.root
def test_a_cgroup_that_was_made_anew(tmp_path):
    """It counts from 0: what an earlier guard had given away of the one before hides no kill in it."""
    events = tmp_path / "root" / "sys" / "fs" / "cgroup"
    events.mkdir(parents=True)
    for name in EVENTS:
        (events / name).write_text("oom_kill 0\n")
    with counter_of_another_container(tmp_path / "proc", tmp_path / "root", seen=3) as counter:
        for name in EVENTS:
            (events / name).write_text("oom_kill 1\n")
        assert [counter.take(), counter.take()] == [True, False]
