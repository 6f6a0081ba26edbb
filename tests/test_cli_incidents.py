"""`rankguard incidents`: a dump folder is read, shown and cleaned up, whatever lies in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.commands import units
from sidecar.commands.run import package_root
from sidecar.commands.terminal import printable
from sidecar.dumps import folder as dump_folder
from sidecar.dumps.removal import remove
from sidecar.dumps.rows import row_of
from sidecar.model import (
    Action,
    Artifact,
    ArtifactStatus,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Identity,
    Incident,
    Member,
    Outcome,
    PodInfo,
    Reason,
    Role,
    Survivor,
    Termination,
    TimelineEntry,
)
from sidecar.recorder.record import build, encode
from sidecar.system.clock import id_stamp

HOUR = 3600.0
NOW = time.time()


def cli(*args: str, status: int = 0, stderr: str = "") -> str:
    """Run the real command with its output in a pipe; its standard output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
    result = subprocess.run(
        [sys.executable, "-m", "sidecar", "incidents", *args],
        cwd=package_root(),
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (status, stderr), result
    return result.stdout


def error_line(*args: str, status: int) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
    result = subprocess.run(
        [sys.executable, "-m", "sidecar", "incidents", *args],
        cwd=package_root(),
        env=env,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (status, "")
    (line,) = result.stderr.splitlines()
    return line


def incident(hours_old: float, rank: str = "TP3", reason: Reason = Reason.RANK_DIED, **more) -> Incident:
    wall = NOW - hours_old * HOUR

    def failed(rank: str, after: float, status: ExitStatus, cause: Cause) -> Failure:
        return Failure(
            Role.SCHEDULER, rank, 4242, 77, status, cause, at=100.0 + after, wall=wall + after, detail=f"{rank}?"
        )

    member = Member(Identity(4242, 77), 40, 40, 1, "sglang::schedul", "scheduler", "TP0")
    known = {
        "id": f"{id_stamp(wall)}-{reason.lower()}-{rank.lower()}",
        "reason": reason,
        "engine": "sglang",
        "pod": PodInfo("prod", "llm-0", "uid-0", "node-1"),
        "decision": Decision(reason, Action.KILL, ("pyspy",), 3.0, (f"{rank} signal 9",)),
        "failures": (
            failed(rank, 0.0, ExitStatus(signal=9), Cause.SIGKILL),
            failed("TP0", 0.25, ExitStatus(code=1), Cause.EXIT_NONZERO),
        ),
        "timeline": (
            TimelineEntry(100.0, wall, "died", f"{rank} by signal 9"),
            TimelineEntry(100.0123, wall + 0.0123, "frozen", "5 processes"),
            TimelineEntry(101.5, wall + 1.5, "killed", ""),
        ),
        "termination": Termination(
            Outcome.STILL_ALIVE, (member,), (Survivor(4250, 9, "TP1", "sglang::schedul", "D", "nfs_wait"),), 60.5
        ),
    }
    return Incident(**known | more)


def put(folder: Path, made: Incident, sealed: bool = True, stack: bytes = b"x" * 2000) -> Path:
    """Write the incident as the recorder does, with one stack beside it."""
    home = folder / made.id
    home.mkdir(parents=True)
    (home / "pyspy-TP0.json").write_bytes(stack)
    artifacts = [
        Artifact("pyspy", "TP0", ArtifactStatus.CAPTURED, "pyspy-TP0.json", len(stack), "ab" * 32, 0.0421),
        Artifact("pyspy", "TP1", ArtifactStatus.TIMED_OUT, seconds=3.0, detail="no answer"),
    ]
    (home / "incident.json").write_bytes(encode(build(made, artifacts, sealed=sealed)))
    return home


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ---- list


def test_list_is_newest_first_with_one_line_each(tmp_path):
    put(tmp_path, incident(30))
    put(tmp_path, incident(2, "TP1", Reason.ENGINE_STALLED, failures=(), termination=None), sealed=False)
    rows = words(cli("list", "--dump-dir", str(tmp_path)))
    assert rows[0] == ["TIME", "(UTC)", "REASON", "FIRST", "CAUSE", "ENGINE", "EVIDENCE", "ENDED", "SEALED", "ID"]
    newer, older = rows[2:]
    assert newer[2:6] == ["EngineStalled", "sglang", "2", "·"]
    assert newer[8:] == ["–", "no", incident(2, "TP1", Reason.ENGINE_STALLED).id]
    assert older[2:6] == ["RankDied", "TP3", "sigkill", "sglang"]
    assert older[6:8] == ["2", "·"]
    assert older[10:] == ["still_alive", "60.5", "s", "yes", incident(30).id]


def test_list_json_is_for_machines(tmp_path):
    home = put(tmp_path, incident(1))
    (found,) = json.loads(cli("list", "--json", "--dump-dir", str(tmp_path)))
    assert found == {
        "id": home.name,
        "path": home.name,
        "time": found["time"],
        "reason": "RankDied",
        "summary": found["summary"],
        "sentence": "",
        "confidence": "",
        "apart": [],
        "rank": "TP3",
        "cause": "sigkill",
        "engine": "sglang",
        "pod": {"namespace": "prod", "name": "llm-0", "uid": "uid-0", "node": "node-1"},
        "artifacts": 2,
        "bytes": sum(file.stat().st_size for file in home.iterdir()),
        "outcome": "still_alive",
        "seconds": 60.5,
        "sealed": True,
        "pinned": False,
        "unreadable": None,
    }
    assert found["time"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(NOW - HOUR)))
    assert "TP3" in found["summary"]


def test_list_chooses_by_reason_and_number(tmp_path):
    for hours in (1, 2, 3):
        put(tmp_path, incident(hours))
        put(tmp_path, incident(hours, reason=Reason.MANUAL))
    ask = ("list", "--json", "--dump-dir", str(tmp_path))
    rows = json.loads(cli(*ask, "--reason", "manual", "--limit", "2"))
    assert [row["id"] for row in rows] == [incident(hours, reason=Reason.MANUAL).id for hours in (1, 2)]
    assert "RankDied, RankMissing" in error_line(*ask, "--reason", "Boredom", status=2)
    assert "'0'" in error_line(*ask, "--limit", "0", status=2)


def test_a_volume_of_many_pods_says_whose_each_is(tmp_path):
    """`<namespace>/<pod>/<id>`, and a pod's own folder on the same volume; the same id in two pods is two incidents."""
    made = incident(1)
    put(tmp_path / "prod" / "llm-0", made)
    put(tmp_path / "prod" / "llm-1", incident(1, pod=PodInfo("prod", "llm-1")))
    put(tmp_path, incident(5, pod=PodInfo()))
    rows = json.loads(cli("list", "--json", "--dump-dir", str(tmp_path)))
    assert [row["path"] for row in rows] == [f"prod/llm-1/{made.id}", f"prod/llm-0/{made.id}", incident(5).id]
    table = cli("list", "--dump-dir", str(tmp_path))
    assert "POD" in table
    assert "prod/llm-1" in table
    assert "may be any of 2 incidents" in error_line("show", made.id, "--dump-dir", str(tmp_path), status=1)
    assert (
        json.loads(cli("show", "--json", f"prod/llm-1/{made.id}", "--dump-dir", str(tmp_path)))["pod"]["name"]
        == "llm-1"
    )


def test_an_empty_folder_and_none_at_all(tmp_path):
    assert cli("list", "--dump-dir", str(tmp_path)) == f"No incidents in {tmp_path}\n"
    assert json.loads(cli("list", "--json", "--dump-dir", str(tmp_path))) == []
    assert "there are no incidents" in error_line("show", "latest", "--dump-dir", str(tmp_path), status=1)
    gone = str(tmp_path / "gone")
    assert error_line("list", "--dump-dir", gone, status=2).startswith(
        f"rankguard: --dump-dir: {gone!r} cannot be used"
    )


# ---- hostile folders


def entries(folder: Path) -> dict[str, dump_folder.Entry]:
    return {entry.path: entry for entry in dump_folder.read(str(folder)).entries}


BAD_RECORDS = {
    b"": "no JSON",
    b'{"schema": "rankguard.dev/inc': "no JSON",
    b"[]": "no record",
    b"null": "no record",
    b"{}": "schema",
    b"\xff\xfe\x00": "no JSON",
    b"[" * 200_000: "no JSON",
    b'{"a": NaN}': "no JSON",
    b'{"a": 1e999}': "no JSON",
    b'{"schema": "rankguard.dev/incident/v9"}': "schema",
    b'{"schema": "rankguard.dev/incident/v1", "id": "another"}': "another incident",
}


@pytest.mark.parametrize(("content", "why"), BAD_RECORDS.items())
def test_a_record_that_is_none_is_listed_with_the_reason(tmp_path, content, why):
    home = put(tmp_path, incident(1))
    (home / "incident.json").write_bytes(content)
    entry = entries(tmp_path)[home.name]
    assert why in entry.unreadable
    assert (entry.record, entry.sealed) == ({}, False)
    assert entry.bytes == 2000 + len(content)


@pytest.mark.parametrize("key", ["failures", "timeline", "artifacts", "pod", "decision", "termination"])
@pytest.mark.parametrize("value", [[1], "words", 7, ["a"]])
def test_a_record_with_wrong_parts_is_listed_with_the_reason(tmp_path, key, value):
    home = put(tmp_path, incident(1))
    record = json.loads((home / "incident.json").read_bytes())
    (home / "incident.json").write_text(json.dumps(record | {key: value}))
    assert key in entries(tmp_path)[home.name].unreadable


def test_broken_ones_do_not_hide_the_good_ones(tmp_path):
    good = put(tmp_path, incident(1))
    half = tmp_path / incident(2).id
    half.mkdir()
    table = cli("list", "--dump-dir", str(tmp_path))
    assert good.name in table
    assert "unreadable: half-written: no incident.json" in table
    line = error_line("show", half.name, "--dump-dir", str(tmp_path), status=1)
    assert line == f"rankguard: {half.name} is unreadable: half-written: no incident.json"


def test_a_record_of_any_size_is_not_read_into_memory(tmp_path):
    home = put(tmp_path, incident(1))
    os.truncate(home / "incident.json", 1 << 40)  # sparse
    assert "more than" in entries(tmp_path)[home.name].unreadable


def test_a_fifo_as_a_record_does_not_hold_us_up(tmp_path):
    home = tmp_path / incident(1).id
    home.mkdir()
    os.mkfifo(home / "incident.json")
    assert "no regular file" in entries(tmp_path)[home.name].unreadable


def test_nothing_is_reached_through_a_link(tmp_path):
    """Not a record, not an incident's folder, not a pod's: what the links point at is neither read nor measured."""
    outside, dump = tmp_path / "outside", tmp_path / "dump"
    elsewhere = put(outside, incident(1))
    dump.mkdir()
    (dump / elsewhere.name).symlink_to(elsewhere)
    (dump / "prod").symlink_to(outside)
    (dump / "other").mkdir()
    (dump / "other" / "pod").symlink_to(outside)
    half = dump / incident(2).id
    half.mkdir()
    (half / "incident.json").symlink_to(elsewhere / "incident.json")
    (half / "more").symlink_to(outside)
    found = entries(dump)
    assert set(found) == {elsewhere.name, half.name}
    assert found[elsewhere.name].unreadable == "a symbolic link"
    assert "a link" in found[half.name].unreadable
    assert {entry.bytes for entry in found.values()} == {0}


def test_what_has_another_name_is_none_of_ours(tmp_path):
    made = incident(1)
    for name in ("lost+found", ".counters", "20261399T000000.000Z-x", f"{made.id} ", f"{made.id}\n", "a"):
        put(tmp_path / "src" / name, made)
        os.rename(tmp_path / "src" / name / made.id, tmp_path / name)
    assert entries(tmp_path) == {}


def test_nothing_in_a_record_can_write_to_the_terminal(tmp_path):
    """Escapes, bidirectional overrides, line ends and rich's own markup come out as the letters they are made of."""
    evil = "\x1b[31mred\x1b]0;title\x07\r\n\u202eback\u0085[bold]x[/bold]:smile:\ud800"
    made = incident(1, engine=evil, rank="TP3")
    record = build(made, [Artifact("pyspy", evil, ArtifactStatus.FAILED, evil, detail=evil)], sealed=True)
    record |= {"reason": evil, "summary": evil, "verdict": evil, "notes": [evil], "group": evil, "pod": {"name": evil}}
    for part in (*record["failures"], *record["timeline"]):
        part |= {"rank": evil, "event": evil, "detail": evil, "cause": evil, "observed_at": evil, "at": evil}
    record["termination"] |= {"outcome": evil, "survivors": [{"rank": evil, "state": evil, "wchan": evil}]}
    home = tmp_path / made.id
    home.mkdir()
    (home / "incident.json").write_text(json.dumps(record))
    for ask in (["list"], ["show", "latest"], ["list", "--json"], ["show", "latest", "--json"]):
        out = cli(*ask, "--dump-dir", str(tmp_path))
        assert all(line.isprintable() for line in out.split("\n")), ask
        assert "smile" in out
        assert "[bold]x[/bold]" in out


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


KEYS = (
    *("reason", "summary", "pod", "group", "engine", "failures", "decision", "timeline", "artifacts", "termination"),
    *("verdict", "sealed", "notes"),
)
INNER_KEYS = ("at", "ms", "rank", "pid", "bytes", "seconds", "signal", "first")
rows_of_json = st.lists(st.dictionaries(st.sampled_from(INNER_KEYS), json_values), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values | rows_of_json))
def test_any_json_is_shown_or_called_unreadable(tmp_path_factory, changes):
    """Whatever a record's values are, reading raises nothing, and what was accepted can be shown."""
    from sidecar.commands import incident_pages

    folder = tmp_path_factory.mktemp("dump")
    home = put(folder, incident(1))
    record = json.loads((home / "incident.json").read_bytes())
    (home / "incident.json").write_text(json.dumps(record | changes))
    (entry,) = dump_folder.read(str(folder)).entries
    incident_pages.print_table(str(folder), [entry])
    incident_pages.print_page(str(folder), entry)
    json.dumps(row_of(entry))


# ---- show


def test_show_is_a_page_with_everything(tmp_path):
    home = put(tmp_path, incident(1))
    page = cli("show", "latest", "--dump-dir", str(tmp_path))
    rows = words(page)
    assert page.splitlines()[0] == json.loads((home / "incident.json").read_bytes())["summary"]
    for row in (
        ["id", home.name],
        ["reason", "RankDied"],
        ["decision", "kill", "(TP3", "signal", "9)"],
        ["engine", "sglang"],
        ["pod", "prod/llm-0"],
        ["node", "node-1"],
        ["folder", str(home)],
        ["sealed", "yes"],
        ["ended", "still_alive", "60.5", "s"],
        ["killed", "1:", "TP0", "(4242)"],
        ["survivor", "TP1", "(4250)", "in", "state", "D,", "in", "nfs_wait;", "the", "node", "needs", "a", "drain"],
        ["pyspy", "TP0", "captured", "2.0", "KiB", "42", "ms", "pyspy-TP0.json"],
        ["pyspy", "TP1", "timed_out", "0", "B", "3.0", "s", "no", "answer"],
    ):
        assert row in rows
    first, second = [row for row in rows if "scheduler" in row]
    assert first[:8] == ["first", "TP3", "scheduler", "4242", "sigkill", "signal", "9", "(SIGKILL)"]
    assert second[:6] == ["TP0", "scheduler", "4242", "exit_nonzero", "exit", "1"]
    steps = {row[2]: row[0] for row in rows if row and re.fullmatch(r"[+-]\d+\.\d", row[0])}
    assert steps == {"died": "+0.0", "frozen": "+12.3", "killed": "+1500.0"}


def test_show_finds_by_beginning(tmp_path):
    home = put(tmp_path, incident(1))
    other = put(tmp_path, incident(1.0001, "TP1"))
    ask = ("--dump-dir", str(tmp_path), "--json")
    assert json.loads(cli("show", home.name, *ask)) == json.loads((home / "incident.json").read_bytes())
    assert json.loads(cli("show", other.name[:-4], *ask))["id"] == other.name
    assert "may be any of 2 incidents" in error_line("show", "2", *ask, status=1)
    assert "there is no incident 'nope'" in error_line("show", "nope", *ask, status=1)
    assert "there is no incident ''" in error_line("show", "", *ask, status=1)


def test_lines_in_a_pipe_are_neither_cut_nor_coloured(tmp_path):
    put(tmp_path, incident(1, decision=Decision(Reason.RANK_DIED, Action.KILL, (), 3.0, ("because " * 60,))))
    out = cli("show", "latest", "--dump-dir", str(tmp_path))
    assert "because " * 60 in out
    assert "\x1b" not in out


# ---- prune


def remaining(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_prune_needs_a_limit_that_makes_sense(tmp_path):
    at = ("prune", "--dump-dir", str(tmp_path))
    assert "at least one limit: --keep, --max-bytes, --older-than or --pods-gone-for" in error_line(*at, status=2)
    assert "--keep: '-1'" in error_line(*at, "--keep", "-1", status=2)
    assert "--max-bytes: '5X'" in error_line(*at, "--max-bytes", "5X", status=2)
    assert "--older-than: '7'" in error_line(*at, "--older-than", "7", status=2)


def test_prune_takes_the_oldest_and_says_so(tmp_path):
    homes = [put(tmp_path, incident(hours)) for hours in (50, 30, 5)]
    at = ("prune", "--dump-dir", str(tmp_path))
    would = cli(*at, "--keep", "2", "--dry-run")
    assert would.startswith(f"would remove {homes[0].name} (")
    assert remaining(tmp_path) == {home.name for home in homes}
    done = cli(*at, "--keep", "2")
    assert done == would.replace("would remove", "removed").replace("would be removed", "removed")
    assert remaining(tmp_path) == {homes[1].name, homes[2].name}
    size = sum(file.stat().st_size for file in homes[1].iterdir())
    report = json.loads(cli(*at, "--older-than", "1d", "--json"))
    assert report == {
        "removed": [{"path": homes[1].name, "bytes": size}],
        "failed": {},
        "freed_bytes": size,
        "left": 1,
        "dry_run": False,
    }
    assert cli(*at, "--max-bytes", "1Gi") == "0 removed (0 B), 1 left\n"
    cli(*at, "--max-bytes", "1K")
    assert remaining(tmp_path) == set()


def test_prune_never_takes_what_may_still_be_written(tmp_path):
    """Unsealed, unreadable or a mere folder: within its first hour it stays whatever the limit, later it goes."""
    writing, abandoned = put(tmp_path, incident(0.5), sealed=False), put(tmp_path, incident(1.5), sealed=False)
    opening = tmp_path / incident(0.1).id
    opening.mkdir()
    cli("prune", "--dump-dir", str(tmp_path), "--keep", "0", "--max-bytes", "0")
    assert remaining(tmp_path) == {writing.name, opening.name}
    assert not abandoned.exists()


def test_prune_touches_nothing_else(tmp_path):
    """Neither other files, nor what links point at: a link in an incident's place goes, its target stays."""
    outside, dump = tmp_path / "outside", tmp_path / "dump"
    treasure = put(outside, incident(40))
    home = put(dump, incident(30))
    (home / "deep").mkdir()
    (home / "deep" / "link").symlink_to(outside)
    (home / "file").symlink_to(treasure / "incident.json")
    (dump / incident(35).id).symlink_to(treasure)
    (dump / "prod").symlink_to(outside)
    (dump / ".counters-host.json").write_text("{}")
    (dump / "notes").mkdir()
    cli("prune", "--dump-dir", str(dump), "--keep", "0")
    assert remaining(dump) == {"prod", ".counters-host.json", "notes"}
    assert {file.name for file in treasure.iterdir()} == {"incident.json", "pyspy-TP0.json"}


def test_prune_of_a_whole_volume(tmp_path):
    old = put(tmp_path / "prod" / "llm-0", incident(30))
    new = put(tmp_path / "prod" / "llm-1", incident(20))
    cli("prune", "--dump-dir", str(tmp_path), "--keep", "1")
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    "path", ["..", "a", "../x", "", "prod/llm-0", "prod/../{id}", "/{id}", "a/{id}", "{id}/", "{id}/.."]
)
def test_only_an_incidents_path_can_be_removed(tmp_path, path):
    made = incident(1)
    put(tmp_path / "dump", made)
    with pytest.raises((ValueError, FileNotFoundError)):
        remove(str(tmp_path / "dump"), path.format(id=made.id))
    assert (tmp_path / "dump" / made.id / "incident.json").exists()


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """`rankguard incidents show … | head -1` ends without a word."""
    put(tmp_path, incident(1, timeline=tuple(TimelineEntry(100.0, NOW, "step", "x" * 1000) for _ in range(500))))
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "sidecar", "incidents", "show", "latest", "--dump-dir", str(tmp_path)],
            cwd=package_root(),
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert result.stderr == b""
    assert result.returncode != 0


# ---- words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500M", 500_000_000),
        ("500Mi", 500 * 2**20),
        ("10G", 10**10),
        ("1TiB", 2**40),
        ("2k", 2000),
        ("7KB", 7000),
    ],
)
def test_sizes(text, count):
    assert units.size(text) == count


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1 G", "1P", "9" * 30, "1iM"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="Kubernetes"):
        units.size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("36h", 36 * HOUR), ("7d", 168 * HOUR), ("1.5m", 90), ("2w", 336 * HOUR)]
)
def test_durations(text, seconds):
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "7", "1y", "nand", "1h30m"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="36h"):
        units.duration(text)


@given(st.text(st.characters()))
def test_printable_is_printable(text):
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()
