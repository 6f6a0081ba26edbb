"""These tests need PyTorch, which the usual environment does not have: `make test-torch`."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    try:
        version("torch")  # not by an import: a folder of this name would do for that
    except PackageNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("CI has to run these tests with PyTorch")
        pytest.skip("needs PyTorch; make test-torch has it")
