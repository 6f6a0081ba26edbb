"""The incidents in the sidecar's own API: the pod's folder, through the same gate as the rest."""

from __future__ import annotations

import socket

import pytest
from dump_folders import STACK, incident, put
from hung_folder import hung
from web_harness import wait_for, web_process

from sidecar.dumps.catalog import Catalog
from sidecar.dumps.volume import Volume
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


def test_the_sidecar_says_what_it_keeps_and_leaves_that_on_the_volume(tmp_path):
    """Its own folder and its own limits; and whoever reads the whole volume is told the same of it."""
    folder = tmp_path / "prod" / "llm-0"
    folder.mkdir(parents=True)
    homes = [put(folder, incident(hours, pod="prod/llm-0")) for hours in (1, 2, 3)]
    pod = {"pod_namespace": "prod", "pod_name": "llm-0", "pod_uid": "uid-llm-0"}
    with web_process(folder, dump_max_incidents=2, **pod) as web:
        wait_for((folder / counters_path(".", "uid-llm-0")).exists, "the counters' file")
        (own,) = wait_for(lambda: (s := web.api("volume").json())["complete"] and s["pods"], "the whole folder", 60)
    assert (own["namespace"], own["pod"], own["incidents"], own["alive"]) == ("prod", "llm-0", 3, True)
    assert own["limits"]["max_incidents"] == 2
    assert [step["path"] for step in own["next"] if step["why"] == "number"] == [homes[2].name, homes[1].name]
    (row,) = Volume(str(tmp_path), Catalog(str(tmp_path))).look(600)["pods"]
    steps = [step | {"path": step["path"].removeprefix("prod/llm-0/"), "at": step["at"] and ""} for step in row["next"]]
    assert row | {"next": steps} == own | {"next": [step | {"at": step["at"] and ""} for step in own["next"]]}


@pytest.mark.root
def test_who_asks_for_a_volume_that_hangs_does_not_take_up_the_port(tmp_path):
    """However many asked for its state and left again, everything else is answered; and they are told in the end."""
    volume = tmp_path / "volume"
    volume.mkdir()
    with web_process(volume) as web:
        guard = web.guard()
        guard.settled()
        with hung(volume):
            for _ in range(150):  # more than the server has room for
                with socket.create_connection(("127.0.0.1", web.port("api_listen"))) as asking:
                    asking.sendall(b"GET /api/v1/volume HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: web.api("about").status_code == 200, "an answer that needs no volume", 60)
            assert web.api("volume").json() == {"error": "the volume does not answer; try again"}
        wait_for(lambda: web.api("volume").status_code == 200, "the volume", 60)
