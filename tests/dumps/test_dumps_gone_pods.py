"""`rankguard incidents prune --pods-gone-for`: folders of dead pods go; the living, the pinned and the foreign stay."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dump_folders import age, count, everything, incident, put

from sidecar.dumps.counters import counted, fold, read_totals
from sidecar.dumps.opening import top


def prune(volume: Path, *arguments: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "sidecar", "incidents", "prune", "--dump-dir", str(volume), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def pod(volume: Path, name: str, hours: float, namespace: str = "prod") -> Path:
    """A pod's folder as its sidecar leaves it, last written so many hours ago."""
    folder = volume / namespace / name
    count(folder, f"uid-{name}", 1)
    put(folder, incident(hours, pod=f"{namespace}/{name}"))
    (folder / ".reserve").write_bytes(b"r")
    (folder / ".after-kill.json").write_text("[]")
    (folder / ".rankguard-doctor").write_text("left by a check that was killed")
    (folder / "engine").mkdir()
    (folder / "engine" / "core").write_bytes(b"c")
    age(folder, hours)
    return folder


def test_folders_of_dead_pods_go_and_all_else_stays(tmp_path):
    """One line each. What stays: a pod that has written lately (only its counters, or only an incident), a pinned
    incident, one that is locked, a folder with foreign things, and what only looks like a pod's."""
    volume = tmp_path / "volume"
    dead = [pod(volume, "dead", 50), pod(volume, "alone", 50, "empty-after")]
    alive = pod(volume, "alive", 50)
    os.utime(alive / ".counters-uid-alive.json")
    fresh = pod(volume, "fresh", 50)
    put(fresh, incident(1))
    pinned = pod(volume, "pinned", 50)
    next(pinned.glob("2*")).joinpath(".pinned").touch()
    foreign = pod(volume, "foreign", 50)
    (foreign / "weights.bin").write_text("mine")
    held = pod(volume, "held", 50)
    lock = next(held.glob("2*")) / ".lock"
    lock.touch()
    models = volume / "models" / "llama"
    models.mkdir(parents=True)
    (models / "weights.bin").write_text("mine")
    for folder in (pinned, foreign, held, models):
        age(folder, 50)
    outside = pod(tmp_path / "elsewhere", "outside", 50)
    (volume / "prod" / "linked").symlink_to(outside)
    (dead[0] / next(dead[0].glob("2*")).name / "up").symlink_to(outside)
    age(dead[0], 50)
    before = everything(tmp_path)
    with open(lock) as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        said = prune(volume, "--pods-gone-for", "2d", "--dry-run")
        assert everything(tmp_path) == before
        assert said.count("would remove ") == 2
        out = prune(volume, "--pods-gone-for", "2d").splitlines()
    lines = {line.split()[1]: line for line in out[:-1]}
    assert {name: line.split()[0] for name, line in lines.items()} == {
        "empty-after/alone": "removed", "prod/dead": "removed", "prod/pinned": "kept", "prod/foreign": "kept",
        "prod/held": "kept",
    }  # fmt: skip
    assert lines["prod/pinned"].endswith("1 of its incidents is pinned")
    assert lines["prod/foreign"].endswith("it holds weights.bin, which is not Rankguard's")
    assert lines["prod/held"].endswith("an incident in it is being written")
    assert out[-1] == "2 pods' folders removed, 3 kept"
    left = {path for path in before if "prod/dead" not in path and "empty-after" not in path}
    assert set(everything(tmp_path)) == left | {"volume/.totals.json", "volume/.prune.lock"}


def test_what_was_cut_short_is_finished_and_counted_once(tmp_path):
    """A prune that died between its steps: after the rename, and after the counts came into the totals."""
    pod(tmp_path, "a", 50)
    pod(tmp_path, "b", 50)
    (tmp_path / "prod" / "a").rename(tmp_path / "prod" / ".removing-a")
    with top(str(tmp_path)) as root:
        fold(root, [found for found in counted(root, []) if found.path.startswith("prod/b")])
    deaths = ("prod", "rank_deaths", ("sigkill",))
    out = prune(tmp_path, "--pods-gone-for", "1d", "--json")
    assert [gone["path"] for gone in json.loads(out)["pods"]["removed"]] == ["prod/.removing-a", "prod/b"]
    assert not (tmp_path / "prod").exists()
    with top(str(tmp_path)) as root:
        assert read_totals(root).sums[deaths] == 2
        assert list(counted(root, [])) == []


def test_broken_totals_keep_the_folders(tmp_path):
    """What cannot be added to is not lost: nothing is removed, the exit status is 1, and the line says what to do."""
    folder = pod(tmp_path, "a", 50)
    (tmp_path / ".totals.json").write_text("{")
    assert ".totals.json cannot be read" in prune(tmp_path, "--pods-gone-for", "1d", status=1)
    assert folder.is_dir()


def test_any_depth_is_removed(tmp_path):
    """An engine can make folders in folders as it likes: deeper than a process may hold files open."""
    folder = pod(tmp_path, "a", 0)
    fd = os.open(folder / "engine", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    then = time.time() - 180000
    for path in [*folder.iterdir(), *folder.glob("*/*"), folder]:
        os.utime(path, (then, then))
    assert "removed prod/a" in prune(tmp_path, "--pods-gone-for", "1d")
    assert not (tmp_path / "prod").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--pods-gone-for", "1h"],
            "--pods-gone-for: '1h' cannot be used: it takes at least 3h, since a living sidecar",
        ),
        (["--pods-gone-for", "soon"], "--pods-gone-for: 'soon' cannot be used: it takes a number with s, m, h, d or w"),
        ([], "prune needs at least one limit: --keep, --max-bytes, --older-than or --pods-gone-for"),
    ],
)
def test_wrong_limits_get_one_line(tmp_path, arguments, line):
    (said,) = prune(tmp_path, *arguments, status=2).splitlines()
    assert said.startswith(f"rankguard: {line}")
