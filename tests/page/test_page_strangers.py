"""Pages of other origins in the same browser, beside an open port-forward: they read nothing and do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import REBOUND, run
from conftest import Look
from life_parts import Ranks
from sidecar_process import Sidecar, eventually
from stranger import stranger
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
            api_port = int(ours.rpartition(":")[2])
            for host in ("127.0.0.1", "localhost"):
                page = look(f"http://{host}:{port}/", stranger=True).page
                learnt = run(page, f"reach('http://{host}:{api_port}', 'none')")
                assert len(learnt) > 30
                assert {way: said for way, said in learnt.items() if said} == {}
            assert sidecar.incidents() == [], sidecar.log()
            page = look(f"http://127.0.0.1:{api_port}/").page
            answer = run(page, "fetch('api/v1/captures', {method: 'POST'}).then(r => r.status)")
            assert answer in (200, 201, 202), sidecar.log()
            eventually(sidecar.incidents, "the page's own capture")
            assert len(sidecar.incidents()) == 1


def test_another_page_changes_nothing_with_write(look: Look, writing: Viewer) -> None:
    """On a viewer with --write, also while somebody is signed in in the same browser."""
    before = writing.rows()
    path = before[0]["path"]
    with stranger() as port:
        page = look(f"http://127.0.0.1:{port}/", stranger=True).page
        run(page, f"sessionStorage.setItem('rankguard-token', {json.dumps('x')})")
        learnt = run(page, f"reach('http://127.0.0.1:{writing.api_port}', {json.dumps(path)})")
    assert {way: said for way, said in learnt.items() if said} == {}
    assert writing.rows() == before


@pytest.mark.parametrize("path", ["/", "/api/v1/incidents", "/api/v1/about", "/page/js/main.js"])
def test_a_name_that_leads_here_is_refused(look: Look, viewer: Viewer, path: str) -> None:
    """DNS rebinding: for the browser such a page is of the same origin, and so only the Host tells."""
    page = look(f"http://{REBOUND}:{viewer.api_port}{path}", stranger=True).page
    status = run(page, f"fetch({json.dumps(path)}).then(r => r.status)")
    assert status == 403
    assert "llama" not in page.content()


def test_the_page_is_in_no_frame(look: Look, viewer: Viewer) -> None:
    """So that nobody is led to click in it."""
    with stranger() as port:
        page = look(f"http://127.0.0.1:{port}/", stranger=True).page
        run(page, f"loaded(made('iframe', {{src: 'http://127.0.0.1:{viewer.api_port}/'}}))")
        inner = [frame for frame in page.frames if frame != page.main_frame]
        assert len(inner) == 1
        assert inner[0].locator("header").count() == 0
