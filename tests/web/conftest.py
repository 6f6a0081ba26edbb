from collections.abc import Iterator
from pathlib import Path

import pytest
from web_harness import WebProcess, web_process


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebProcess]:
    """A process for one test."""
    with web_process(tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """A process for many tests; each takes a guard in an epoch of its own and looks only at what that one caused."""
    with web_process(tmp_path_factory.mktemp("shared")) as process:
        yield process
