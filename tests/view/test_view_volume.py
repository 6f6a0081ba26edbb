"""The state of a volume over HTTP: used, free, by pod, what goes next; and what hostile folders make of it.

That what is foretold is what a recorder then does is in tests/recorder/test_store_outlook.py.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dump_folders import HOUR, age, count, incident, put, rewrite
from sidecar_process import eventually
from view_rig import Viewer

from sidecar.dumps.catalog import Catalog
from sidecar.dumps.volume import Volume
from sidecar.keeping import about
from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping
from sidecar.recorder.survey import survey
from sidecar.web.counters import seeded

KEEPING = Keeping(2, None, 48 * HOUR)
NOBODY = 65534


@pytest.fixture
def volume_of_nobody() -> Iterator[Path]:
    """An empty folder that everybody may reach; `tmp_path` lies below one of root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def says(pod: Path, keeping: Keeping = KEEPING) -> Path:
    """The counters file that a living sidecar leaves in its folder."""
    counts = seeded(())
    counts.about = about(PodInfo(pod.parent.name, pod.name, f"uid-{pod.name}"), keeping)
    pod.mkdir(parents=True, exist_ok=True)
    file = pod / f".counters-uid-{pod.name}.json"
    file.write_bytes(counts.dump())
    return file


def whole(viewer: Viewer) -> dict[str, Any]:
    """On a busy machine one look may not come to the end; the next one goes on."""
    return eventually(lambda: (s := viewer.ask("/api/v1/volume").json())["complete"] and s, "the whole volume", 60)


def test_the_volume_by_pod_and_what_goes_next(tmp_path):
    """One pod with its limits, one whose sidecar is dead, one of which nothing is known, one with no incident yet."""
    alive, dead, unknown = (tmp_path / "prod" / name for name in ("llm-0", "llm-1", "llm-2"))
    made = [put(alive, incident(hours, f"TP{hours}", pod="prod/llm-0")) for hours in (1, 2, 3)]
    (put(alive, incident(50, pod="prod/llm-0")) / ".pinned").touch()
    for pod in (dead, unknown):
        put(pod, incident(90, pod=f"prod/{pod.name}"))
    says(alive)
    says(tmp_path / "prod" / "llm-3")
    old = says(dead)
    os.utime(old, (old.stat().st_mtime - 4 * HOUR,) * 2)
    with Viewer(tmp_path) as viewer:
        state = whole(viewer)
    assert (state["incidents"], state["pinned"], state["unreadable"], state["complete"]) == (6, 1, 0, True)
    assert state["size_bytes"] >= state["used_bytes"] > 0
    assert 0 <= state["free_bytes"] <= state["size_bytes"] - state["used_bytes"]
    pods = {row["pod"]: row for row in state["pods"]}
    assert list(pods) == ["llm-0", "llm-1", "llm-2", "llm-3"], "the largest first"
    assert state["bytes"] == sum(row["bytes"] for row in pods.values())
    assert pods["llm-0"]["limits"] == {"max_incidents": 2, "max_bytes": None, "max_age_seconds": 48 * HOUR}
    steps = [(step["path"].rpartition("/")[2], step["why"], step["at"] is None) for step in pods["llm-0"]["next"]]
    assert steps == [
        (made[2].name, "number", False), (made[1].name, "number", False), (made[0].name, "number", True),
    ]  # fmt: skip
    assert pods["llm-0"]["next"][0]["at"] <= state["at"], "it is due"
    assert (pods["llm-1"]["alive"], pods["llm-1"]["next"]) == (False, [])
    assert pods["llm-1"]["limits"] is not None
    assert (pods["llm-2"]["alive"], pods["llm-2"]["limits"], pods["llm-2"]["next"]) == (None, None, [])
    assert (pods["llm-3"]["alive"], pods["llm-3"]["incidents"], pods["llm-3"]["newest"]) == (True, 0, None)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, "{}", '{"pod": 7, "keeps": 7}', '{"keeps": {"max_incidents": -1}}', " " * (2 << 20)],
)
def test_a_counters_file_of_somebody_else_foretells_nothing(tmp_path, text):
    put(tmp_path / "prod" / "llm-0", incident(1, pod="prod/llm-0"))
    (tmp_path / "prod" / "llm-0" / ".counters-x.json").write_text(text)
    (row,) = Volume(str(tmp_path), Catalog(str(tmp_path))).look(600)["pods"]
    assert (row["incidents"], row["limits"], row["next"]) == (1, None, [])


@pytest.mark.parametrize(("hours", "alive"), [(0, True), (4, False)])
def test_a_sidecar_of_an_older_version_lives_all_the_same(tmp_path, hours, alive):
    """Its counters file says nothing of limits, and by its age whether somebody writes it."""
    put(tmp_path / "prod" / "llm-0", incident(1, pod="prod/llm-0"))
    file = count(tmp_path / "prod" / "llm-0", "uid-llm-0", 1)
    os.utime(file, (file.stat().st_mtime - hours * HOUR,) * 2)
    (row,) = Volume(str(tmp_path), Catalog(str(tmp_path))).look(600)["pods"]
    assert (row["alive"], row["limits"], row["next"]) == (alive, None, [])


@pytest.mark.parametrize(("key", "value"), [("max_age_seconds", 1e300), ("headroom", None), ("max_bytes", True)])
def test_limits_that_are_none_are_not_taken(tmp_path, key, value):
    file = says(tmp_path / "prod" / "llm-0")
    put(file.parent, incident(1, pod="prod/llm-0"))
    top = json.loads(file.read_bytes())
    top["keeps"][key] = value
    file.write_text(json.dumps(top))
    (row,) = Volume(str(tmp_path), Catalog(str(tmp_path))).look(600)["pods"]
    assert (row["limits"], row["next"]) == (None, [])


def test_hostile_incidents_are_counted_and_harm_nothing(tmp_path):
    """Links, a gigabyte of JSON, a lock beside millions of values: nothing outside is measured or listed."""
    outside = put(tmp_path / "outside", incident(3))
    (outside / "large").write_bytes(bytes(8 << 20))
    folder = tmp_path / "volume"
    pod = folder / "evil" / "pod"
    says(pod, Keeping(200, None))
    home = put(pod, incident(6, pod="evil/pod"))
    (home / "link").symlink_to(outside)
    (pod / incident(7).id).symlink_to(outside)
    os.truncate(put(pod, incident(8)) / "incident.json", 1 << 30)
    many = put(pod, incident(9), sealed=False)
    (many / "incident.json").write_text("[" + "[]," * 5_000_000 + "[]]")
    (many / ".lock").touch()
    os.mkfifo(pod / ".counters-fifo.json")
    (pod / ".counters-link.json").symlink_to(outside / "incident.json")
    (folder / "evil" / "linked").symlink_to(tmp_path)
    with Viewer(folder) as viewer:
        state = whole(viewer)
    (row,) = state["pods"]
    assert (row["incidents"], row["unreadable"]) == (4, 3)
    assert row["bytes"] < 32 << 20
    assert row["limits"] == {"max_incidents": 200, "max_bytes": None, "max_age_seconds": None}


def test_a_look_is_bounded_and_the_next_one_goes_further(tmp_path):
    """Out of time it says so, and foretells nothing of what it has not seen whole; asked again it comes to the end."""
    for number in range(30):
        put(tmp_path / "prod" / "llm-0", incident(1 + number, f"TP{number}", pod="prod/llm-0"))
    says(tmp_path / "prod" / "llm-0")
    age(tmp_path, 1)
    volume = Volume(str(tmp_path), Catalog(str(tmp_path)))
    ticks = itertools.count()
    first = volume.look(60, lambda: float(next(ticks)))
    assert first["complete"] is False
    assert first["pods"][0]["next"] == []
    state = next(s for s in (volume.look(60, lambda: float(next(ticks))) for _ in range(30)) if s["complete"])
    assert (state["incidents"], len(state["pods"][0]["next"])) == (30, 20), "at most twenty steps of a pod"


@pytest.mark.root
def test_a_folder_that_may_not_be_looked_into_hides_nothing(volume_of_nobody):
    """Another user's, beside a pod's incidents and in one of them: the volume's state is told, and the pod's retention
    goes on."""
    pod = volume_of_nobody / "prod" / "llm-0"
    says(pod, Keeping(2, None, None, volume_limit=1 << 30))
    homes = [put(pod, incident(hours, pod="prod/llm-0")) for hours in (1, 2, 3)]
    for closed in (pod / "another", homes[0] / "pyspy"):
        closed.mkdir(exist_ok=True)
        closed.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        state = Volume(str(volume_of_nobody), Catalog(str(volume_of_nobody))).look(60)
        root = os.open(pod, os.O_RDONLY)
        try:
            found = survey(root, PodInfo("prod", "llm-0", "uid-llm-0"))
        finally:
            os.close(root)
    finally:
        os.seteuid(0)
    (row,) = state["pods"]
    assert (row["incidents"], row["limits"]["max_incidents"]) == (3, 2)
    assert found is not None
    assert {kept.id for kept in found.kept} == {home.name for home in homes[1:]}


def test_what_is_kept_of_a_look_is_small_whatever_the_records_say(tmp_path):
    """Of 16 KiB of a record's beginning, as many lists as fit there, nothing stays; and of 10 MiB of one that was left
    open nothing is read where records of 4 MiB are the most."""
    pod = tmp_path / "evil" / "pod"
    says(pod, Keeping(200, None))
    for hours in range(2, 42):
        lists = "[]," * 5_000 + "[]"
        (put(pod, incident(hours)) / "incident.json").write_text(f'{{\n"throttled": {{"count": [{lists}]}}\n}}')
    home = put(pod, incident(50), sealed=False)
    rewrite(home, junk=[{} for _ in range(160_000)], padding=" " * (10 << 20))
    (home / ".lock").touch()
    age(tmp_path, 1)
    limit = 4 << 20
    tracemalloc.start()
    try:
        volume = Volume(str(tmp_path), Catalog(str(tmp_path), limit), None, limit)
        state = volume.look(600)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert state["pods"][0]["incidents"] == 41
    assert kept < 2 << 20
    assert most < 16 << 20
