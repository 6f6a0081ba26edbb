"""A real pids cgroup, that a Rankguard of a test starts in."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sidecar_process import eventually

PIDS = Path("/sys/fs/cgroup/pids")


@contextmanager
def process_limit() -> Iterator[Path]:
    """A pids cgroup, v1 or v2, with no limit yet. Skips where none can be made."""
    folder = (PIDS if PIDS.is_dir() else Path("/sys/fs/cgroup")) / f"rankguard-test-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if not (folder / "pids.max").exists():
            pytest.skip("there is no pids controller here")
        yield folder
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup empty")
        folder.rmdir()


def entering(cgroup: Path, at: Path) -> str:
    """A program that enters the cgroup and becomes our interpreter."""
    at.write_text(f"#!/bin/sh\necho $$ > '{cgroup}/cgroup.procs'\nexec '{sys.executable}' \"$@\"\n")
    at.chmod(0o755)
    return str(at)
