"""Where the kubelet's own probe stops the engine: found in half of that time, captured in most of the other half."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.progress import Limits, hurried, hurried_period
from sidecar.settings import Settings

SECONDS = st.floats(1.0, 86400.0)


@given(SECONDS, SECONDS, SECONDS, st.floats(0.1, 3600.0), st.integers(1, 20))
def test_all_of_it_fits_into_the_window(
    window: float, stall_timeout: float, stall_limit: float, period: float, failures: int
) -> None:
    """Whatever the settings are: a verdict without evidence, and the evidence after it, come before the kubelet."""
    asked = hurried_period(period, failures, window)
    limits = Limits(stall_timeout, stall_limit, failures, asked)
    hurry = hurried(limits, window)
    settings = Settings(target_probe_window=window)
    assert asked <= period
    assert hurry.stall_timeout <= stall_timeout
    assert failures * asked <= window / 2
    assert max(hurry.stall_timeout, hurry.stall_limit, 1.5 * asked) <= max(window / 2, 1.5 * asked)
    assert window / 2 + settings.liveness_seconds < window


@pytest.mark.parametrize(("window", "seconds"), [(None, 60.0), (1000.0, 60.0), (30.0, 12.0)])
def test_the_time_for_evidence(window: float | None, seconds: float) -> None:
    """--liveness-deadline, where the kubelet leaves that much."""
    assert Settings(target_probe_window=window).liveness_seconds == seconds
