"""The viewer's OpenAPI document is true, with the token and with what --write allows."""

from __future__ import annotations

import pytest
from openapi_fuzz import SECONDS, fuzz, odd_folder
from view_rig import Viewer

TOKEN = "a-token"


@pytest.mark.timeout(SECONDS + 60)
def test_the_viewer_s_port_is_as_its_document_says(tmp_path):
    """Whatever is asked, removing and pinning too: no answer that is not described, and nobody without the token."""
    pod = tmp_path / "volume" / "prod" / "llm-0"
    pod.mkdir(parents=True)
    odd_folder(pod)
    (tmp_path / "token").write_text(TOKEN)
    with Viewer(tmp_path / "volume", "--write", "--api-token-file", str(tmp_path / "token"), token=TOKEN) as viewer:
        document = viewer.ask("/api/v1/openapi.json").json()
        paths = [row["path"] for row in viewer.rows()]
        fuzz(tmp_path, document, viewer.api_port, paths, "--header", f"Authorization: Bearer {TOKEN}")
