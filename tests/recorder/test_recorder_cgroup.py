"""A cgroup's numbers, from trees as a container and a host show them, and from this process's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.recorder.capture.cgroup_numbers import cgroup_numbers

V1 = "8:memory:/kubepods/pod1/c1\n4:cpu,cpuacct:/kubepods/pod1/c1\n1:name=systemd:/kubepods/pod1/c1\n"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A folder like /proc/PID, and what it shows as /sys/fs/cgroup."""
    mount = tmp_path / "root" / "sys" / "fs" / "cgroup"
    mount.mkdir(parents=True)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd, mount
    os.close(fd)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_as_a_container_sees_it(tree):
    fd, mount = tree
    put(mount / "memory.current", "1073741824\n")
    put(mount / "memory.events", "oom 1\noom_kill 1\n")
    put(mount / "memory.stat", "anon 1\n")
    assert cgroup_numbers(fd, "0::/\n") == {"memory.current": "1073741824", "memory.events": "oom 1\noom_kill 1"}


def test_by_its_path_on_a_host(tree):
    """The whole machine's numbers are not taken for the cgroup's."""
    fd, mount = tree
    put(mount / "cpu.stat", "usage_usec 9\n")
    put(mount / "system.slice" / "engine" / "cpu.stat", "usage_usec 5\n")
    assert cgroup_numbers(fd, "0::/system.slice/engine\n") == {"cpu.stat": "usage_usec 5"}


def test_v1_in_a_container_and_on_a_host(tree):
    fd, mount = tree
    put(mount / "memory" / "memory.usage_in_bytes", "5\n")
    put(mount / "cpu,cpuacct" / "kubepods" / "pod1" / "c1" / "cpuacct.usage", "7\n")
    assert cgroup_numbers(fd, V1) == {"memory.usage_in_bytes": "5", "cpuacct.usage": "7"}


def test_nothing_outside_of_it_and_nothing_that_waits(tree, tmp_path):
    fd, mount = tree
    (tmp_path / "secret").write_text("7")
    (mount / "memory.max").symlink_to(tmp_path / "secret")
    os.mkfifo(mount / "memory.current")
    put(mount.parent / "cpu.stat", "outside")
    assert cgroup_numbers(fd, "0::/..\n") == {}


def test_this_process(tmp_path):
    fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = cgroup_numbers(fd, Path("/proc/self/cgroup").read_text())
    finally:
        os.close(fd)
    assert all(isinstance(value, str) for value in found.values())
    if Path("/sys/fs/cgroup/memory/memory.usage_in_bytes").exists():
        assert int(found["memory.usage_in_bytes"]) > 0
