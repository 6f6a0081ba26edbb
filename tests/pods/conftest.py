"""Real pods, where this machine can have them; CI must."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prepare
import pytest
from podman import Podman, image_name
from pods import Pod

sys.path.append(str(Path(__file__).resolve().parents[1] / "manifests"))  # what makes a manifest playable is there


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman with the image of this tree."""
    why = prepare.trouble()
    if not why and prepare.missing():
        why = f"{', '.join(prepare.missing())} missing: run `make pods`"
    if why:
        _cannot(why)
    found = Podman()
    try:
        found.share()
        if not found.has_image(image_name()):
            _cannot("the image of this tree was not built: run `make pods`")
        yield found
    finally:
        found.close()


@pytest.fixture
def play(podman: Podman, tmp_path: Path) -> Callable[[dict[str, Any]], Pod]:
    """Play a pod: `with play(spec) as pod:`."""
    return lambda spec: Pod(podman, spec, tmp_path)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """The folder of the node that is the dump volume."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    return folder


def _cannot(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, as an emptyDir of medium Memory is one."""
    folder = Path(tempfile.mkdtemp(prefix="rankguard-pods-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
