"""The reader of a dump folder: names, files, pages, bundles, whatever is asked for and whatever lies there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import pytest
from dump_folders import STACK, incident, put, rewrite
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dumps.catalog import Catalog
from sidecar.dumps.files import files_of, open_file
from sidecar.dumps.folder import entry_at
from sidecar.dumps.names import above_and_id
from sidecar.dumps.opening import top
from sidecar.dumps.pins import pin
from sidecar.dumps.query import Query, query_from
from sidecar.dumps.removal import remove
from sidecar.errors import SettingError
from sidecar.recorder.store import Store

GOOD = incident(1).id
awkward = st.sampled_from(
    ["..", ".", "", "/", "up", "link", "secret", "prod", "llm-0", GOOD, "incident.json", "\0", "~"]
)
paths = st.lists(awkward | st.text(max_size=6), max_size=7).map("/".join)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    base = tmp_path_factory.mktemp("reading")
    (base / "secret").write_text("outside")
    folder = base / "volume"
    made = incident(1)
    home = put(folder / "prod" / "llm-0", made)
    (home / "link").symlink_to(base / "secret")
    (home / "up").symlink_to(base)
    (folder / "up").symlink_to(base)
    return folder, f"prod/llm-0/{home.name}"


@given(path=paths, file=paths)
def test_no_name_leads_outside(volume, path, file):
    """Whatever is asked for: a file of the one incident there is, or an error of a kind that the callers expect."""
    folder, there = volume
    with top(str(folder)) as root:
        for asked in (path, there):
            try:
                reading = open_file(root, asked, file)
            except (OSError, ValueError):
                continue
            assert asked == there
            assert reading.read(0, 10) != b"outside"[:10]
            reading.close()
        try:
            assert entry_at(root, path).path == there
        except (OSError, ValueError):
            assert path != there
        try:
            above_and_id(path)
        except ValueError:
            with pytest.raises(ValueError, match="no incident's path"):
                remove(str(folder), path)


@given(
    st.dictionaries(st.sampled_from(["limit", "before", "since", "until", "sealed", "q", "pod"]), st.text(max_size=9))
)
def test_any_query_is_answered_or_refused(volume, given):
    try:
        query = query_from(given)
    except SettingError:
        return
    assert Catalog(str(volume[0])).page(query).total == 1


def test_a_page_that_takes_too_long_says_how_far_it_came(tmp_path):
    """With no time at all each page looks at one incident; one after the other they still show everything."""
    for hours in (1, 2, 3):
        put(tmp_path, incident(hours))
    catalog = Catalog(str(tmp_path))
    found, before, pages = [], "", 0
    while before or not pages:
        page = catalog.page(Query(before=before), budget=-1.0)
        assert len(page.rows) == 1
        found += [row["id"] for row in page.rows]
        before, pages = page.following, pages + 1
        assert pages < 9
    assert found == [row["id"] for row in catalog.page(Query()).rows]
    assert pages == 3


def test_what_is_kept_in_memory_is_what_lies_there(tmp_path):
    """A record that is replaced, an incident that is pinned, one that comes and one that goes: each shows at once."""
    home = put(tmp_path, incident(2))
    then = home.stat().st_mtime - 60
    for path in (home, tmp_path):
        os.utime(path, (then, then))
    catalog = Catalog(str(tmp_path))

    def shown() -> list[tuple[str, bool]]:
        return [(row["summary"], row["pinned"]) for row in catalog.page(Query()).rows]

    (first,) = shown()
    assert shown() == [first]
    rewrite(home, summary="another")
    assert shown() == [("another", False)]
    with top(str(tmp_path)) as root:
        pin(root, home.name, True)
    assert shown() == [("another", True)]
    newer = put(tmp_path, incident(1))
    assert len(shown()) == 2
    remove(str(tmp_path), newer.name)
    assert shown() == [("another", True)]


def test_a_file_that_shrinks_makes_no_broken_bundle(tmp_path, monkeypatch):
    """The archive stays whole, and its index names the file that is not."""
    import io
    import json

    from sidecar.dumps.bundle import bundle

    home = put(tmp_path, incident(1))
    (home / "a").write_bytes(b"a" * 1_000_000)
    with top(str(tmp_path)) as root:
        pieces = bundle(root, home.name)
        data = next(pieces)
        os.truncate(home / "a", 300_000)
        data += b"".join(pieces)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.extractfile(f"{home.name}/pyspy/TP0.json").read() == STACK
        assert archive.extractfile(f"{home.name}/a").read()[300_000:] == bytes(700_000)
        index = json.loads(archive.extractfile(f"{home.name}/index.json").read())
    (row,) = [row for row in index["files"] if row["path"] == "a"]
    assert row["trouble"] == "it shrank to 300000 bytes; the rest are zeros"


def test_a_bundle_in_the_terminal(tmp_path):
    home = put(tmp_path / "dump", incident(1))
    argv = [sys.executable, "-m", "sidecar", "incidents", "bundle", "latest", "--dump-dir", str(tmp_path / "dump")]

    def run(*more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*argv, *more], capture_output=True, timeout=60, cwd=tmp_path)

    assert run().stdout.decode() == f"{home.name}.tar.gz\n"
    with tarfile.open(tmp_path / f"{home.name}.tar.gz") as archive:
        assert f"{home.name}/index.json" in archive.getnames()
    again = run()
    assert (again.returncode, b"exists already" in again.stderr) == (1, True)
    assert run("-o", "-").stdout[:2] == b"\x1f\x8b"


def test_retention_leaves_a_pinned_incident(tmp_path):
    """The sidecar's own, and `rankguard incidents prune`: over age, number and size, what is pinned stays."""
    old, kept = put(tmp_path, incident(900)), put(tmp_path, incident(800))
    newest = put(tmp_path, incident(0.5))
    with top(str(tmp_path)) as root:
        pin(root, kept.name, True)
        assert [file.path for file in files_of(root, kept.name).named] == [".pinned", "incident.json", "pyspy/TP0.json"]
    assert Store(str(tmp_path), 1, 1, max_age=3600.0).prune() == [old.name]
    assert (kept.is_dir(), newest.is_dir()) == (True, True)
    argv = [sys.executable, "-m", "sidecar", "incidents", "prune", "--keep", "0", "--dump-dir", str(tmp_path)]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)
    assert (kept.is_dir(), newest.is_dir()) == (True, False)


VERDICT = {"sentence": "7 of 8 ranks wait in all_reduce; TP5 is in tokenizer.encode", "confidence": "high"}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (None, ("", "", [])),
        ("words", ("", "", [])),
        (VERDICT | {"apart": ["TP5", "server"]}, (VERDICT["sentence"], "high", ["TP5", "server"])),
        ({"sentence": ["x"], "confidence": {}, "apart": {"TP5": 1}}, ("", "", [])),
        ({"apart": ["x" * 100, 1, None, ["TP5"], *["y"] * 100]}, ("", "", ["x" * 64, *["y"] * 31])),
        ({"sentence": "z" * 5000}, ("z" * 1000 + "…", "", [])),
    ],
)
def test_a_row_says_what_the_verdict_says(tmp_path, verdict, said):
    """The sentence, how sure it is and who stands apart, of bounded size; nothing where the record has else."""
    home = put(tmp_path, incident(1))
    rewrite(home, verdict=verdict)
    (row,) = Catalog(str(tmp_path)).page(Query()).rows
    assert (row["sentence"], row["confidence"], row["apart"]) == said


@pytest.mark.parametrize(("words", "found"), [("all_reduce SERVER", 1), ("tokenizer high", 1), ("TP4", 0)])
def test_a_search_reads_the_verdict(tmp_path, words, found):
    rewrite(put(tmp_path, incident(1)), verdict=VERDICT | {"apart": ["TP5", "server"]})
    put(tmp_path, incident(2))
    assert len(Catalog(str(tmp_path)).page(query_from({"q": words})).rows) == found
