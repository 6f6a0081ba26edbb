"""`rankguard view --write`: who has the token removes and pins, and nobody else."""

from __future__ import annotations

import pytest
from dump_folders import everything, incident, put
from view_rig import Viewer

TOKEN = "a-token"


@pytest.fixture
def volume(tmp_path):
    folder = tmp_path / "volume"
    folder.mkdir()
    (tmp_path / "token").write_text(TOKEN + "\n")
    return folder


def test_remove_and_pin(volume, tmp_path):
    """A removed incident is gone, a pinned one and one that may still be written to are not; a link goes itself."""
    pod = volume / "prod" / "llm-0"
    old, kept, young = put(pod, incident(5)), put(pod, incident(4)), put(pod, incident(0.1), sealed=False)
    outside = put(tmp_path / "outside", incident(3))
    (pod / outside.name).symlink_to(outside)
    with Viewer(volume, "--write", "--api-token-file", str(tmp_path / "token"), token=TOKEN) as viewer:

        def ask(method: str, home, more: str = ""):
            return viewer.ask(f"/api/v1/incidents/prod/llm-0/{home.name}{more}", method)

        refused = viewer.ask(f"/api/v1/incidents/prod/llm-0/{old.name}", "DELETE", headers={"authorization": ""})
        assert refused.status_code == 401
        assert ask("PUT", kept, "/pin").json() == {"pinned": True}
        assert ask("PUT", kept, "/pin").json() == {"pinned": True}  # again is no error
        assert [row["id"] for row in viewer.rows(pinned="true")] == [kept.name]
        assert (ask("DELETE", kept).status_code, kept.is_dir()) == (409, True)
        assert (ask("DELETE", young).status_code, young.is_dir()) == (409, True)
        assert ask("DELETE", old).json() == {"removed": f"prod/llm-0/{old.name}"}
        assert ask("DELETE", old).status_code == 404
        assert ask("DELETE", outside).status_code == 200
        assert ask("DELETE", kept, "/pin").json() == {"pinned": False}
        assert ask("DELETE", kept).status_code == 200
        assert [row["id"] for row in viewer.rows()] == [young.name]
    assert sorted(path.name for path in pod.iterdir()) == [young.name]
    assert len(everything(outside)) == 3
