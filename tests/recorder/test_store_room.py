"""Room for large files, little volumes, and volumes that break in the middle: what was kept, what was said."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from recorder_rig import ID, Ranks, Start, incident, rank_process, wait_for
from store_volumes import MIB, call, disk, fill, put, tmpfs

from sidecar.model import Artifact, ArtifactStatus, PodInfo
from sidecar.recorder.capture.base import Piece, Target
from sidecar.recorder.captures import Taken
from sidecar.recorder.evidence import Evidence
from sidecar.recorder.record import build, encode
from sidecar.recorder.store import SMALL, Store

NOW = time.time()
US = PodInfo("prod", "llama-0", "uid-1")


def opened(folder: Path, name: str = ID, **limits) -> Store:
    """A store with an open incident, that has looked at its volume."""
    store = Store(str(folder), None, limits.pop("max_bytes", None), **limits)
    store.survey()
    store.open(name, encode(build(incident(id=name), ())))
    return store


def streamed(store: Store, folder: Path, size: int) -> Artifact:
    """A large file that a child has put into the incident's folder by itself."""
    place = folder / ID / "cuda_coredump"
    place.mkdir(exist_ok=True)
    data = os.urandom(size)
    (place / "TP0.core").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Artifact("cuda_coredump", "TP0", ArtifactStatus.CAPTURED, "cuda_coredump/TP0.core", size, digest)


def test_room_is_what_the_quota_leaves_and_large_files_beyond_it_are_refused(tmp_path: Path) -> None:
    """A large file that a child is writing counts from its first byte."""
    dumps = tmp_path / "dumps"
    put(Store(str(dumps), None, None), NOW - 60, 2 * MIB)
    store = opened(dumps, max_bytes=8 * MIB)
    assert 5 * MIB < store.room < 6 * MIB
    with pytest.raises(OSError, match="dump-max-bytes") as refused:
        store.write_artifact("pyspy/TP0.json", b"x" * (6 * MIB))
    assert refused.value.errno == errno.EDQUOT
    assert not (dumps / ID / "pyspy" / "TP0.json").exists()
    (dumps / ID / "cuda_coredump").mkdir()
    (dumps / ID / "cuda_coredump" / "TP0.core.partial").write_bytes(os.urandom(3 * MIB))
    store.write_record(encode(build(incident(), ())))
    assert 2 * MIB < store.room < 3 * MIB
    store.write_artifact("pyspy/TP1.json", b"x" * (2 * MIB))
    store.write_artifact("pyspy/TP0.txt", b"x" * SMALL)
    store.close()


def test_room_is_not_known_before_the_volume_was_looked_at(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "dumps"), None, None)
    store.open(ID, encode(build(incident(), ())))
    assert store.room == 0
    store.make_room()
    assert store.room > 0
    store.close()


def test_what_retention_may_remove_is_room_only_once_it_is_removed(tmp_path: Path) -> None:
    """A quota full of repeats: none at the opening, some when room was made; the first is still whole then."""
    dumps = tmp_path / "dumps"
    names = [put(Store(str(dumps), None, None), NOW - 600 + n, MIB) for n in range(6)]
    store = opened(dumps, max_bytes=6 * MIB, headroom=64 * MIB)
    assert store.room == 0
    store.make_room()
    assert store.room > 2 * MIB
    assert (dumps / names[0] / "process" / "TP0.json").stat().st_size == MIB
    store.close()


@pytest.mark.root
def test_below_the_floor_only_a_little_small_text_is_written(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "volume", "16m") as volume:
        store = opened(volume / "dumps", free_floor=16 * MIB)
        assert store.room == 0
        taken, refused = [], []
        for n in range(10):
            try:
                taken.append(store.write_artifact(f"pyspy/TP{n}.json", b"x" * (MIB // 2)))
            except OSError as error:
                refused.append(error.errno)
        assert len(taken) == 8
        assert refused == [errno.EDQUOT] * 2
        store.seal(encode(build(incident(), (), sealed=True)))
        store.close()
        assert os.statvfs(volume).f_bavail * os.statvfs(volume).f_frsize > 11 * MIB


@pytest.mark.root
def test_the_last_record_of_a_full_volume_takes_the_place_of_a_repeats_files(tmp_path: Path) -> None:
    """With no reserve left: the oldest repeat is collapsed, and the incident is sealed."""
    with tmpfs(tmp_path / "volume", "8m") as volume:
        names = [put(Store(str(volume), None, None), NOW - 600 + n, MIB) for n in range(3)]
        store = opened(volume)
        (volume / ".reserve").unlink()
        fill(volume / "filler")
        store.seal(encode(build(incident(), (), notes=["x" * 20_000], sealed=True)))
        store.close()
        assert (volume / names[0] / "process" / "TP0.json").exists()
        assert not (volume / names[1] / "process").exists()
        assert not (volume / ID / ".lock").exists()


# -- in the middle: what a child wrote by itself, when the volume breaks --------------------------------------------


def test_a_large_file_that_is_gone_at_the_sealing_is_told(tmp_path: Path) -> None:
    store = opened(tmp_path)
    artifact = streamed(store, tmp_path, 2 * MIB)
    assert store.sync([artifact.path]) == []
    (tmp_path / ID / artifact.path).unlink()
    ((path, error),) = store.sync([artifact.path])
    assert (path, error.errno) == (artifact.path, errno.ENOENT)
    store.close()


@pytest.mark.root
def test_a_disk_that_gives_eio_loses_the_file_by_name_and_not_the_others(tmp_path: Path) -> None:
    """The large file was taken by the page cache and is lost at the sync; what was durable before is still there."""
    with disk(tmp_path / "below") as broken:
        volume = broken.folder
        store = opened(volume)
        store.write_artifact("process/TP0.json", b"small" * 1000)
        assert store.sync(["process/TP0.json"]) == []
        broken.lose_its_end()
        artifact = streamed(store, volume, 16 * MIB)
        ((path, error),) = store.sync([artifact.path])
        assert path == artifact.path
        assert error.errno == errno.EIO
        assert (volume / ID / "process" / "TP0.json").read_bytes() == b"small" * 1000
        store.close()


@pytest.mark.root
def test_a_volume_that_turns_read_only_keeps_what_it_has(tmp_path: Path) -> None:
    """What was written stays; each further step says EROFS, and the room is none that anybody could use."""
    with tmpfs(tmp_path / "volume", "16m") as volume:
        sealed = put(Store(str(volume), None, None), NOW - 86400)
        store = opened(volume)
        artifact = streamed(store, volume, 2 * MIB)
        store.close()
        call("mount", "-o", "remount,ro", str(volume))
        again = Store(str(volume), None, MIB)
        found = again.survey()
        assert found is not None
        assert [kept.id for kept in found.kept] == sorted([ID, sealed])
        with pytest.raises(OSError, match="Read-only"):
            again.open(ID, b"{}")
        again.close()
        assert (volume / ID / artifact.path).stat().st_size == 2 * MIB
        # Whoever stands by and cannot remove what is over the limit says so.
        with pytest.raises(OSError, match="Read-only"):
            Store(str(volume), None, None, max_age=1.0).prune()


@pytest.mark.root
def test_a_volume_that_is_unmounted_in_the_middle_does_not_hold_up_the_seal(
    start: Start, ranks: Ranks, tmp_path: Path
) -> None:
    """What is in hand is written, there or where the volume was; whatever is not there any more is said."""
    identity = ranks.start()
    ranks.stop(identity)
    with tmpfs(tmp_path / "volume", "16m") as volume:
        rig = start(volume / "dumps", dump_max_age=None)
        rig.until("standing_by")
        what = incident(captures=("process",))
        rig.begin(what, [rank_process(identity, "TP0")])
        rig.until("opened")
        wait_for(lambda: any(artifact["path"] for artifact in rig.record()["artifacts"]))
        subprocess.run(["umount", "--lazy", str(volume)], check=True)
        heard = rig.seal(what)
        assert heard[-1]["type"] == "sealed"
        assert rig.process.wait(5) == 0


@pytest.mark.root
def test_a_streamed_file_lost_to_eio_is_no_artifact_of_the_record(ranks: Ranks, tmp_path: Path) -> None:
    """From the collector's piece to the artifact in the record: failed, with no path, and why."""
    target = Target(ranks.start(), "scheduler", "TP0", "", "TP0", True)
    evidence = Evidence()
    with disk(tmp_path / "below") as broken:
        store = opened(broken.folder)
        broken.lose_its_end()
        file = streamed(store, broken.folder, 16 * MIB)
        piece = Piece("cuda_coredump", ArtifactStatus.CAPTURED, file.path, written=(file.bytes, file.sha256))
        evidence.add(Taken(target, (piece,), 1.0))
        assert evidence.paths() == [file.path]
        for path, error in store.sync(evidence.paths()):
            evidence.vanished(path, errno.errorcode[error.errno or 0])
        (lost,) = evidence.artifacts()
        assert (lost.status, lost.path, lost.bytes, lost.detail) == (ArtifactStatus.FAILED, "", 0, "EIO")
        store.close()
