"""Pages of other origins in the same browser, beside an open port-forward: they read nothing and do nothing."""

from __future__ import annotations

import json
from pathlib import Path

from browser import REBOUND, run
from conftest import Look
from life_parts import Ranks
from real_incidents import Volume
from sidecar_process import Sidecar, eventually
from stranger import PAGE, stranger
from view_rig import Viewer


def test_another_page_learns_and_changes_nothing(look: Look, tmp_path: Path) -> None:
    """Whatever way a browser offers, from another port of the same host: no answer is readable, nothing is captured.

    The page itself may: what it asks for without a token is done.
    """
    with Ranks(1) as ranks:
        ranks.start()
        with Sidecar(tmp_path / "dumps", *ranks.flags, "--api-listen", "127.0.0.1:0") as sidecar, stranger() as port:
            sidecar.wait_serving()
            ours = "http://" + sidecar.wait("listening", process="supervisor")["api_listen"]
            page = look(f"http://127.0.0.1:{port}/", stranger=True).page
            learnt = run(page, f"reach('{ours}', 'none')")
            assert len(learnt) > 30
            assert {way: said for way, said in learnt.items() if said} == {}
            assert sidecar.incidents() == [], sidecar.log()
            page = look(f"{ours}/").page
            answer = run(page, "fetch('api/v1/captures', {method: 'POST'}).then(r => r.status)")
            assert answer in (200, 201, 202), sidecar.log()
            eventually(sidecar.incidents, "the page's own capture")
            assert len(sidecar.incidents()) == 1


def test_another_page_changes_nothing_with_write(look: Look, writing: Viewer) -> None:
    """On a viewer with --write, from another host too: `localhost` is no site of 127.0.0.1's."""
    before = writing.rows()
    path = before[0]["path"]
    with stranger() as port:
        page = look(f"http://localhost:{port}/", stranger=True).page
        learnt = run(page, f"reach('http://127.0.0.1:{writing.api_port}', {json.dumps(path)})")
    assert {way: said for way, said in learnt.items() if said} == {}
    assert writing.rows() == before


def test_a_name_that_leads_here_is_refused(look: Look, viewer: Viewer, volume: Volume) -> None:
    """DNS rebinding: a page from elsewhere whose name then leads to this port. For the browser both are of one origin,
    so that it may read every answer; only the Host tells."""
    name = f"http://{REBOUND}:{viewer.api_port}"
    page = look("about:blank", stranger=True).page
    page.route(f"{name}/", lambda route: route.fulfill(body=PAGE, content_type="text/html"), times=1)
    page.goto(f"{name}/")
    learnt = run(page, f"reach('{name}', {json.dumps(volume.death)})")
    read = {way: said for way, said in learnt.items() if said and not said.startswith("403 ")}
    assert read == {}
    assert sum(said.startswith("403 ") for said in learnt.values()) > 10
    for secret in ("llama", volume.death, "sigkill"):
        assert secret not in json.dumps(learnt).lower().replace(f"incidents/{volume.death.lower()}", "")
    answer = page.goto(f"{name}/")
    assert answer is not None
    assert answer.status == 403


def test_the_page_is_in_no_frame(look: Look, viewer: Viewer) -> None:
    """So that nobody is led to click in it."""
    with stranger() as port:
        page = look(f"http://127.0.0.1:{port}/", stranger=True).page
        run(page, f"loaded(made('iframe', {{src: 'http://127.0.0.1:{viewer.api_port}/'}}))")
        inner = [frame for frame in page.frames if frame != page.main_frame]
        assert len(inner) == 1
        assert inner[0].locator("header").count() == 0
