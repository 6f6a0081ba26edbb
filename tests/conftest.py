"""What all tests share. `sidecar_process` beside this file runs a real Rankguard."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding: what an example may take is the test's own time limit. In CI the examples are the same
# each time, so that what is red there is red for a change; by hand they are new ones.
settings.register_profile(
    "no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("no_clock")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need root say so, and are skipped with a reason where there is none; CI runs as root."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI has to run these tests as root")
        pytest.skip("needs root")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that leaves descriptors open is named long before `select` refuses those above 1023 in all that follow."""
    before = item.config.stash.get(_HELD, 0)
    held = item.config.stash[_HELD] = len(os.listdir("/proc/self/fd"))
    if held - before > 100 and before:
        pytest.fail(f"{held - before} descriptors were left open")


_HELD = pytest.StashKey[int]()
