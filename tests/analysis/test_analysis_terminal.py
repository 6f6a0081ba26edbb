"""The story of an incident in a terminal: the stacks of real ranks, and whatever else may lie in their place."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from dump_folders import incident, put, rewrite
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import case, explained

from sidecar.commands.incident_stacks import stacks_of
from sidecar.dumps.opening import top
from sidecar.dumps.stacks import FILE, snapshots_of
from sidecar.recorder.analysis import rendering
from sidecar.recorder.analysis.stacks import Dump, merge


def show(folder: Path, *more: str) -> str:
    argv = [sys.executable, "-m", "sidecar", "incidents", "show", "latest", "--dump-dir", str(folder), *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def written(folder: Path, name: str) -> Path:
    """An incident whose stacks are those of a recorded case."""
    home = put(folder, incident(1))
    finding, merged = explained(case(name))
    verdict = {"sentence": finding.sentence, "confidence": finding.confidence.value, "reasons": list(finding.reasons),
               "apart": list(finding.apart)}  # fmt: skip
    artifacts = [{"kind": "pyspy_json", "rank": f"TP{n}", "status": "captured", "bytes": 1024, "seconds": 0.1 * n,
                  "path": f"pyspy/TP{n}.json"} for n in range(8)]  # fmt: skip
    steps = [{"event": "captured", "ms": 10.0 + n, "detail": f"pyspy_json TP{n}: captured"} for n in range(8)]
    steps = [{"event": "died", "ms": 0.0, "detail": "TP3"}, *steps, {"event": "gone", "ms": 90.0, "detail": "all"}]
    rewrite(home, verdict=verdict, artifacts=artifacts, timeline=steps, summary="The engine is stuck.")
    stacks(home).write_text(json.dumps(rendering.document(merged, [])))
    return home


def stacks(home: Path) -> Path:
    (home / FILE).parent.mkdir(exist_ok=True)
    return home / FILE


def test_the_story_is_told_from_the_sentence_to_the_artifacts(tmp_path: Path) -> None:
    """A rank that waits for a lock while two wait for it: who is apart is marked, where it stood in both snapshots and
    that nobody moved is said; what is alike for many ranks is one line."""
    written(tmp_path, "lock")
    page = show(tmp_path)
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert lines[0].startswith("2 of 3 ranks wait in all_reduce; TP2 is in scenes.wait_for_a_lock, not moving for ")
    assert lines[0].endswith("(confidence: high)")
    assert lines[1] == "The engine is stuck."
    titles = ["Because", "Failures", "Timeline", "Stacks, first snapshot, main threads, the outermost call first",
              "Apart", "Between the two snapshots", "Artifacts"]  # fmt: skip
    places = [lines.index(title) for title in titles]
    assert places == sorted(places)
    apart = next(line for line in lines if line.startswith("wait_for_a_lock ("))
    assert apart.endswith("TP2 <- apart")
    assert any(line.startswith("all_reduce (") and line.endswith("TP0-1 | TP2 missing") for line in lines)
    said = lines[lines.index("Apart") + 1]
    assert said.startswith("TP2: wait_for_a_lock (scenes.py:")
    assert said.endswith("(first snapshot, second snapshot)")
    assert lines[lines.index("Between the two snapshots") + 1] == "at the same line: TP0-2"
    assert "+10.0 captured pyspy_json of 8: captured" in lines
    assert "pyspy_json TP0-7 captured 8.0 KiB 700 ms pyspy/*.json" in lines


def test_who_holds_the_gil_and_who_moved(tmp_path: Path) -> None:
    written(tmp_path / "held", "gil-held-busy")
    held = show(tmp_path / "held").splitlines()
    assert any(line.split()[:2] == ["TP1", "MainThread"] for line in held[held.index("Holding the GIL") + 1 :])
    written(tmp_path / "moved", "healthy-fast")
    moved = show(tmp_path / "moved").splitlines()
    assert moved[moved.index("Between the two snapshots") + 1].strip() == "elsewhere: TP0-2"


def test_a_long_tree_is_cut_and_who_is_apart_still_shown(tmp_path: Path) -> None:
    frames = [{"name": f"f{n}", "filename": f"/srv/{n}.py", "line": n} for n in range(300)]
    dumps = [Dump(f"TP{rank}", 1, [{"os_thread_id": 1, "frames": [
        {"name": "late" if rank == 5 else "all_reduce", "filename": "/srv/x.py", "line": 1}, *frames,
    ]}]) for rank in range(8)]  # fmt: skip
    home = put(tmp_path, incident(1))
    rewrite(home, verdict={"sentence": "So it was.", "apart": ["TP5"]})
    stacks(home).write_text(json.dumps(rendering.document([("first snapshot", merge(dumps, "vllm"))], [])))
    lines = [" ".join(line.split()) for line in show(tmp_path).splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("Stacks, "))
    tree = lines[begin + 1 : lines.index("", begin)]
    assert len(tree) < 60
    assert "late (srv/x.py:1) TP5 <- apart" in tree
    assert tree[-1] == f"… {302 - len(tree) + 2} more calls are in analysis/stacks.txt"


def test_an_incident_without_an_analysis_says_so_in_one_line(tmp_path: Path) -> None:
    put(tmp_path, incident(1))
    page = show(tmp_path).splitlines()
    assert page[page.index("Stacks") + 1].strip().startswith("there is no analysis: ")
    assert page[page.index("Stacks") + 2] == ""


@pytest.mark.parametrize("what", ["link", "fifo", "huge", "half", "many", "ranks", "other", "folder"])
def test_what_lies_in_the_place_of_the_stacks_harms_nothing(tmp_path: Path, what: str) -> None:
    """A link out, a pipe, a gigabyte, half of a file, a million lists, more ranks than can be (300,000 in as many sets
    would take 10 GiB): one line, and the rest of the page is there."""
    home = written(tmp_path / "dumps", "lock")
    whole = stacks(home).read_text()
    stacks(home).unlink()
    if what == "link":
        outside = tmp_path / "outside.json"
        outside.write_text(whole)
        stacks(home).symlink_to(outside)
    elif what == "fifo":
        os.mkfifo(stacks(home))
    elif what == "folder":
        stacks(home).mkdir()
    else:
        ranks = {"ranks": [""] * 5_000, "sets": [[4_999]]}
        content = {
            "huge": "", "half": whole[:-100], "many": f"[{'[],' * 1_000_000}[]]", "other": "[]",
            "ranks": json.dumps({"snapshots": [ranks]}, separators=(",", ":")),
        }[what]  # fmt: skip
        stacks(home).write_text(content)
        if what == "huge":
            os.truncate(stacks(home), 1 << 30)
    page = show(tmp_path / "dumps").splitlines()
    assert page[page.index("Stacks") + 1].strip().startswith("analysis/stacks.json: ")
    assert "Artifacts" in page
    assert not any("wait_for_a_lock (" in line for line in page[page.index("Stacks") :])


KEYS = (
    *("ranks", "sets", "trees", "nodes", "threads", "gil", "places", "name", "main", "thread", "parent", "set"),
    *("function", "file", "lines", "ends", "dropped", "rank", "place"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\x1b[31m\n\u202e"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=30,
)
SNAPSHOT = rendering.document(explained(case("gil-held-busy"))[1], [])["snapshots"][1]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(list(SNAPSHOT)), anything), anything)
def test_any_stacks_can_be_shown(tmp_path_factory: Any, changes: dict[str, Any], more: Any) -> None:
    """Whatever the values are: what is shown is printable, and nothing raises."""
    folder = tmp_path_factory.mktemp("dump")
    home = put(folder, incident(1))
    stacks(home).write_text(json.dumps({"snapshots": [SNAPSHOT | changes, more, {"name": "second", **changes}]}))
    with top(str(folder)) as root:
        snapshots = snapshots_of(root, home.name)
    for width in (20, 80, 10_000):
        for title, lines in stacks_of(snapshots, ("TP1", "\x1b"), width):
            assert isinstance(title, str)
            assert all(line.plain.isprintable() for line in lines)


def test_a_bundle_tells_a_person_what_it_is(tmp_path: Path) -> None:
    """The sentence, every file with its size and checksum; no name in it can write a line of its own."""
    home = written(tmp_path, "lock")
    (home / "evil\n  1  abc  other").write_text("x")
    argv = [sys.executable, "-m", "sidecar", "incidents", "bundle", "latest", "--dump-dir", str(tmp_path), "-o", "-"]
    data = subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        index = json.loads(archive.extractfile(f"{home.name}/index.json").read())
        readme = archive.extractfile(f"{home.name}/README.txt").read().decode()
    assert index["sentence"].startswith("2 of 3 ranks wait in all_reduce")
    assert index["sentence"] in readme.splitlines()
    for row in index["files"]:
        assert sum(row["sha256"] in line for line in readme.splitlines()) == 1
    assert not any(line.strip().startswith("1  abc") for line in readme.splitlines())
