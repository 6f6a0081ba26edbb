"""The sidecar's OpenAPI document is true."""

from __future__ import annotations

import pytest
from openapi_fuzz import SECONDS, fuzz, odd_folder
from web_harness import rank, web_process


@pytest.mark.timeout(SECONDS + 60)
def test_the_sidecar_s_port_is_as_its_document_says(tmp_path):
    """Whatever is asked: no answer that is not described, nothing bad that is let through, nothing good refused."""
    (tmp_path / "dumps").mkdir()
    with web_process(odd_folder(tmp_path / "dumps")) as web:
        guard = web.guard()
        guard.state([rank("TP0"), rank("TP1", up=False)], expected=2)
        guard.settled()
        paths = [row["path"] for row in web.api("incidents").json()["incidents"]]
        fuzz(tmp_path, web.api("openapi.json").json(), web.port("api_listen"), paths)
