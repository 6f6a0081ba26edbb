"""What the volume's state foretells is what a recorder's retention then does, on a real folder by a real `Store`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from store_volumes import KIB64, MIB, present, put, record_of

from sidecar.dumps.catalog import Catalog
from sidecar.dumps.volume import Volume
from sidecar.keeping import about
from sidecar.model import PodInfo
from sidecar.policy.retention import Keeping
from sidecar.policy.throttle import Throttled
from sidecar.recorder.store import Store
from sidecar.system.clock import stamp
from sidecar.web.counters import seeded

HOUR = 3600.0
LAST = 768 << 10  # what is small is written whether or not there is room for it
US = PodInfo("prod", "llama-0", "uid-1", "node-a")
THEM = PodInfo("prod", "llama-1", "uid-2", "node-b")


def store(dumps: Path, keeping: Keeping, pod: PodInfo = US) -> Store:
    return Store(
        str(dumps), keeping.max_count, keeping.max_bytes, max_age=keeping.max_age, volume_limit=keeping.volume_limit,
        free_floor=keeping.free_floor, headroom=keeping.headroom, pod=pod,
    )  # fmt: skip


def full_folder(dumps: Path) -> None:
    """Repeats of two failures, a pinned one, a throttled one, one collapsed before, one left open long ago, one sealed
    whose lock stayed, one half written file, another pod's, and things that are no incidents."""
    wide = Keeping(None, None)
    now = time.time()
    names = [put(store(dumps, wide), now - (30 - n) * HOUR, (1 + n % 3) * KIB64, f"kind-{n % 2}") for n in range(12)]
    (dumps / names[3] / ".pinned").touch()
    (dumps / names[5] / ".lock").touch()
    (dumps / names[6] / "process" / "TP1.json.partial").write_bytes(bytes(MIB))
    put(store(dumps, wide), now - 15 * HOUR, 0, "kind-0", Throttled(1, 1, now - 16 * HOUR))
    put(store(dumps, wide), now - 14 * HOUR, KIB64, sealed=False)
    for hours in (40, 13):
        put(store(dumps, wide, THEM), now - hours * HOUR, KIB64, "kind-0", pod=THEM)
    put(store(dumps, wide), now - 12 * HOUR, LAST, "kind-1")
    (dumps / "engine").mkdir()
    (dumps / "engine" / "core").write_bytes(bytes(MIB))
    (dumps / "20261120T235959.123Z").mkdir()


def says(dumps: Path, keeping: Keeping) -> dict[str, Any]:
    """What is told of our pod, by what its sidecar leaves on the volume."""
    counts = seeded(())
    counts.about = about(US, keeping)
    (dumps / ".counters-uid-1.json").write_bytes(counts.dump())
    state = Volume(str(dumps), Catalog(str(dumps))).look(600)
    assert state["complete"]
    (row,) = [row for row in state["pods"] if row["pod"] == US.name]
    return row | {"now": state["at"]}


def what_goes(dumps: Path, does: Any) -> tuple[set[tuple[str, str]], int]:
    """The steps that `does` brings about, and the bytes of incidents that are left."""
    before = {name: collapsed(dumps, name) for name in present(dumps)}
    does()
    gone = {("remove", name) for name in before if not (dumps / name).exists()}
    small = {
        ("collapse", name)
        for name, was in before.items()
        if (dumps / name).exists() and not was and collapsed(dumps, name)
    }
    survey = store(dumps, Keeping(None, None)).survey()
    assert survey is not None
    return gone | small, survey.incident_bytes


def collapsed(dumps: Path, name: str) -> bool:
    return (dumps / name / "incident.json").exists() and record_of(dumps, name)["collapsed"] is True


def steps(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(row["action"], row["path"]) for row in rows}


@pytest.mark.parametrize(
    ("keeping", "whys"),
    [
        (Keeping(9, None), {"number"}),
        (Keeping(None, 2 * MIB), {"bytes"}),
        (Keeping(None, MIB), {"bytes"}),
        (Keeping(10, MIB, 20 * HOUR), {"age", "bytes"}),
        (Keeping(None, 100 * MIB, volume_limit=4 * MIB), {"bytes"}),
        (Keeping(None, 5 * MIB, headroom=100 * MIB), {"bytes"}),
        (Keeping(200, 100 * MIB, 30 * 24 * HOUR), set()),
    ],
)
def test_what_is_due_is_what_a_recorder_does(tmp_path: Path, keeping: Keeping, whys: set[str]) -> None:
    """Every limit alone and together: the same incidents, removed or collapsed, and what is freed is as told."""
    full_folder(tmp_path)
    row = says(tmp_path, keeping)
    due = [step for step in row["next"] if step["at"] is not None and step["at"] <= row["now"]]
    assert {step["why"] for step in due} == whys
    assert row["alive"] is True
    done, left = what_goes(tmp_path, lambda: store(tmp_path, keeping).tidy())
    assert steps(due) == done
    if all(step["action"] == "remove" for step in due):
        assert row["bytes"] + foreign(tmp_path, left, row) - sum(step["bytes"] for step in due) == left
    assert [step for step in says(tmp_path, keeping)["next"] if step["at"] and step["at"] <= row["now"]] == []


def foreign(dumps: Path, left: int, row: dict[str, Any]) -> int:
    """Bytes of the other pod's incidents, which are counted with ours in one folder."""
    state = Volume(str(dumps), Catalog(str(dumps))).look(600)
    return sum(other["bytes"] for other in state["pods"] if other["pod"] != row["pod"])


@pytest.mark.parametrize("keeping", [Keeping(15, None), Keeping(None, 3 * MIB), Keeping(15, 3 * MIB, 90 * HOUR)])
def test_what_the_next_incident_brings_about(tmp_path: Path, keeping: Keeping) -> None:
    """One more, as large as the last, and retention at its end takes what was foretold without a time."""
    full_folder(tmp_path)
    store(tmp_path, keeping).tidy()
    told = [step for step in says(tmp_path, keeping)["next"] if step["at"] is None]
    assert told
    done, _ = what_goes(tmp_path, lambda: put(store(tmp_path, keeping), time.time(), LAST, "another-kind", prune=True))
    assert steps(told) == done


def test_what_goes_with_age_has_its_time(tmp_path: Path) -> None:
    """Oldest first, at the moment when it is too old; a pinned one never, and a dead sidecar drops nothing."""
    wide = Keeping(200, None, 48 * HOUR)
    now = time.time()
    walls = [now - hours * HOUR for hours in (30, 20, 10)]
    old, pinned, young = (put(store(tmp_path, wide), wall) for wall in walls)
    (tmp_path / pinned / ".pinned").touch()
    row = says(tmp_path, wide)
    assert [(step["path"], step["why"], step["action"]) for step in row["next"]] == [
        (old, "age", "remove"), (young, "age", "remove"),
    ]  # fmt: skip
    assert [step["at"][:22] for step in row["next"]] == [
        stamp(int(wall * 1000) / 1000 + 48 * HOUR)[:22] for wall in (walls[0], walls[2])
    ]
    assert row["limits"] == {"max_incidents": 200, "max_bytes": None, "max_age_seconds": 48 * HOUR}
