"""Recorders and ranks of one test, ended by id whatever the test does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from recorder_rig import Ranks, Rig, Start


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a recorder; its dump folder is `tmp_path/dumps` unless told otherwise."""
    rigs: list[Rig] = []

    def begin(dump_dir: Path | None = None, **settings: object) -> Rig:
        rig = Rig(dump_dir or tmp_path / "dumps", **settings)
        rigs.append(rig)
        return rig

    try:
        yield begin
    finally:
        for rig in rigs:
            rig.close()
