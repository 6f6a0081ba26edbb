"""What all tests share. `sidecar_process` beside this file runs a real Rankguard."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding: what an example may take is the test's own time limit. In CI the examples are the same
# each time, so that what is red there is red for a change; by hand they are new ones. There are few of them, since all
# tests are run often; `pytest --hypothesis-profile thorough` looks at many.
_NO_CLOCK = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.register_profile("no_clock", _NO_CLOCK, max_examples=30)
settings.register_profile("thorough", _NO_CLOCK, max_examples=1000)
settings.load_profile("no_clock")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that takes most of a minute and comes last keeps everybody waiting, so those marked `long` come first.

    `--dist worksteal` cuts the list into as many parts as there are workers; each works from the front of its part, and
    who has nothing left takes from the end of another's. So the long ones are dealt out to the fronts of the parts. The
    rest stays in order: what shares a fixture of a module stays together.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("long")]
    rest = [item for item in items if not item.get_closest_marker("long")]
    dealt: list[pytest.Item] = []
    for worker in range(workers):
        first = long[worker::workers]
        size = (len(items) - len(dealt)) // (workers - worker)
        room = max(0, size - len(first))
        dealt += first + rest[:room]
        del rest[:room]
    items[:] = dealt


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
