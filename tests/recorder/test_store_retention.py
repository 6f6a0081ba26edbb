"""What the store gives up, in which order, and what it never touches: on a real folder, by a real `Store`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from recorder_rig import incident
from store_volumes import KIB64, MIB, an_id, present, put, record_of, tmpfs

from sidecar.model import PodInfo, Reason
from sidecar.policy.throttle import Throttled
from sidecar.recorder.record import build, encode
from sidecar.recorder.store import Store

NOW = time.time()
HOUR = 3600.0
US = PodInfo("prod", "llama-0", "uid-1", "node-a")
THEM = PodInfo("prod", "llama-1", "uid-2", "node-b")


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


def store(dumps: Path, max_count: int | None = None, max_bytes: int | None = None, **more) -> Store:
    return Store(str(dumps), max_count, max_bytes, pod=more.pop("pod", US), **more)


def loop(dumps: Path, count: int = 6, size: int = KIB64, pod: PodInfo = US) -> list[str]:
    """The same failure, time after time, the oldest first."""
    return [put(store(dumps, pod=pod), NOW - (count + 1 - n) * HOUR, size, pod=pod) for n in range(count)]


def test_over_its_bytes_the_repeats_become_summaries_and_the_record_says_so(dumps: Path) -> None:
    names = loop(dumps)
    before = store(dumps).survey()
    assert before is not None
    removed = store(dumps, max_bytes=before.incident_bytes - 2 * KIB64 + 1).prune()
    assert removed == []
    assert present(dumps) == names
    collapsed = [name for name in names if record_of(dumps, name)["collapsed"]]
    assert collapsed == names[1:3], "neither the first nor the newest, and no more than needed"
    record = record_of(dumps, names[1])
    gone, failed = record["artifacts"]
    assert (gone["status"], gone["path"], gone["bytes"], gone["sha256"]) == ("skipped", "", 0, "")
    assert gone["detail"] == f"removed: a repeat of {names[0]}"
    assert (failed["status"], failed["detail"]) == ("failed", "no driver")
    assert [path.name for path in (dumps / names[1]).iterdir()] == ["incident.json"]
    assert record["failures"][0]["signal"] == 9
    assert record["sealed"] is True
    after = store(dumps).survey()
    assert after is not None
    assert after.incident_bytes <= before.incident_bytes - 2 * KIB64 + 1


def test_the_first_of_each_failure_survives_a_crash_loop(dumps: Path) -> None:
    """Ten incidents of two failures under a limit of four: both firsts are there, whole, and the newest."""
    names = []
    for n in range(10):
        kind = f"rankdied-sigkill-{n % 2}"
        names.append(put(store(dumps, max_count=4), NOW - (20 - n) * HOUR, signature=kind, prune=True))
    assert len(present(dumps)) == 4
    assert {names[0], names[1], names[-1]} <= set(present(dumps))
    assert (dumps / names[0] / "process" / "TP0.json").stat().st_size == KIB64


def test_a_throttled_summary_is_no_first(dumps: Path) -> None:
    summary = put(
        store(dumps), NOW - 9 * HOUR, 0, signature="rankdied-sigkill", throttled=Throttled(1, 1, NOW - 10 * HOUR)
    )
    full = put(store(dumps), NOW - 8 * HOUR)
    newest = put(store(dumps), NOW - 7 * HOUR, signature="rankdied-oom")
    assert store(dumps, max_count=2).prune() == [summary]
    assert present(dumps) == [full, newest]


def test_the_age_removes_also_while_nothing_happens_and_the_newest_too(dumps: Path) -> None:
    old, young = put(store(dumps), NOW - 9 * HOUR), put(store(dumps), NOW - HOUR)
    assert store(dumps, max_age=5 * HOUR).prune() == [old]
    assert store(dumps, max_age=0.5 * HOUR).prune() == [young]


def test_one_that_was_just_sealed_by_another_recorder_stays(dumps: Path) -> None:
    """Larger than the quota, and the only one: whoever only stands by leaves it alone."""
    name = put(store(dumps), NOW - 10, MIB)
    standing_by = store(dumps, max_bytes=KIB64)
    assert standing_by.prune() == []
    assert present(dumps) == [name]


def test_one_that_a_live_recorder_writes_stays_however_old_it_is(dumps: Path) -> None:
    writer = store(dumps)
    name = an_id(NOW - 9 * HOUR)
    writer.open(name, encode(build(incident(id=name), ())))
    other = put(store(dumps), NOW - 8 * HOUR)
    newest = put(store(dumps), NOW - 7 * HOUR)
    assert store(dumps, max_count=0).prune() == [other]
    assert present(dumps) == [name, newest]
    writer.close()


def test_headroom_is_made_of_repeats_before_it_is_needed(dumps: Path) -> None:
    """A quota that is nearly full of repeats gives room for a coredump at the end of the incident before."""
    names = loop(dumps, count=8, size=MIB)
    wide = store(dumps, max_bytes=9 * MIB, headroom=100 * MIB)
    wide.survey()
    assert wide.room < MIB
    wide.tidy()
    assert wide.room >= 4 * MIB, "headroom is at most half of the quota"
    assert present(dumps) == names
    assert not record_of(dumps, names[0])["collapsed"]
    assert not record_of(dumps, names[-1])["collapsed"]


@pytest.mark.root
def test_below_the_free_floor_repeats_give_way_and_firsts_stay(tmp_path: Path) -> None:
    """Somebody else fills the volume: that costs no first, however little is left."""
    with tmpfs(tmp_path / "volume", "8m") as volume:
        names = loop(volume / "dumps", count=4, size=MIB)
        low = store(volume / "dumps", free_floor=4 * MIB + MIB // 2)
        low.prune()
        assert [record_of(volume / "dumps", name)["collapsed"] for name in names] == [False, True, False, False]
        store(volume / "dumps", free_floor=8 * MIB).prune()
        assert [record_of(volume / "dumps", name)["collapsed"] for name in names] == [False, True, True, False]
        assert present(volume / "dumps") == names


def test_in_an_emptydir_everything_in_the_folder_counts_towards_its_share(dumps: Path) -> None:
    """80 % of the sizeLimit, the file of another included: going over it evicts the engine's pod."""
    names = loop(dumps, count=4, size=MIB)
    (dumps / "theirs").write_bytes(os.urandom(2 * MIB))
    small = store(dumps, max_bytes=100 * MIB, volume_limit=7 * MIB)
    small.prune()
    found = small.survey()
    assert found is not None
    assert found.dump_bytes <= 0.8 * 7 * MIB
    assert (dumps / "theirs").exists()
    assert record_of(dumps, names[1])["collapsed"]


# -- two pods in one folder -----------------------------------------------------------------------------------------


def test_another_pods_incidents_are_never_collapsed_or_removed_before_their_age(dumps: Path) -> None:
    theirs = loop(dumps, count=4, pod=THEM)
    ours = [put(store(dumps), NOW - (0.8 - 0.1 * n) * HOUR, pod=US) for n in range(2)]
    assert store(dumps, max_count=2).prune() == []
    assert store(dumps, max_bytes=KIB64).prune() == [ours[0]]
    assert [record_of(dumps, name)["collapsed"] for name in theirs] == [False] * 4
    assert store(dumps, max_age=4.5 * HOUR).prune() == theirs[:1]


def test_another_pods_bytes_count(dumps: Path) -> None:
    loop(dumps, count=4, size=MIB, pod=THEM)
    ours = store(dumps, max_bytes=6 * MIB)
    ours.survey()
    assert MIB < ours.room < 2 * MIB


def test_another_pods_open_incident_is_not_taken_up_and_what_it_writes_is_not_touched(dumps: Path) -> None:
    """Ours is. So is none of a pod that had our name before us: its processes are not in our namespace."""
    for n, pod in enumerate((THEM, PodInfo("prod", "llama-0", "uid-0"), US)):
        put(store(dumps, pod=pod), NOW - 60 * n, pod=pod, sealed=False)
    partial = dumps / an_id(NOW) / "process" / "TP1.core.partial"
    partial.write_bytes(b"x")
    found = store(dumps).survey()
    assert found is not None
    assert [left["pod"]["uid"] for left in found.unfinished] == ["uid-1"]
    assert partial.exists()
    assert (dumps / an_id(NOW) / ".lock").exists()


def test_another_pods_incidents_do_not_throttle_us(dumps: Path) -> None:
    put(store(dumps, pod=THEM), NOW - 60, pod=THEM)
    put(store(dumps, pod=PodInfo("prod", "llama-0", "uid-0")), NOW - 50, pod=PodInfo("prod", "llama-0", "uid-0"))
    put(store(dumps), NOW - 40, pod=US, reason=Reason.MANUAL)
    put(store(dumps), NOW - 30, 0, pod=US, throttled=Throttled(2, 7, NOW - 300))
    found = store(dumps).survey()
    assert found is not None
    assert [(one.id, one.count) for one in found.earlier] == [(an_id(NOW - 50), 0), (an_id(NOW - 30), 7)]


def test_an_incident_of_another_pod_with_our_id_is_not_written_to(dumps: Path) -> None:
    name = put(store(dumps, pod=THEM), NOW, pod=THEM)
    before = (dumps / name / "incident.json").read_bytes()
    with pytest.raises(FileExistsError, match="another pod"):
        store(dumps).open(name, encode(build(incident(id=name, pod=US), ())))
    assert (dumps / name / "incident.json").read_bytes() == before


# -- what was left half done ----------------------------------------------------------------------------------------


def test_a_half_written_file_counts_while_it_is_written_and_goes_when_nobody_writes(dumps: Path) -> None:
    """Its child was killed together with its recorder; while the recorder lives, it holds the incident's lock."""
    writer = store(dumps)
    name = an_id(NOW)
    writer.open(name, encode(build(incident(id=name), ())))
    folder = dumps / name / "cuda_coredump"
    folder.mkdir()
    partial = folder / "TP0.core.partial"
    partial.write_bytes(os.urandom(MIB))
    (folder / "TP1.core").write_bytes(b"whole")
    other = store(dumps, max_bytes=10 * MIB)
    found = other.survey()
    assert found is not None
    assert found.held == {name}
    assert found.kept[0].bytes > MIB
    assert partial.exists()
    writer.close()
    found = other.survey()
    assert found is not None
    assert found.kept[0].bytes < MIB
    assert sorted(path.name for path in folder.iterdir()) == ["TP1.core"]


def test_an_incident_half_collapsed_is_collapsed_to_the_end(dumps: Path) -> None:
    name = put(store(dumps), NOW - HOUR)
    record = record_of(dumps, name)
    (dumps / name / "incident.json").write_bytes(encode({**record, "collapsed": True}))
    found = store(dumps).survey()
    assert found is not None
    assert [path.name for path in (dumps / name).iterdir()] == ["incident.json"]
    assert found.kept[0].bytes == found.kept[0].core


def test_a_file_that_a_child_left_unnamed_is_adopted_without_being_read_into_memory(dumps: Path) -> None:
    """A coredump as large as one likes: its size is told, and its sum where it is not too large."""
    name = put(store(dumps), NOW, sealed=False)
    (dumps / name / "cuda_coredump").mkdir()
    for label, size in (("TP0", 3 * MIB), ("TP1", 200 * MIB)):
        with (dumps / name / "cuda_coredump" / f"{label}.core").open("wb") as file:
            file.truncate(size)
    (dumps / name / "cuda_coredump" / "TP2.core.partial").touch()
    again = store(dumps)
    found = again.open(name, b"")
    again.close()
    assert found is not None
    sizes = {path: (size, bool(digest)) for path, size, digest in found.unlisted}
    assert sizes == {
        "cuda_coredump/TP0.core": (3 * MIB, True),
        "cuda_coredump/TP1.core": (200 * MIB, False),
    }


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[" * 100_000, b'{\n "pod": 7,\n "throttled": {"count": "x"},\n "signature": []\n}', b"\xff" * 100,
        b'{\n "reason": {},\n "collapsed": 1,\n "throttled": {"count": [1]},\n "pod": {"uid": 5}\n}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("left_open", [False, True])
def test_a_record_that_is_none_breaks_nothing(dumps: Path, text: bytes, left_open: bool) -> None:
    name = put(store(dumps), NOW - 2 * HOUR, sealed=not left_open)
    (dumps / name / "incident.json").write_bytes(text)
    good = put(store(dumps), NOW - HOUR)
    found = store(dumps, max_count=1, max_bytes=1).tidy()
    assert found is not None
    assert [kept.id for kept in found.kept] == [good]


def test_an_open_incident_under_another_name_is_not_taken_up(dumps: Path) -> None:
    """Somebody renamed the folder, or wrote it: the guard must not be told of an id that is not there."""
    name = put(store(dumps), NOW - HOUR, sealed=False)
    os.rename(dumps / name, dumps / an_id(NOW))
    found = store(dumps).survey()
    assert found is not None
    assert found.unfinished == ()


def test_a_record_of_an_earlier_version_is_kept_like_a_first(dumps: Path) -> None:
    """It has no signature: nothing says that it is a repeat."""
    name = put(store(dumps), NOW - 9 * HOUR)
    old = {key: value for key, value in record_of(dumps, name).items() if key not in ("signature", "throttled")}
    (dumps / name / "incident.json").write_bytes(encode(old))
    names = loop(dumps, count=3)
    assert store(dumps, max_count=3).prune() == [names[1]]
