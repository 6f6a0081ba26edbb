"""The analysis as the recorder runs it: what it leaves in the record, and that it can hold nothing up."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import case
from recorder.recorder_rig import ROOT, Ranks, Rig, artifacts, incident, rank_process, wait_for

from sidecar.recorder.capture.base import _BOOT

MODULE = "sidecar.recorder.analysis.program"
# Stands in for our Python, and beside it is a py-spy: what is started as the analysis does `what`, all else works.
PYTHON = """#!/bin/sh
for word; do [ "$word" = {module} ] && {what}; done
exec {python} "$@"
"""


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def answer(folder: Path, **told: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the program says of this folder: the verdict and the files."""
    order = {**{key: value for key, value in case("lock").items() if key != "documents"}, "folder": str(folder),
             "seconds": 60, **told}  # fmt: skip
    out = subprocess.run([sys.executable, "-I", "-S", "-c", _BOOT, str(ROOT), MODULE, json.dumps(order)],
                         capture_output=True, timeout=100)  # fmt: skip
    assert out.returncode == 0, out.stderr
    head, _, rest = out.stdout.partition(b"\n")
    said = json.loads(head)
    files = {}
    for name, size in said["files"]:
        files[name], rest = rest[:size], rest[size:]
    assert rest == b""
    return said["verdict"], files


def written(folder: Path) -> Path:
    """The documents of a case as the recorder would have left them on the volume."""
    for name, document in case("lock")["documents"].items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return folder


def test_it_reads_what_is_on_the_volume(tmp_path: Path) -> None:
    said, files = answer(written(tmp_path))
    assert said["sentence"].startswith("2 of 3 ranks wait in all_reduce; TP2 is in scenes.wait_for_a_lock, not moving")
    assert (said["judgement"], said["confidence"], said["apart"]) == ("stuck", "high", ["TP2"])
    assert len(said["fingerprint"]) == 12
    assert list(files) == ["stacks.txt", "stacks.json", "speedscope.json"]
    assert files["stacks.txt"].decode().splitlines()[0] == said["sentence"]
    assert [snapshot["name"] for snapshot in json.loads(files["stacks.json"])["snapshots"]] == [
        "first snapshot", "second snapshot",
    ]  # fmt: skip


def test_hostile_files_are_left_out_and_nothing_outside_is_read(tmp_path: Path) -> None:
    """A link out of the folder, a pipe that nobody writes to, a file of 1 GiB, JSON that is too deep or no JSON."""
    folder = tmp_path / "incident"
    folder.mkdir()
    written(folder)
    outside = tmp_path / "outside.json"
    outside.write_text((folder / "pyspy" / "TP2.json").read_text().replace("wait_for_a_lock", "stolen"))
    for name in ("pyspy/TP2", "pyspy2/TP2"):
        (folder / f"{name}.json").unlink()
        (folder / f"{name}.json").symlink_to(outside)
    (folder / "process" / "TP0.json").unlink()
    os.mkfifo(folder / "process" / "TP0.json")
    os.truncate(folder / "process" / "TP1.json", 1 << 30)
    (folder / "pyspy" / "TP1.json").write_text("[" * 200_000)
    (folder / "pyspy2" / "TP1.json").write_text("no JSON")
    (folder / "pyspy_native").symlink_to(tmp_path)
    said, files = answer(folder)
    assert b"stolen" not in b"".join(files.values())
    assert "2 files were left out" in files["stacks.txt"].decode()
    assert "TP0" in said["sentence"]


def test_the_record_has_the_verdict_and_the_files(tmp_path: Path, ranks: Ranks) -> None:
    identity, other = ranks.start(), ranks.start()
    rig = Rig(tmp_path)
    try:
        what = incident()
        rig.begin(what, [rank_process(identity, "TP0"), rank_process(other, "TP1")], frozen=False, seconds=20)
        rig.until("captures_done", 40)
        rig.seal(what, 40)
        record = rig.whole_record()
        assert record["sealed"] is True
        assert record["verdict"]["sentence"].startswith("TP3 was killed by signal 9 (SIGKILL); the other 2 ranks")
        assert record["verdict"]["judgement"] == "died"
        found = artifacts(record)
        for kind, file in (("analysis_text", "stacks.txt"), ("analysis_json", "stacks.json"),
                           ("analysis_speedscope", "speedscope.json")):  # fmt: skip
            artifact = found[kind, "engine"]
            assert (artifact["status"], artifact["path"]) == ("captured", f"analysis/{file}")
            assert artifact["bytes"] == len(rig.text(artifact["path"]).encode())
    finally:
        rig.close()


@pytest.mark.parametrize(
    ("what", "status", "detail"),
    [
        ("exec sleep 1000", "timed_out", "without an answer"),
        ("exit 3", "failed", "ended with 0x300"),
        ("exec yes", "failed", "more than is kept"),
    ],
)
def test_an_analysis_that_fails_holds_up_no_record(
    tmp_path: Path, ranks: Ranks, what: str, status: str, detail: str
) -> None:
    """It hangs, it dies, it writes garbage without end: the record is sealed all the same, and says so."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON.format(module=MODULE, what=what, python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "bin" / "py-spy").symlink_to(Path(sys.executable).with_name("py-spy"))
    rig = Rig(tmp_path / "dump", python=str(python))
    try:
        happened = incident(captures=("process",))
        rig.begin(happened, [rank_process(ranks.start(), "TP0")], frozen=False, seconds=20)
        rig.until("captures_done", 40)
        rig.seal(happened, 60)
        record = rig.whole_record()
        assert record["sealed"] is True
        assert record["verdict"] is None
        artifact = artifacts(record)["analysis_text", "engine"]
        assert artifact["status"] == status
        assert detail in artifact["detail"]
        wait_for(lambda: rig.process.poll() == 0)
    finally:
        rig.close()


def test_the_flight_recorder_s_dumps_are_read_where_there_are_some(tmp_path: Path) -> None:
    told = case("flight-recorder")
    (tmp_path / "flight_recorder").mkdir()
    for rank, dump in told["flight"].items():
        (tmp_path / "flight_recorder" / f"{rank}.pickle").write_bytes(base64.b64decode(dump))
    said, _ = answer(written(tmp_path), ranks=told["ranks"])
    assert any(reason.startswith("PyTorch's Flight Recorder: TP2 has launched") for reason in said["reasons"])
