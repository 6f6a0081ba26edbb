"""The soak itself, for a few failures: what `make soak` does for ten minutes must go on working."""

from __future__ import annotations

from pathlib import Path

import pytest
from podman import Podman
from soak import report, soak

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(400)]


def test_a_few_failures(podman: Podman, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four failures of four kinds: each with one incident, and the accounts add up."""
    accounts = soak(podman, tmp_path / "pod", seconds=3600, looks="vllm", seed=4, most=4)
    assert report([accounts]) == 0, capsys.readouterr().out
    assert sum(accounts.done.values()) == 4
    assert len(accounts.done) == 4
    assert sum(accounts.incidents.values()) == 4
