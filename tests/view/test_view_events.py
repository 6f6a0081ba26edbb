"""The viewer's news: incidents of every pod, and its end while somebody listens."""

from __future__ import annotations

import pytest
from dump_folders import incident, put
from event_stream import EventStream
from view_rig import Viewer

from sidecar.version import VERSION


def test_the_news_of_a_whole_volume(tmp_path):
    """A removal by this very viewer is news too. There is no engine here, so nothing is said of one."""
    volume = tmp_path / "volume"
    old = put(volume / "prod" / "llm-0", incident(5))
    (tmp_path / "token").write_text("right")
    with Viewer(volume, "--write", "--api-token-file", str(tmp_path / "token"), token="right") as viewer:
        about = viewer.ask("/api/v1/about").json()
        assert about == {
            "kind": "viewer", "version": VERSION, "write": True, "dump_dir": str(volume), "pod": None,
        }  # fmt: skip
        assert viewer.ask("/").headers["content-type"].startswith("text/html")
        with EventStream(viewer.api_port, authorization="Bearer right") as stream:
            assert stream.next() == ("hello", {})
            home = put(volume / "test" / "llm-1", incident(1, "TP5", pod="test/llm-1"))
            event, row = stream.next()
            assert (event, row) == ("incident", viewer.rows(namespace="test")[0])
            assert row["path"] == f"test/llm-1/{home.name}"
            assert (
                viewer.incidents(
                    f"/prod/llm-0/{old.name}",
                ).status_code
                == 200
            )
            assert viewer.ask(f"/api/v1/incidents/prod/llm-0/{old.name}", "DELETE").status_code == 200
            assert stream.next() == ("removed", {"path": f"prod/llm-0/{old.name}"})
            assert viewer.end() == 0
            assert stream.next() is None
        assert not [line for line in viewer.lines if "Cancel" in line["event"]]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_ticket_writes_nothing(tmp_path, method):
    home = put(tmp_path / "volume" / "prod" / "llm-0", incident(5))
    (tmp_path / "token").write_text("right")
    with Viewer(tmp_path / "volume", "--write", "--api-token-file", str(tmp_path / "token"), token="right") as viewer:
        one = f"/api/v1/incidents/prod/llm-0/{home.name}"
        ticket = viewer.ask("/api/v1/tickets", "POST", json={"path": f"{one}/bundle"}).json()["ticket"]
        assert viewer.ask(f"{one}/bundle?ticket={ticket}", headers={"authorization": ""}).status_code == 200
        for more in ("", "/pin", "/bundle"):
            refused = viewer.ask(f"{one}{more}?ticket={ticket}", method, headers={"authorization": ""})
            assert refused.status_code == 401
        assert home.is_dir()
