"""An API server and its folder, for tests of a webhook in a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ApiServer


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    folder = tmp_path / "service-account"
    folder.mkdir()
    server = ApiServer(folder)
    try:
        yield server
    finally:
        server.close()
