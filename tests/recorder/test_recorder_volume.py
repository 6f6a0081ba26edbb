"""Volumes that are full, read-only, gone or hung: captures go on, what is possible is kept, what is lost is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from recorder_rig import ID, Ranks, Start, artifacts, incident, rank_process, state_of, wait_for
from sidecar_process import eventually

from sidecar.model import Artifact, ArtifactStatus, Identity
from sidecar.recorder.capture.base import Piece, Target
from sidecar.recorder.captures import Taken
from sidecar.recorder.evidence import Evidence
from sidecar.recorder.store import Store, wall_of

Mount = Callable[[str], Path]
BIG = 300_000


def mounted(folder: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(folder)], check=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Mount]:
    folders: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"tmpfs{len(folders)}"
        folder.mkdir()
        mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "none")
        folders.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in folders:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, which a test may freeze."""
    image, folder = tmp_path / "image", tmp_path / "volume"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted(folder, "-o", "loop", str(image))
    try:
        yield folder
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(folder)], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def freeze(folder: Path) -> None:
    subprocess.run(["fsfreeze", "--freeze", str(folder)], check=True)


def thaw(folder: Path) -> None:
    subprocess.run(["fsfreeze", "--unfreeze", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take all the room there is; the recorder may take some of it meanwhile."""
    with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while os.statvfs(folder).f_bavail:
            file.write(bytes(4096))


def fill_and_take_the_reserve(folder: Path) -> None:
    """A recorder that stands by may still be at its retention, after which it sees to the reserve again."""

    def taken() -> bool:
        (folder / ".reserve").unlink(missing_ok=True)
        fill(folder)
        return not (folder / ".reserve").exists()

    eventually(taken, "a full volume without a reserve")


def big_spy(tmp_path: Path) -> str:
    """A py-spy whose JSON is big; its text is small."""
    folder = tmp_path / "bin"
    folder.mkdir()
    frames = [{"name": "f", "filename": "f.py", "line": 1, "locals": "x" * BIG}]
    stacks = [{"os_thread_id": 1, "thread_name": "main", "active": True, "owns_gil": True, "frames": frames}]
    (folder / "stacks").write_text(json.dumps(stacks))
    (folder / "py-spy").write_text(f'#!/bin/sh\nexec cat "{folder}/stacks"\n')
    (folder / "py-spy").chmod(0o755)
    return str(folder / "python")


@pytest.mark.root
def test_a_volume_with_little_room_gets_the_small_first(
    start: Start, ranks: Ranks, tmpfs: Mount, tmp_path: Path
) -> None:
    """The big JSON does not fit: text and state do, and the record says what was lost and why."""
    identity = ranks.start()
    ranks.stop(identity)
    rig = start(tmpfs("300k"), python=big_spy(tmp_path))
    rig.until("standing_by")
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("captures_done")
    rig.seal(what)
    assert {(m["what"], m["detail"]) for m in rig.heard if m["type"] == "lost"} == {("pyspy_json of TP0", "EDQUOT")}
    record = rig.record()
    found = artifacts(record)
    assert found["process", "TP0"]["status"] == found["pyspy_text", "TP0"]["status"] == "captured"
    lost = found["pyspy_json", "TP0"]
    assert (lost["status"], lost["detail"], lost["path"]) == ("failed", "EDQUOT", "")
    assert not (rig.dump_dir / ID / "pyspy" / "TP0.json").exists(), "half a file is no evidence"
    assert "lost: pyspy_json of TP0: EDQUOT" in record["notes"]
    assert record["sealed"] is True


@pytest.mark.root
def test_the_evidence_does_not_take_the_reserves_room(start: Start, ranks: Ranks, tmpfs: Mount) -> None:
    """On a full volume: more small files than the reserve has room for are lost, and the record of it is sealed."""
    identities = [ranks.start() for _ in range(12)]
    for identity in identities:
        ranks.stop(identity)
    folder = tmpfs("1m")
    rig = start(folder)
    rig.until("standing_by")
    fill(folder)
    what = incident()
    rig.begin(what, [rank_process(identity, f"TP{n}") for n, identity in enumerate(identities)])
    rig.until("captures_done")
    rig.seal(what)
    record = rig.record()
    assert record["sealed"] is True
    assert {a["status"] for (kind, _), a in artifacts(record).items() if kind == "process"} == {"failed"}
    assert not list((folder / ID).glob("*/*"))


@pytest.mark.root
def test_a_full_volume_gets_the_record_in_the_reserves_place(start: Start, ranks: Ranks, tmpfs: Mount) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    folder = tmpfs("1m")
    rig = start(folder)
    rig.until("standing_by")
    assert (folder / ".reserve").stat().st_size == 64 * 1024
    fill(folder)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("opened")
    assert not (folder / ".reserve").exists()
    rig.seal(what)
    assert rig.record()["sealed"] is True


@pytest.mark.root
def test_a_full_volume_without_a_reserve_loses_the_incident_and_says_so(
    start: Start, ranks: Ranks, tmpfs: Mount
) -> None:
    """Captures come all the same; and when there is room again before the end, so does the record."""
    identity = ranks.start()
    ranks.stop(identity)
    folder = tmpfs("1m")
    rig = start(folder)
    rig.until("standing_by")
    fill_and_take_the_reserve(folder)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    while not {"captures_done", "lost"} <= {message["type"] for message in rig.heard}:
        rig.receive()
    assert [m["status"] for m in rig.heard if m["type"] == "captured"] == ["captured"] * 3
    (lost,) = [m for m in rig.heard if m["type"] == "lost"]
    assert lost["what"] == "incident folder"
    assert lost["detail"].startswith("ENOSPC")
    (folder / "filler").unlink()
    rig.until("opened", 3)
    rig.seal(what)
    record = rig.record()
    assert {a["status"] for a in record["artifacts"]} == {"captured"}
    assert record["notes"][0].startswith("lost: incident folder: ENOSPC")


@pytest.mark.root
def test_a_read_only_volume_loses_the_incident_after_a_while_and_says_so(
    start: Start, ranks: Ranks, tmpfs: Mount
) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    folder = tmpfs("1m")
    mounted(folder, "-o", "remount,ro")
    rig = start(folder)
    assert rig.until("standing_by")[-1]["dump_bytes"] >= 0
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    heard = rig.until("captures_done")
    assert [m["status"] for m in heard if m["type"] == "captured"] == ["captured"] * 3
    rig.say("seal", what)
    heard = rig.drain()
    lost = [m for m in heard if m["type"] == "lost"]
    assert [m["what"] for m in lost if m in lost][-1] == "incident"
    assert any(m["detail"].startswith("EROFS") for m in rig.heard if m["type"] == "lost")
    assert rig.process.wait(2) == 1


@pytest.mark.root
def test_a_volume_that_refuses_in_the_middle_and_takes_again_loses_nothing(start: Start, volume: Path) -> None:
    rig = start(volume / "dumps")
    rig.until("standing_by")
    what = incident(captures=())
    rig.begin(what, [])
    rig.until("opened")
    wait_for(lambda: rig.record()["timeline"][-1]["event"] == "captures done")
    subprocess.run(["chattr", "+i", str(rig.dump_dir / ID)], check=True)
    rig.say("note", what)
    assert rig.until("lost")[-1]["detail"].startswith("EPERM")
    subprocess.run(["chattr", "-i", str(rig.dump_dir / ID)], check=True)
    rig.seal(what)
    assert rig.record()["sealed"] is True


def test_an_incidents_folder_that_goes_away_is_made_anew(start: Start, ranks: Ranks) -> None:
    """What was in it is gone and the record says so, instead of naming files that are not there."""
    identity = ranks.start()
    ranks.stop(identity)
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("captures_done")
    wait_for(lambda: len(rig.record()["artifacts"]) == 3 and all(a["path"] for a in rig.record()["artifacts"]))
    shutil.rmtree(rig.dump_dir)
    rig.say("note", what)
    wait_for(lambda: (rig.dump_dir / ID / "incident.json").exists())
    rig.seal(what)
    record = rig.record()
    assert {(a["status"], a["path"]) for a in record["artifacts"]} == {("failed", "")}
    assert all(a["detail"].startswith("ENOENT") for a in record["artifacts"])


def test_a_dump_folder_that_cannot_be_is_tried_again_while_standing_by(start: Start, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.write_text("in the way")
    rig = start(dumps)
    first = rig.until("standing_by")[-1]
    assert (first["dump_bytes"], first["free_bytes"], first["unfinished"]) == (-1, -1, [])
    assert rig.until("lost")[-1]["what"] == "dump folder"
    dumps.unlink()
    second = rig.until("standing_by")[-1]
    assert second["dump_bytes"] >= 0
    assert second["free_bytes"] > 0


@pytest.mark.root
def test_a_volume_that_hangs_delays_neither_standing_by_nor_captures(start: Start, ranks: Ranks, volume: Path) -> None:
    """Frozen from before the start until after the seal: every answer comes on time, and then nothing was lost."""
    identity = ranks.start()
    ranks.stop(identity)
    dumps = volume / "dumps"
    dumps.mkdir()
    freeze(volume)
    rig = start(dumps)
    standing = rig.until("standing_by")[-1]
    assert (standing["dump_bytes"], standing["unfinished"]) == (-1, [])
    what = incident()
    began = time.monotonic()
    rig.begin(what, [rank_process(identity, "TP0")], seconds=3.0)
    heard = rig.until("captures_done", 5)
    assert time.monotonic() - began < 1.0
    assert [m["status"] for m in heard if m["type"] == "captured"] == ["captured"] * 3
    assert "opened" not in {m["type"] for m in rig.heard}
    rig.say("seal", what)
    assert rig.until("lost")[-1] == {"type": "lost", "what": "volume", "detail": "ETIMEDOUT: it does not answer"}
    thaw(volume)
    rig.until("sealed")
    record = rig.record()
    assert {a["status"] for a in record["artifacts"]} == {"captured"}
    assert record["sealed"] is True


@pytest.mark.root
def test_a_guard_that_is_lost_while_the_volume_hangs_is_not_waited_for(
    start: Start, ranks: Ranks, volume: Path
) -> None:
    """The recorder leaves within two seconds, as far as the kernel lets it: a thread in D state stays till the thaw."""
    identity = ranks.start()
    ranks.stop(identity)
    dumps = volume / "dumps"
    rig = start(dumps)
    rig.until("standing_by")
    freeze(volume)
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("captures_done")
    rig.channel.close()
    began = time.monotonic()
    wait_for(lambda: state_of(rig.process.pid) == "Z", 5)
    assert time.monotonic() - began < 3.0
    thaw(volume)
    rig.process.wait(5)


@pytest.mark.root
def test_a_hanging_target_leaves_what_was_read_of_it_and_holds_up_no_other(
    start: Start, ranks: Ranks, volume: Path
) -> None:
    """A thread stuck in a page fault on a hung file system while another waits to unmap: whoever reads the command line
    waits for the same lock, for ever. What needs no lock is in the record, and the other rank has everything."""
    file = volume / "page"
    file.write_bytes(b"\0" * 8192)
    stuck = ranks.start(str(file), code=STUCK)
    fine = ranks.start()
    freeze(volume)
    (volume.parent / "go").touch()
    wait_for(lambda: blocked_threads(stuck) == 2)
    rig = start()
    rig.until("standing_by")
    what = incident()
    began = time.monotonic()
    rig.begin(what, [rank_process(stuck, "TP0"), rank_process(fine, "TP1")], frozen=False, seconds=1.5)
    rig.until("captures_done")
    assert time.monotonic() - began < 2.5
    rig.seal(what)
    found = artifacts(rig.record())
    assert found["process", "TP1"]["status"] == found["pyspy_json", "TP1"]["status"] == "captured"
    partial = found["process", "TP0"]
    assert partial["status"] == "partial"
    assert "while reading cmdline" in partial["detail"]
    state = json.loads(rig.text(partial["path"]))
    assert state["complete"] is False
    assert sorted(thread["state"] for thread in state["threads"]) == ["D", "D", "S"]
    assert any("fault" in thread["wchan"] or "wait" in thread["wchan"] for thread in state["threads"])
    assert "cmdline" not in state
    assert found["pyspy_json", "TP0"]["status"] in ("timed_out", "failed")


STUCK = """
import ctypes, mmap, os, select, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
fd = os.open(sys.argv[1], os.O_RDWR)
address = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
go = os.path.join(os.path.dirname(os.path.dirname(sys.argv[1])), "go")
print("ready", flush=True)
while not os.path.exists(go):
    select.select([], [], [], 0.01)
writer = threading.Thread(target=libc.memset, args=(address, 1, 1), daemon=True)
writer.start()
def state(tid):
    with open(f"/proc/self/task/{tid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
while state(writer.native_id) != "D":
    select.select([], [], [], 0.01)
threading.Thread(target=libc.munmap, args=(address, 4096), daemon=True).start()
threading.Event().wait()
"""


def blocked_threads(identity: Identity) -> int:
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{identity.pid}/task").iterdir()
    ]
    return states.count("D")


# -- bounded memory, without a volume -------------------------------------------------------------------------------


def taken(label: str, *pieces: Piece) -> Taken:
    return Taken(Target(Identity(1, 1), "scheduler", label, "", label, is_rank=True), pieces, 0.1)


def piece(kind: str, size: int, render: Callable[[bytes], bytes] | None = None) -> Piece:
    return Piece(kind, ArtifactStatus.CAPTURED, f"x/{kind}", b"x" * size, render=render)


def added(evidence: Evidence, *pieces: Piece) -> list[Artifact]:
    return evidence.add(taken("TP0", *pieces))


def test_what_waits_for_the_volume_is_bounded_and_what_is_dropped_is_named() -> None:
    evidence = Evidence(memory_limit=1000)
    assert [a.status for a in added(evidence, piece("a", 600))] == [ArtifactStatus.CAPTURED]
    (dropped,) = added(evidence, piece("b", 600))
    assert (dropped.status, dropped.detail) == (ArtifactStatus.FAILED, "memory limit")
    (small,) = added(evidence, piece("c", 600, render=lambda data: data[:10]))
    assert small.status is ArtifactStatus.CAPTURED, "a text is small once it is rendered"
    assert [item.file for item in evidence.batch(rendering=True)] == ["x/c", "x/a"]


def test_written_files_give_their_memory_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "dumps"), None, None)
    store.open(ID, b"{}")
    evidence = Evidence(memory_limit=1000)
    for n in range(5):
        (artifact,) = added(evidence, piece(f"k{n}", 900))
        assert artifact.status is ArtifactStatus.CAPTURED
        (item,) = evidence.batch(rendering=True)
        evidence.stored([(item, store.write_artifact(item.file, item.data or b""))])
    assert len(evidence.paths()) == 5
    store.close()


# -- the store ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "", ".lock", "a/.x", "a/b\n", "a/b\0"])
def test_an_artifacts_path_stays_in_its_folder(tmp_path: Path, path: str) -> None:
    store = Store(str(tmp_path / "dumps"), None, None)
    store.open(ID, b"{}")
    with pytest.raises(ValueError, match="not an artifact's path"):
        store.write_artifact(path, b"x")
    store.close()


def test_links_below_the_dump_folder_are_not_followed(tmp_path: Path) -> None:
    """Whoever can write to the volume must not make us write or delete elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    store = Store(str(tmp_path / "dumps"), 1, None)
    store.open(ID, b"{}")
    folder = tmp_path / "dumps" / ID
    (folder / "pyspy").symlink_to(outside)
    (folder / "process").mkdir()
    (folder / "process" / "TP0.json").symlink_to(outside / "precious")
    with pytest.raises(NotADirectoryError):
        store.write_artifact("pyspy/TP0.json", b"x")
    store.write_artifact("process/TP0.json", b"x")
    store.seal(b'{"sealed": true}')
    store.close()
    (tmp_path / "dumps" / "20260101T000000.000Z-manual").symlink_to(outside)
    later = Store(str(tmp_path / "dumps"), 1, None)
    later.open("20261121T000000.000Z-manual", b"{}")
    later.seal(b"{}")
    assert later.prune() == [ID]
    later.close()
    assert (outside / "precious").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_a_half_removed_incident_is_removed_to_the_end(tmp_path: Path) -> None:
    left = tmp_path / "dumps" / f".removing-{ID}" / "pyspy"
    left.mkdir(parents=True)
    (left / "TP0.txt").write_text("x")
    survey = Store(str(tmp_path / "dumps"), None, None).survey()
    assert survey is not None
    assert survey.kept == ()
    assert not left.parent.exists()


def test_the_time_in_an_id() -> None:
    assert wall_of("20261120T235959.123Z-rankdied-tp3") == pytest.approx(1_795_219_199.123)
    assert wall_of("19700101T000000.000Z-manual") == 0
    assert wall_of("20240229T120000.500Z-enginestalled") == pytest.approx(1_709_208_000.5)


def test_the_survey_counts_what_a_quota_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "dumps"), None, None)
    store.open(ID, b"{}")
    store.write_artifact("process/TP0.json", b"x" * 100_000)
    store.seal(b"{}")
    survey = store.survey()
    assert survey is not None
    (kept,) = survey.kept
    du = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(tmp_path / "dumps" / ID)], check=True, capture_output=True
    )
    assert kept.bytes == int(du.stdout.split()[0])
    assert (kept.id, kept.sealed) == (ID, True)
    store.close()
