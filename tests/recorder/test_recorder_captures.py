"""What the recorder takes of real processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorder_rig import (
    ID,
    RANK,
    Ranks,
    Start,
    all_bytes,
    artifacts,
    identity_of,
    incident,
    member,
    rank_process,
    state_of,
    wait_for,
)

from sidecar.model import Identity, Role


def test_stacks_and_state_of_eight_frozen_ranks_and_their_server(start: Start, ranks: Ranks) -> None:
    """Every rank has its state and its stacks, in both forms, with sizes and checksums that are true."""
    identities = [ranks.start() for _ in range(9)]
    for identity in identities:
        ranks.stop(identity)
    watched = [rank_process(identity, f"TP{n}") for n, identity in enumerate(identities[:8])]
    watched.append(rank_process(identities[8], "server", Role.SERVER))
    rig = start()
    assert rig.until("standing_by")[-1]["unfinished"] == []
    what = incident()
    rig.begin(what, watched)
    messages = rig.until("captures_done")
    assert [m["status"] for m in messages if m["type"] == "captured"] == ["captured"] * 27
    rig.seal(what)

    record = rig.record()
    found = artifacts(record)
    labels = [f"TP{n}" for n in range(8)] + ["server"]
    assert set(found) == {(kind, rank) for kind in ("process", "pyspy_json", "pyspy_text") for rank in labels}
    for artifact in found.values():
        data = (rig.dump_dir / ID / artifact["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact["bytes"], artifact["sha256"])
    for identity, label in zip(identities, labels, strict=True):
        text = rig.text(f"pyspy/{label}.txt")
        main, background = text.split("\n\n")[1:3]
        assert main.startswith(f'Thread {identity.pid} (idle): "MainThread"')
        assert "waits_in_a_collective" in main
        assert "polls_in_the_background" in background
        assert {
            frame["name"] for thread in json.loads(rig.text(f"pyspy/{label}.json")) for frame in thread["frames"]
        } >= {
            "waits_in_a_collective",
            "runs_the_scheduler_loop",
            "polls_in_the_background",
        }
        state = json.loads(rig.text(f"process/{label}.json"))
        assert (state["pid"], state["start"], state["stat"]["state"]) == (identity.pid, identity.start, "T")
        assert [thread["state"] for thread in state["threads"]] == ["T", "T"]
        assert state["wchan"] == "do_signal_stop"
        assert state["complete"] is True
        assert state_of(identity.pid) == "T", "what the guard has stopped stays stopped"
    assert record["sealed"] is True
    assert {oct(path.stat().st_mode & 0o777) for path, _ in all_bytes(rig.dump_dir)} == {"0o600"}
    assert not (rig.dump_dir / ID / ".lock").exists()


def test_a_running_process_is_paused_for_its_stacks_and_runs_on(start: Start, ranks: Ranks) -> None:
    identity = ranks.start()
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    assert {a["status"] for a in rig.record()["artifacts"]} == {"captured"}
    assert "paused by py-spy" in rig.text("pyspy/TP0.txt")
    wait_for(lambda: state_of(identity.pid) == "S")


def test_a_process_that_somebody_else_has_stopped_is_read_and_left_stopped(start: Start, ranks: Ranks) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    assert {a["status"] for a in rig.record()["artifacts"]} == {"captured"}
    assert state_of(identity.pid) == "T"


def test_what_is_gone_is_skipped(start: Start, ranks: Ranks) -> None:
    """A reaped process, a zombie, and a pid that another process has now: none is anybody's evidence."""
    gone = ranks.start()
    ranks.kill(gone)
    alive = ranks.start()
    reused = Identity(alive.pid, alive.start - 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    try:
        wait_for(lambda: state_of(dead.pid) == "Z")
        watched = [
            rank_process(gone, "TP0"),
            rank_process(identity_of(dead.pid), "TP1"),
            rank_process(reused, "TP2"),
            rank_process(alive, "TP3"),
        ]
        rig = start()
        what = incident()
        rig.begin(what, watched, frozen=False)
        rig.until("captures_done")
        rig.seal(what)
    finally:
        dead.wait()
    found = artifacts(rig.record())
    for kind in ("process", "pyspy_json", "pyspy_text"):
        for rank in ("TP0", "TP1", "TP2"):
            artifact = found[kind, rank]
            assert (artifact["status"], artifact["detail"], artifact["path"]) == ("skipped", "the process is gone", "")
        assert found[kind, "TP3"]["status"] == "captured"


def test_members_that_are_no_ranks_have_their_state_taken_but_no_stacks(start: Start, ranks: Ranks) -> None:
    rank, helper = ranks.start(), ranks.start()
    rig = start()
    what = incident(members=(member(rank, "python", "scheduler", "TP0"), member(helper, "../../etc/passwd")))
    rig.begin(what, [rank_process(rank, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    paths = {a["path"] for a in rig.record()["artifacts"]}
    assert paths == {
        "process/TP0.json",
        "pyspy/TP0.json",
        "pyspy/TP0.txt",
        f"process/_.._etc_passwd-{helper.pid}.json",
    }


def test_ranks_with_the_same_or_a_hostile_label_have_files_of_their_own(start: Start, ranks: Ranks) -> None:
    first, second, third = (ranks.start() for _ in range(3))
    rig = start()
    what = incident(captures=("process",))
    watched = [
        rank_process(first, "worker"),
        rank_process(second, "worker"),
        rank_process(third, "../../x\n\x1b[31m/y"),
    ]
    rig.begin(what, watched, frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    paths = {a["path"] for a in rig.record()["artifacts"]}
    assert paths == {"process/worker.json", f"process/worker-{second.pid}.json", "process/_.._x___31m_y.json"}
    states = {path: json.loads(rig.text(path))["pid"] for path in paths}
    assert states["process/worker.json"] == first.pid
    assert states["process/_.._x___31m_y.json"] == third.pid


def test_hostile_names_stay_within_their_line_and_are_valid_utf8(start: Start, ranks: Ranks) -> None:
    """Thread and process names can hold anything: no line, terminal escape or broken UTF-8 of theirs comes through."""
    evil = "\x1b[2Jx\nThread 1 (active+gil): \u202efake\ud800"
    code = RANK.replace('name="watchdog"', f"name={evil!r}").replace("import sys", "import sys, ctypes", 1)
    code = code.replace("print(", 'ctypes.CDLL(None).prctl(15, b"a)\\xff\\n \\x1b[", 0, 0, 0); print(', 1)
    identity = ranks.start(code=code)
    ranks.stop(identity)
    rig = start()
    title = "sglang::scheduler_TP0\n\x1b[31m\ud800"
    what = incident(members=(member(identity, "b)\ud800\n"),), engine="sg\ud800lang")
    rig.begin(what, [rank_process(identity, "TP0", title=title)])
    rig.until("captures_done")
    rig.seal(what)
    for path, data in all_bytes(rig.dump_dir / ID):
        text = data.decode("utf-8")
        assert "\x1b" not in text, path
        if path.suffix == ".json":
            json.loads(text)
    assert rig.record()["engine"] == "sg\\ud800lang"
    assert sum(line.startswith("Thread ") for line in rig.text("pyspy/TP0.txt").splitlines()) == 2
    state = json.loads(rig.text("process/TP0.json"))
    assert state["stat"]["comm"] == "a)\\xff\n \x1b["


def test_a_rank_that_is_no_python_is_a_failed_stack_and_no_failed_incident(start: Start) -> None:
    process = subprocess.Popen(["sleep", "100"])
    try:
        rig = start()
        what = incident()
        wait_for(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("sleep"))
        rig.begin(what, [rank_process(identity_of(process.pid), "TP0")], frozen=False)
        rig.until("captures_done")
        rig.seal(what)
    finally:
        process.kill()
        process.wait()
    found = artifacts(rig.record())
    assert found["process", "TP0"]["status"] == "captured"
    assert found["pyspy_json", "TP0"]["status"] == "failed"
    assert "py-spy exited with status 1" in found["pyspy_json", "TP0"]["detail"]


@pytest.mark.parametrize(("captures", "seconds"), [((), 3.0), (("process", "pyspy"), 0.0)])
def test_no_captures_asked_for_means_none(
    start: Start, ranks: Ranks, captures: tuple[str, ...], seconds: float
) -> None:
    """None wanted at all, or no seconds given for them, as to a recorder that takes over late."""
    identity = ranks.start()
    rig = start()
    what = incident(captures=captures)
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False, seconds=seconds)
    rig.until("opened", seconds=2)
    assert [m["type"] for m in rig.heard if m["type"].startswith("capture")] == ["captures_done"]
    rig.seal(what)
    assert rig.record()["artifacts"] == []


def test_too_little_time_is_recorded_as_such(start: Start, ranks: Ranks) -> None:
    identity = ranks.start()
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False, seconds=1e-9)
    rig.until("captures_done", seconds=2)
    rig.seal(what)
    assert {(a["status"], a["detail"]) for a in rig.record()["artifacts"]} == {
        ("timed_out", "not begun before the deadline"),
        ("timed_out", "py-spy not begun before the deadline"),
    }


def test_without_py_spy_the_record_says_where_it_was_looked_for(
    start: Start, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    identity = ranks.start()
    rig = start(python=str(tmp_path / "python"))
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["process", "TP0"]["status"] == "captured"
    assert found["pyspy_text", "TP0"]["status"] == "failed"
    assert found["pyspy_text", "TP0"]["detail"] == "py-spy is neither beside our Python nor on the PATH"


def test_stop_signals_do_not_end_a_recorder_at_work(start: Start, ranks: Ranks) -> None:
    """Ctrl-C in the terminal and a stop of the container reach the whole group; the record must still be sealed."""
    identity = ranks.start()
    rig = start()
    rig.until("standing_by")
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(rig.process.pid, sig)
    rig.until("captures_done")
    rig.seal(what)
    assert rig.record()["sealed"] is True


def test_standing_by_takes_little_memory(start: Start) -> None:
    rig = start()
    rig.until("standing_by")
    lines = Path(f"/proc/{rig.process.pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    assert sizes["Pss"] <= 20 * 1024
    assert sizes["Rss"] <= 24 * 1024, "what it takes where nobody shares its pages"


def test_standing_by_it_sleeps(start: Start) -> None:
    """Warm costs memory, not time: nothing wakes it."""
    rig = start()
    rig.until("standing_by")

    def switches() -> int:
        status = Path(f"/proc/{rig.process.pid}/status").read_text()
        return int(status.split("voluntary_ctxt_switches:")[1].split()[0])

    wait_for(lambda: state_of(rig.process.pid) == "S")
    before, at = switches(), time.monotonic()
    wait_for(lambda: time.monotonic() - at > 1.5)
    assert switches() == before
