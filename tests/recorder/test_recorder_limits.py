"""Collectors that hang, fail or say too much: ended at their limit, and never anybody else's loss."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from recorder_rig import Ranks, Start, artifacts, incident, rank_process, state_of, wait_for

REAL = Path(sys.executable).parent / "py-spy"
# What a py-spy does that hangs while it attaches: it leaves its target stopped, and a child of its own besides.
HANGS = """#!/bin/sh
for pid; do :; done
echo "$$" >> "{log}"
{only_when_pausing}
kill -STOP "$pid"
sleep 1000 &
echo "$!" >> "{log}"
wait
"""


def fake_pyspy(tmp_path: Path, script: str) -> str:
    """A folder with a Python and our own py-spy beside it, as a virtual environment has them; gives that Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    program = folder / "py-spy"
    program.write_text(script)
    program.chmod(0o755)
    return str(folder / "python")


def gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z")


def test_a_py_spy_that_hangs_is_ended_with_its_children_and_its_target_runs_on(
    start: Start, ranks: Ranks, tmp_path: Path
) -> None:
    log = tmp_path / "pids"
    python = fake_pyspy(tmp_path, HANGS.format(log=log, only_when_pausing=""))
    identity = ranks.start()
    rig = start(python=python)
    rig.until("standing_by")
    what = incident()
    began = time.monotonic()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False, seconds=1.0)
    rig.until("captures_done")
    took = time.monotonic() - began
    assert 0.9 <= took <= 2.0
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["process", "TP0"]["status"] == "captured"
    for kind in ("pyspy_json", "pyspy_text"):
        assert found[kind, "TP0"]["status"] == "timed_out"
        assert "without an answer" in found[kind, "TP0"]["detail"]
    started = [int(line) for line in log.read_text().split()]
    assert len(started) >= 2
    for pid in started:
        wait_for(lambda pid=pid: gone(pid))
    wait_for(lambda: state_of(identity.pid) == "S")


def test_a_frozen_target_is_not_resumed_for_a_py_spy_that_hung(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    python = fake_pyspy(tmp_path, HANGS.format(log=tmp_path / "pids", only_when_pausing=""))
    identity = ranks.start()
    ranks.stop(identity)
    rig = start(python=python)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=True, seconds=0.5)
    rig.until("captures_done")
    rig.seal(what)
    assert artifacts(rig.record())["pyspy_json", "TP0"]["status"] == "timed_out"
    assert state_of(identity.pid) == "T"


def test_where_pausing_hangs_the_stacks_are_taken_without(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """The fallback is another run of py-spy within the same time, and the record says that nothing was paused."""
    only = f'case "$*" in *--nonblocking*) exec "{REAL}" "$@";; esac'
    python = fake_pyspy(tmp_path, HANGS.format(log=tmp_path / "pids", only_when_pausing=only))
    identity = ranks.start()
    rig = start(python=python)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False, seconds=2.0)
    rig.until("captures_done")
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["pyspy_text", "TP0"]["status"] == "partial"
    assert "taken without pausing the process: py-spy ended after 1." in found["pyspy_text", "TP0"]["detail"]
    assert "waits_in_a_collective" in rig.text("pyspy/TP0.txt")
    wait_for(lambda: state_of(identity.pid) == "S")


def test_one_that_hangs_takes_no_other_ranks_time(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """Four of eight hang: more than there are slots, and the other four are there long before the deadline."""
    identities = [ranks.start() for _ in range(8)]
    for identity in identities:
        ranks.stop(identity)
    bad = " ".join(str(identity.pid) for identity in identities[:4])
    script = (
        f'#!/bin/sh\nfor pid; do :; done\ncase " {bad} " in *" $pid "*) exec sleep 1000;; esac\nexec "{REAL}" "$@"\n'
    )
    rig = start(python=fake_pyspy(tmp_path, script))
    rig.until("standing_by")
    what = incident(captures=("pyspy",))
    began = time.monotonic()
    rig.begin(what, [rank_process(identity, f"TP{n}") for n, identity in enumerate(identities)], seconds=3.0)
    captured = set()
    while len(captured) < 4:
        message = rig.receive()
        if message["type"] == "captured":
            assert message["status"] == "captured", "the ones that hang are ended at the deadline, not before"
            captured.add(message["rank"])
    assert captured == {"TP4", "TP5", "TP6", "TP7"}
    assert time.monotonic() - began < 2.5
    rig.until("captures_done")
    assert time.monotonic() - began < 4.0
    rig.seal(what)


def test_a_py_spy_that_says_too_much_is_cut_off(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """Output is bounded: a flood is no evidence, and no memory is spent on it."""
    identity = ranks.start()
    rig = start(python=fake_pyspy(tmp_path, "#!/bin/sh\nexec yes '[]'\n"))
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["pyspy_json", "TP0"]["status"] == "failed"
    assert found["pyspy_json", "TP0"]["detail"] == "py-spy wrote more than is kept"


def test_output_that_only_looks_like_stacks_fails_as_text_and_stays_as_it_came(
    start: Start, ranks: Ranks, tmp_path: Path
) -> None:
    identity = ranks.start()
    rig = start(python=fake_pyspy(tmp_path, "#!/bin/sh\necho '[1, {]'\n"))
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["pyspy_text", "TP0"]["status"] == "failed"
    assert rig.text("pyspy/TP0.json") == "[1, {]\n"


def test_an_error_of_py_spy_stands_in_the_record_in_its_own_words(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    rig = start(python=fake_pyspy(tmp_path, "#!/bin/sh\nprintf 'Error: no \\033[31mrights' >&2\nexit 3\n"))
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("captures_done")
    rig.seal(what)
    detail = artifacts(rig.record())["pyspy_json", "TP0"]["detail"]
    assert detail == "py-spy exited with status 3: Error: no \\x1b[31mrights"


def test_collectors_run_under_limits_and_apart_from_us(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    """Bounded memory, no core, first to go when memory is short, a session of its own, nothing of ours open."""
    log = tmp_path / "seen"
    script = (
        "#!/bin/sh\nread -r stat < /proc/$$/stat\n"
        'until [ "$(cat /proc/$$/oom_score_adj)" = 1000 ]; do :; done\n'
        f'{{ echo "$stat"; ulimit -d; ulimit -c; ls -l /proc/$$/fd; }} > "{log}"\n'
        f'exec "{REAL}" "$@"\n'
    )
    identity = ranks.start()
    rig = start(python=fake_pyspy(tmp_path, script))
    what = incident(captures=("pyspy",))
    rig.begin(what, [rank_process(identity, "TP0")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    stat, data, core, *descriptors = log.read_text().splitlines()
    assert stat.split()[0] == stat.split()[5], "it leads its session"
    assert (int(data) <= 512 * 1024, core) == (True, "0")
    assert not [line for line in descriptors if "socket:" in line or "eventfd" in line or str(rig.dump_dir) in line]
    assert artifacts(rig.record())["pyspy_json", "TP0"]["status"] == "captured"


def test_no_processes_are_left(start: Start, ranks: Ranks) -> None:
    """Every child is reaped: the recorder has none when it has said that it is done."""
    identities = [ranks.start() for _ in range(4)]
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, f"TP{n}") for n, identity in enumerate(identities)], frozen=False)
    rig.until("captures_done")
    children = Path(f"/proc/{rig.process.pid}/task/{rig.process.pid}/children")
    assert not children.exists() or children.read_text() == ""
    assert os.path.isdir(f"/proc/{rig.process.pid}")
    rig.seal(what)
