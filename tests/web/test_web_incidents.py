"""The incidents in the sidecar's own API: the pod's folder, through the same gate as the rest."""

from __future__ import annotations

from dump_folders import STACK, incident, put
from web_harness import wait_for

from sidecar.web.keeper import counters_path


def test_the_sidecar_shows_its_own_incidents(web):
    """List, record, file and bundle; read-only; refused to strangers like everything on this port."""
    home = put(web.folder, incident(1))
    (row,) = wait_for(lambda: web.api("incidents").json()["incidents"], "the list")
    assert (row["path"], row["rank"], row["sealed"]) == (home.name, "TP3", True)
    assert web.api(f"incidents/{home.name}").json()["failures"][0]["rank"] == "TP3"
    part = web.api(f"incidents/{home.name}/artifacts/pyspy/TP0.json", headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, STACK[1:4])
    assert web.api(f"incidents/{home.name}/bundle").content[:2] == b"\x1f\x8b"
    assert web.api(f"incidents/{home.name}", "DELETE").status_code == 405
    assert web.api("incidents", headers={"host": "evil.example"}).status_code == 403
    assert web.api(f"incidents/{home.name}/artifacts/../../../etc/passwd").status_code == 404


def test_a_sidecar_that_has_counted_nothing_says_that_too(web):
    """Its counters are on the volume from the start, all 0: a sum over the volume must be able to rise."""
    file = web.folder / counters_path(".", web.settings.pod_uid)
    wait_for(file.exists, "the counters' file")
    assert b'[["sigkill"],0]' in file.read_bytes()
