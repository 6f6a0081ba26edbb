"""Prometheus' own programs, where this machine can have them; CI must."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import prepare_prometheus
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "view"))  # what runs a viewer is there


@pytest.fixture(scope="session")
def programs() -> prepare_prometheus.Programs:
    """Debian's prometheus and promtool."""
    found = prepare_prometheus.programs()
    if found is not None:
        return found
    why = prepare_prometheus.trouble()
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
