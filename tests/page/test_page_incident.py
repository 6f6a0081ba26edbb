"""One incident: everything that its view says is what its record and its files say."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Seen, run, settled
from conftest import TOKEN, Look, sign_in
from dump_folders import rewrite
from playwright.sync_api import Page, expect
from real_incidents import SECRETS, Volume
from view_rig import Viewer


@pytest.fixture(scope="module")
def long(look_long: Look, viewer: Viewer, volume: Volume) -> Seen:
    seen = look_long(f"http://127.0.0.1:{viewer.api_port}/#/incident/{volume.stall}", accept_downloads=True)
    settled(seen.page)
    return seen


@pytest.fixture
def stalled(long: Seen, pictured: Callable[[Seen], Seen]) -> Page:
    """The hang, with two snapshots: opened once, and each test finds its part of it."""
    return pictured(long).page


def opened(look: Look, viewer: Viewer, path: str) -> Page:
    return settled(look(f"http://127.0.0.1:{viewer.api_port}/#/incident/{path}").page)


@pytest.mark.parametrize("which", ["death", "stall", "memory"])
def test_the_sentence_comes_first(look: Look, viewer: Viewer, volume: Volume, which: str) -> None:
    """It is the heading; beside it how sure it is and why. One click away: the summary, each failure with its cause."""
    record = volume.record(volume.paths()[which])
    page = opened(look, viewer, volume.paths()[which])
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(record["verdict"]["sentence"])
    head = page.locator("main header")
    for words in (
        record["reason"],
        record["engine"],
        record["verdict"]["confidence"],
        *record["verdict"]["reasons"][:4],
    ):
        expect(head.get_by_text(words).first).to_be_visible()
    expect(head.get_by_text(record["summary"], exact=True)).not_to_be_visible()
    head.get_by_text("What became of it").click()
    for words in (record["summary"], record["signature"], *record["verdict"]["reasons"]):
        expect(head.get_by_text(words, exact=True).first).to_be_visible()
    for failure in record["failures"]:
        row = head.get_by_role("row").filter(has=page.get_by_role("rowheader", name=failure["rank"]))
        for value in (failure["role"], str(failure["pid"]), failure["cause"]):
            expect(row.first).to_contain_text(value)
    assert page.title().startswith(record["verdict"]["sentence"][:40])


def test_the_timeline_is_drawn_to_scale(stalled: Page, volume: Volume) -> None:
    """Where each moment stands is where its milliseconds are between two others; the table has every step."""
    steps = volume.record(volume.stall)["timeline"]
    wanted = {step["event"]: step["ms"] for step in steps if step["event"] in ("frozen", "killed", "gone", "opened")}
    section = stalled.locator("#timeline")
    marks = run(
        stalled,
        """[...document.querySelectorAll('#timeline svg.timeline g.moment')].map((g) =>
        [g.classList[1], Number(g.querySelector('line').getAttribute('x1'))])""",
    )
    at = dict(marks)
    assert set(wanted) <= set(at)
    zero = at["detected"]
    scale = (at["gone"] - zero) / wanted["gone"]
    for event, ms in wanted.items():
        assert at[event] - zero == pytest.approx(ms * scale, abs=1.0), event
    bars = stalled.locator("#timeline svg.timeline rect.bar").count()
    assert bars > 20
    section.get_by_text(f"All {len(steps)} steps as a table").click()
    rows = section.locator("tbody tr")
    expect(rows).to_have_count(len(steps))
    for step, row in zip(steps[:5], rows.all()[:5], strict=True):
        expect(row).to_contain_text(step["event"])
        expect(row).to_contain_text(f"{step['ms']:.1f}")


def test_the_tree_marks_who_stands_apart(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    """Every function of the main threads is in it; the branch of the outlier, and no other, is marked."""
    first = analysis(viewer, volume.stall)["snapshots"][0]
    stalled.get_by_role("tab", name="Tree").click()
    tree = stalled.get_by_role("tabpanel", name="Tree")
    shown = tree.locator("details.thread").first.inner_text()
    (main,) = [one for one in first["trees"] if one["main"]]
    for node in main["nodes"]:
        assert node["function"] in shown
    apart = tree.locator("li", has=stalled.get_by_text("apart").locator("visible=true")).last
    expect(apart).to_contain_text("TP3")
    expect(apart).to_contain_text("move_ready_grammar_requests")
    expect(apart).not_to_contain_text("flash_attn")
    expect(tree).to_contain_text("collective")
    expect(stalled.locator("#stacks")).to_contain_text("3 of 4 ranks")
    tree.get_by_role("searchbox").fill("grammar")
    expect(tree.get_by_role("status")).to_contain_text(re.compile(r"\d frames? found"))


def test_the_matrix_has_a_row_for_each_rank(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    """Ranks and their threads; the outlier comes first; a cell opens its whole stack."""
    first = analysis(viewer, volume.stall)["snapshots"][0]
    stalled.get_by_role("tab", name="Ranks × threads").click()
    rows = stalled.locator("table.matrix tbody tr")
    expect(rows).to_have_count(len(first["ranks"]))
    expect(rows.first).to_contain_text("TP3")
    expect(rows.first).to_contain_text("apart")
    letters = [rows.nth(n).locator(".letter").first.inner_text() for n in range(len(first["ranks"]))]
    assert letters.count("A") == 3
    rows.first.get_by_role("button").first.click()
    dialog = stalled.get_by_role("dialog")
    expect(dialog).to_contain_text("move_ready_grammar_requests")
    stalled.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_the_flame_graph_is_as_wide_as_its_threads(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    """A box's share of the width is its share of the main threads; Enter zooms, Escape comes back."""
    first = analysis(viewer, volume.stall)["snapshots"][0]
    (main,) = [one for one in first["trees"] if one["main"]]
    stalled.get_by_role("tab", name="Flame graph").click()
    boxes = stalled.locator(".flame .box")
    expect(boxes.first).to_be_visible()
    whole = stalled.locator(".flame").bounding_box()
    assert whole is not None
    total = sum(node["threads"] for node in main["nodes"] if node["parent"] == -1)
    for name in ("all_reduce", "move_ready_grammar_requests"):
        (node,) = [one for one in main["nodes"] if one["function"] == name]
        box = boxes.filter(has_text=name).first.bounding_box()
        assert box is not None
        assert box["width"] / whole["width"] == pytest.approx(node["threads"] / total, abs=0.02)
    odd = boxes.filter(has_text="move_ready_grammar_requests").first
    assert "apart" in str(odd.get_attribute("aria-label"))
    narrow = odd.bounding_box()
    odd.focus()
    stalled.keyboard.press("Enter")
    wide = boxes.filter(has_text="move_ready_grammar_requests").first.bounding_box()
    assert narrow is not None
    assert wide is not None
    assert wide["width"] > 2 * narrow["width"]
    stalled.keyboard.press("Escape")


def test_the_difference_says_who_moved(stalled: Page) -> None:
    """Between the two snapshots of a hang nobody did."""
    stalled.get_by_role("tab", name="Difference").click()
    panel = stalled.get_by_role("tabpanel", name="Difference")
    expect(panel.get_by_role("row").filter(has_text="TP3")).to_have_count(1)
    expect(panel).to_contain_text(re.compile(r"did not move"))


def test_after_a_death_there_is_no_difference(look: Look, viewer: Viewer, volume: Volume) -> None:
    """One snapshot is all that there is, and the page says why."""
    page = opened(look, viewer, volume.death)
    page.get_by_role("tab", name="Difference").click()
    expect(page.get_by_role("tabpanel", name="Difference")).to_contain_text("only one snapshot")


def test_the_plots_have_the_engines_numbers(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    """Running and queued requests, tokens a second and each rank's CPU; what they end with is the last scrape."""
    scrapes = [json.loads(line) for line in artifact(viewer, volume.stall, "metrics/engine.jsonl").splitlines()]
    last = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in scrapes[-1]["lines"]}
    section = stalled.locator("#metrics")
    for title in ("Requests", "Tokens", "CPU"):
        expect(section.locator("figcaption").filter(has_text=title).first).to_be_visible()
    table = section.locator("figure", has_text="Requests").first
    expect(table.get_by_role("row").filter(has_text="running")).to_contain_text(
        f"{last['sglang:num_running_reqs']:.0f}"
    )
    expect(table.get_by_role("row").filter(has_text="queued")).to_contain_text(f"{last['sglang:num_queue_reqs']:.0f}")
    points = run(
        stalled,
        """[...document.querySelectorAll('#metrics figure:first-of-type polyline')]
        .reduce((sum, line) => sum + line.getAttribute('points').split(' ').length, 0)""",
    )
    assert points > len(scrapes) / 2
    for rank in ("TP0", "TP3"):
        expect(section.locator("figure", has_text="CPU").first).to_contain_text(rank)


def test_the_processes_are_as_the_kernel_told(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    state = json.loads(artifact(viewer, volume.stall, "process/TP3.json"))
    row = stalled.locator("table.processes tr", has=stalled.get_by_role("rowheader", name="TP3"))
    for value in (str(state["pid"]), state["role"], state["wchan"], str(state["stat"]["threads"])):
        expect(row).to_contain_text(value)
    expect(row).to_contain_text("apart")


def test_each_file_has_its_size_and_checksum_and_is_downloaded(stalled: Page, viewer: Viewer, volume: Volume) -> None:
    """What the browser saves has the bytes of the record, one file and all of them in a bundle."""
    record = volume.record(volume.stall)
    there = [one for one in record["artifacts"] if one["path"]]
    files = stalled.locator("table.files")
    for one in there:
        row = files.locator("tr", has=stalled.get_by_role("rowheader", name=one["path"], exact=True))
        expect(row).to_contain_text(one["sha256"][:12])
        expect(row.get_by_title(f"{one['bytes']} bytes")).to_be_visible()
    wanted = next(one for one in there if one["kind"] == "pyspy_json" and one["rank"] == "TP3")
    with stalled.expect_download() as saving:
        files.get_by_role("link", name=f"Download {wanted['path']}", exact=True).click()
    assert hashlib.sha256(saving.value.path().read_bytes()).hexdigest() == wanted["sha256"]
    with stalled.expect_download() as saving:
        stalled.get_by_role("link", name="Download everything").click()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(saving.value.path().read_bytes()))) as bundle:
        sums = {name.partition("/")[2]: hashlib.sha256(_member(bundle, name)).hexdigest() for name in bundle.getnames()
                if bundle.getmember(name).isfile()}  # fmt: skip
    assert {one["path"]: one["sha256"] for one in there}.items() <= sums.items()
    assert saving.value.suggested_filename.endswith(".tar.gz")


def test_a_file_is_downloaded_by_who_is_signed_in(look: Look, writing: Viewer, volume: Volume) -> None:
    """A browser sends no bearer token with a download: the page gets a ticket for it."""
    page = look(f"http://127.0.0.1:{writing.api_port}/#/incident/{volume.memory}", expected=("status of 401",)).page
    sign_in(page)
    settled(page)
    one = next(one for one in volume.record(volume.memory)["artifacts"] if one["path"])
    with page.expect_download() as saving:
        page.get_by_role("link", name=f"Download {one['path']}", exact=True).click()
    assert hashlib.sha256(saving.value.path().read_bytes()).hexdigest() == one["sha256"]
    assert TOKEN not in saving.value.url


def test_the_text_for_an_issue_tells_the_story_and_no_secret(look: Look, viewer: Viewer, volume: Volume) -> None:
    """The ranks had an API key in their command line and a token in their environment; names stay at home too."""
    record = volume.record(volume.memory)
    page = opened(look, viewer, volume.memory)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy for an issue").click()
    dialog = page.get_by_role("dialog")
    area = dialog.get_by_role("textbox")
    expect(area).to_have_value(re.compile("load_batch"))
    dialog.get_by_role("button", name="Copy", exact=True).click()
    expect(dialog).to_contain_text("Copied.")
    copied = run(page, "navigator.clipboard.readText()")
    assert copied == area.input_value()
    assert record["verdict"]["sentence"].partition("(")[0] in copied
    for failure in record["failures"]:
        assert failure["cause"] in copied
    for secret in (*SECRETS, "--api-key", "HF_TOKEN", "embedder-0", "gpu-node-7", "staging"):
        assert secret not in copied
    assert not any(secret in page.content() for secret in SECRETS)


LEAVING = (
    "Set-Cookie: sid=s3cret; b=s3cret2", "jo.doe@mail.example.com",
    "GET https://h/x?v=1&sig=s3cret&X-Amz-Signature=s3cret3",
    "postgres://u:s3c/ret@h/db", "-----BEGIN RSA PRIVATE KEY----- s3cret -----END RSA PRIVATE KEY-----", "/home/jdoe/m",
    "npm_0123456789abcdefs3cret", "10.1.2.3", "fd00:10:244::7", "gpu-7.dc1.corp",
)  # fmt: skip


def test_what_leaves_the_house_is_masked_further(stalled: Page) -> None:
    """Beyond what the recorder masks: whose it is and where it runs. What a stack says stays as it is."""
    stack = "memcpy@@GLIBC_2.14 (libc.so.6), all_reduce (parallel_state.py:9), torch.distributed, 23:59:59.123"
    pieces = json.dumps([*LEAVING, stack])
    module = "import('/page/js/incident/copy_text.js')"
    shown = run(stalled, f"{module}.then(m => {pieces}.map(one => m.issueText({{record: {{summary: one}}}})))")
    for text, piece in zip(shown, LEAVING, strict=False):
        for word in ("s3c", "ret@", "doe", "10.1.2", "244", "dc1"):
            assert word not in text, piece
    plain = re.sub(r"[\\`]", "", shown[-1])
    assert all(word in plain for word in ("GLIBC_2.14", "parallel_state.py:9", "23:59:59.123"))


def test_one_that_is_still_written_is_followed(look: Look, volume: Volume, tmp_path: Path) -> None:
    """What comes appears without a click, but not under somebody who is at work: there it is offered."""
    home = tmp_path / volume.death
    shutil.copytree(volume.folder / volume.death, home)
    record = volume.record(volume.death)
    rewrite(home, sealed=False, verdict={}, artifacts=[], timeline=record["timeline"][:2])
    with Viewer(tmp_path) as viewer:
        page = opened(look, viewer, volume.death)
        expect(page.locator("#live")).to_have_text("live")
        page.locator("#timeline").get_by_text("All 2 steps as a table").click()
        rewrite(home, **record)
        expect(page.get_by_role("heading", level=1)).to_have_text(record["verdict"]["sentence"])
        expect(page.locator("main")).to_contain_text("It was sealed just now")
        expect(page.get_by_role("tab", name="Tree")).to_be_visible()
        expect(page.locator("#timeline tbody tr")).to_have_count(2)
        page.locator("#timeline").get_by_role("button", name="Show it").click()
        expect(page.locator("#timeline")).to_contain_text(f"All {len(record['timeline'])} steps as a table")
        expect(page.locator("#live")).to_have_text("")
        expect(page).to_have_title(re.compile(re.escape(record["verdict"]["sentence"][:40])))


def analysis(viewer: Viewer, path: str) -> dict[str, Any]:
    found = json.loads(artifact(viewer, path, "analysis/stacks.json"))
    assert isinstance(found, dict)
    return found


def artifact(viewer: Viewer, path: str, file: str) -> str:
    return viewer.incidents(f"/{path}/artifacts/{file}").text


def _member(bundle: tarfile.TarFile, name: str) -> bytes:
    file = bundle.extractfile(name)
    assert file is not None
    return file.read()
