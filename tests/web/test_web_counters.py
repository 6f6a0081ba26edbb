"""Counted exactly once, kept over any restart, and never held up by the volume."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_harness import WebProcess, rank, wait_for, web_process

from sidecar.errors import ProtocolError
from sidecar.web.counters import EVENTS, BrokenCounters, Counts, load, seeded
from sidecar.web.keeper import CountersFile, counters_path

DEATHS = 'rankguard_rank_deaths_total{cause="sigkill"}'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def death(guard, label="TP0"):
    return guard.event("rank_death", role="scheduler", rank=label, cause="sigkill")


def file_of(folder: Path, uid: str = "") -> Path:
    return Path(counters_path(str(folder), uid))


def test_counted_once_over_a_kill_and_a_resend(web):
    """The guard sends again what was not acknowledged, and even what was: each counts once."""
    guard = web.guard()
    sent = [death(guard) for _ in range(5)]
    guard.wait_acked(5)
    web.kill()
    web.start()
    guard = web.guard()
    for message in sent:
        guard.send(message)
    guard.seq = 5
    death(guard)
    guard.wait_acked(6)
    assert web.metrics()[DEATHS] == 6


def test_killed_at_any_moment(web):
    """Killed while events pour in, ten times over: nothing acknowledged is lost, nothing counts twice."""
    sent: list[dict] = []
    acked = 0
    for turn in range(10):
        guard = web.guard()
        for message in sent:  # as the guard does: what is unacknowledged comes again, in order
            if message["seq"] > acked:
                guard.send(message)
        guard.seq = len(sent)
        for _ in range(7):
            sent.append(death(guard))
        guard.wait_acked(7 * turn + 1 + turn % 7)
        web.kill()
        with suppress(Exception):
            guard.read()
        acked = max([acked, *(m["seq"] for m in guard.received if m["type"] == "ack")])
        web.start()
    guard = web.guard()
    for message in sent:
        if message["seq"] > acked:
            guard.send(message)
    guard.seq = len(sent)
    death(guard)
    guard.wait_acked(guard.seq)
    assert web.metrics()[DEATHS] == len(sent) + 1


def test_kept_over_a_restart_of_everything(tmp_path):
    """A new sidecar in the same pod goes on counting; another pod's counts are not its own."""
    with web_process(tmp_path, pod_uid="uid-1") as web:
        guard = web.guard("first-life")
        death(guard)
        guard.event("incident", reason="RankDied", wall=1000.5)
        guard.event("captured", kind="pyspy", status="captured", seconds=0.07)
        guard.event("store", dump_bytes=7, free_bytes=8)
        guard.wait_acked(4)
    with web_process(tmp_path, pod_uid="uid-1") as web:
        guard = web.guard("second-life")
        death(guard)  # seq 1 again, in another epoch
        guard.wait_acked(1)
        found = web.metrics()
        assert found[DEATHS] == 2
        assert found["rankguard_last_incident_timestamp_seconds"] == 1000.5
        assert found['rankguard_capture_seconds_bucket{kind="pyspy",le="0.1"}'] == 1
        assert found["rankguard_dump_bytes"] == 7
    with web_process(tmp_path, pod_uid="uid-2") as web:
        assert web.metrics()[DEATHS] == 0


def test_the_name_stays_in_the_folder(tmp_path):
    assert file_of(tmp_path, "../../etc/x").parent == tmp_path
    assert file_of(tmp_path, "").name == ".counters-host.json"


def test_file_is_private_and_whole(web):
    guard = web.guard()
    death(guard)
    guard.wait_acked(1)
    file = file_of(web.folder)
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["schema"] == "rankguard.dev/counters/v1"
    assert [p.name for p in web.folder.iterdir()] == [file.name]


def test_guard_replaced(web):
    """Two guards' events with the same numbers are different events; each guard gets its own acks."""
    old = web.guard("old")
    death(old)
    old.wait_acked(1)
    death(old)
    new = web.guard("new")  # the old one's last words are still heard
    old.channel.close()
    death(new)
    new.wait_acked(1)
    web.wait_metric(DEATHS, 3)
    assert all(m["epoch"] == "new" for m in new.received)


def test_a_flood_is_taken_in_whole(web):
    """2,000 events at once: all acknowledged and counted, while a scrape in between is answered."""
    guard = web.guard()
    for number in range(2000):
        guard.event("captured", kind="pyspy", status="captured", seconds=0.01)
        if number % 100 == 0:
            guard.read()
    assert web.get("/healthz").status_code == 200
    guard.wait_acked(2000)
    assert web.metrics()['rankguard_capture_seconds_count{kind="pyspy"}'] == 2000


def test_acks_that_find_no_room_come_later(web):
    """A guard that does not read for a while gets every ack when it does."""
    guard = web.guard()
    for _ in range(3000):
        guard.event("reap_timeout")
    web.wait_metric("rankguard_reap_timeouts_total", 3000)
    guard.wait_acked(3000)


def test_no_folder(tmp_path):
    """No volume: counted in memory, acknowledged, told once."""
    with web_process(tmp_path, dump_dir=str(tmp_path / "absent")) as web:
        guard = web.guard()
        for _ in range(3):
            death(guard)
        guard.wait_acked(3)
        assert web.metrics()[DEATHS] == 3
        assert web.log().count("cannot be kept on the volume") == 1
        assert not (tmp_path / "absent").exists()


def test_the_volume_comes_late_with_counts_on_it(tmp_path):
    """What it holds is added; an event that it holds already, and that was sent again, is not counted twice."""
    with web_process(tmp_path / "here", dump_dir=str(tmp_path / "here")) as web:
        (tmp_path / "here").mkdir()
        guard = web.guard("e1")
        sent = [death(guard) for _ in range(4)]
        guard.event("failfast", seconds=0.5)
        guard.wait_acked(5)
        wait_for(file_of(tmp_path / "here").exists, "the counters' file")
    (tmp_path / "here").rename(tmp_path / "away")
    with web_process(tmp_path, dump_dir=str(tmp_path / "here")) as web:
        guard = web.guard("e1")
        guard.send(sent[3])  # its ack was lost
        guard.seq = 5
        death(guard)
        guard.wait_acked(6)
        assert web.metrics()[DEATHS] == 2
        (tmp_path / "away").rename(tmp_path / "here")
        web.wait_metric(DEATHS, 5)
        assert web.metrics()["rankguard_failfast_seconds_count"] == 1
        wait_for(lambda: load(file_of(tmp_path / "here").read_bytes()).seen["e1"] == 6, "the file")
        assert load(file_of(tmp_path / "here").read_bytes()).counters["rank_deaths"][("sigkill",)] == 5
        assert "kept on the volume again" in web.log()


@contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.root
@needs_root
def test_read_only_volume(tmp_path):
    """What stands there is read; what cannot be written is acknowledged, and written once it can be."""
    with tmpfs(tmp_path / "volume", "size=1m") as volume:
        with web_process(tmp_path, dump_dir=str(volume)) as web:
            guard = web.guard()
            death(guard)
            guard.wait_acked(1)
        subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
        with web_process(tmp_path, dump_dir=str(volume)) as web:
            guard = web.guard("e2")
            death(guard)
            guard.wait_acked(1)
            assert web.metrics()[DEATHS] == 2
            assert web.log().count("cannot be kept on the volume") == 1
            subprocess.run(["mount", "-o", "remount,rw", str(volume)], check=True)
            wait_for(lambda: load(file_of(volume).read_bytes()).counters["rank_deaths"][("sigkill",)] == 2, "the file")


@pytest.mark.root
@needs_root
def test_full_volume(tmp_path):
    """ENOSPC: the old file stays whole, no half-written one eats space, and counting goes on."""
    with tmpfs(tmp_path / "volume", "size=64k") as volume, web_process(tmp_path, dump_dir=str(volume)) as web:
        guard = web.guard()
        death(guard)
        guard.wait_acked(1)
        before = file_of(volume).read_bytes()
        filler = volume / "filler"
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        death(guard)
        guard.wait_acked(2)
        assert web.metrics()[DEATHS] == 2
        assert file_of(volume).read_bytes() == before
        assert sorted(p.name for p in volume.iterdir()) == [file_of(volume).name, "filler"]
        filler.unlink()
        wait_for(lambda: load(file_of(volume).read_bytes()).seen["e1"] == 2, "the file after the space came back")


@pytest.mark.root
@needs_root
def test_frozen_volume(tmp_path):
    """A volume that hangs: acknowledged within seconds, scrapes go on, and the counts reach it once it thaws."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 * 2**20)
    if shutil.which("mkfs.ext4") is None or shutil.which("fsfreeze") is None:
        pytest.skip("no mkfs.ext4 or fsfreeze")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(volume)], capture_output=True).returncode != 0:
        pytest.skip("no loop devices")
    try:
        with web_process(tmp_path, dump_dir=str(volume)) as web:
            try:
                guard = web.guard()
                death(guard)
                guard.wait_acked(1)
                subprocess.run(["fsfreeze", "-f", str(volume)], check=True)
                death(guard)
                web.wait_metric(DEATHS, 2)
                assert guard.acked() < 2  # it may still be written
                guard.wait_acked(2, seconds=10)
                death(guard)
                guard.wait_acked(3)
                assert web.metrics()[DEATHS] == 3
                assert web.log().count("cannot be kept on the volume") == 1
            finally:
                subprocess.run(["fsfreeze", "-u", str(volume)], check=False)
            wait_for(lambda: load(file_of(volume).read_bytes()).seen["e1"] == 3, "the file after the thaw")
            wait_for(lambda: "kept on the volume again" in web.log(), "the line that says so")
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)


BROKEN = {
    "garbage": b"\x00\xff\xfe",
    "empty": b"",
    "list": b"[]",
    "another schema": b'{"schema":"x"}',
    "deep": b'{"schema":' + b"[" * 200_000,
    "cut off": seeded(()).dump()[:-20],
    "negative": b'{"schema":"rankguard.dev/counters/v1","counters":{"rank_deaths":[[["sigkill"],-5]]},'
    b'"histograms":{},"gauges":{},"seen":[]}',
    "infinite": b'{"schema":"rankguard.dev/counters/v1","counters":{"rank_deaths":[[["sigkill"],1e999]]},'
    b'"histograms":{},"gauges":{},"seen":[]}',
    "more labels": b'{"schema":"rankguard.dev/counters/v1","counters":{"rank_deaths":[[["a","b"],1]]},'
    b'"histograms":{},"gauges":{},"seen":[]}',
    "huge number": b'{"schema":"rankguard.dev/counters/v1","counters":{"rank_deaths":[[["sigkill"],'
    + b"9" * 5000
    + b']]},"histograms":{},"gauges":{},"seen":[]}',
    "seen of text": b'{"schema":"rankguard.dev/counters/v1","counters":{},"histograms":{},"gauges":{},'
    b'"seen":[["e1","9"]]}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_file(tmp_path, what):
    """It is set aside for a person to look at, with a word on what is wrong with it."""
    file_of(tmp_path).write_bytes(BROKEN[what])
    kept = CountersFile(str(file_of(tmp_path))).read()
    assert kept.counts is None
    assert kept.broken
    assert (tmp_path / ".counters-host.bad").read_bytes() == BROKEN[what]
    assert not file_of(tmp_path).exists()


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "too big"])
def test_something_else_in_its_place(tmp_path, what):
    """A link is not followed, a FIFO does not hang the reader, a huge file is not read."""
    path, secret = file_of(tmp_path), tmp_path / "secret"
    secret.write_text("{}")
    if what == "link":
        path.symlink_to(secret)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as big:
            big.truncate(2**31)
    file = CountersFile(str(path))
    assert file.read().broken
    file.write(seeded(()).dump())
    assert file.read().counts is not None
    assert secret.read_text() == "{}"


def test_counting_starts_at_0_after_a_broken_file(tmp_path):
    """Said once; and what was set aside before is replaced."""
    file_of(tmp_path).write_bytes(BROKEN["cut off"])
    (tmp_path / ".counters-host.bad").write_bytes(b"older")
    with web_process(tmp_path) as web:
        guard = web.guard()
        death(guard)
        guard.wait_acked(1)
        assert web.metrics()[DEATHS] == 1
        assert (tmp_path / ".counters-host.bad").read_bytes() == BROKEN["cut off"]
        assert load(file_of(tmp_path).read_bytes()).seen == {"e1": 1}
        assert web.log().count("file is broken") == 1


def test_a_link_where_the_new_file_is_prepared(tmp_path):
    """A planted link is not written through, whatever it leads to."""
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / ".counters-host.tmp").symlink_to(target)
    CountersFile(str(file_of(tmp_path))).write(b"{}")
    assert target.read_text() == "precious"
    assert file_of(tmp_path).read_text() == "{}"
    assert not file_of(tmp_path).is_symlink()


NUMBER = st.floats(0, 1e6, allow_nan=False)
WORD = st.text(max_size=8)
EVENT = st.fixed_dictionaries(
    {"name": st.sampled_from([*EVENTS])},
    optional={
        **dict.fromkeys(("role", "rank", "cause", "reason", "kind", "outcome", "what", "process"), WORD),
        "status": st.sampled_from(["captured", "skipped", "\ud800"]),
        **dict.fromkeys(("seconds", "wall", "dump_bytes", "free_bytes"), NUMBER),
    },
)


def applied(events: list[dict]) -> Counts:
    counts = Counts()
    for event in events:
        with suppress(ProtocolError):
            counts.apply(event)
    return counts


@given(st.lists(EVENT, max_size=30))
def test_what_is_dumped_is_loaded(events):
    counts = applied(events)
    again = load(counts.dump())
    assert (again.counters, again.histograms, again.gauges) == (counts.counters, counts.histograms, counts.gauges)


@given(st.lists(EVENT, max_size=20), st.lists(EVENT, max_size=20))
def test_merging_is_counting_in_one_go(older, newer):
    """An earlier life's counts, merged late, give what one life with all the events would have counted."""
    merged, whole = applied(newer), applied(older + newer)
    merged.merge(applied(older))
    assert merged.counters == whole.counters
    assert {n: {k: t.buckets for k, t in s.items()} for n, s in merged.histograms.items()} == {
        n: {k: t.buckets for k, t in s.items()} for n, s in whole.histograms.items()
    }


@given(EVENT, st.data())
def test_an_event_counts_wholly_or_not_at_all(event, data):
    """One bad field anywhere and nothing changes."""
    fields = [name for name in event if name != "name"]
    if fields:
        event[data.draw(st.sampled_from(fields))] = data.draw(st.sampled_from([None, [], {}, float("nan"), True]))
    counts = seeded(("pyspy",))
    before = counts.dump()
    try:
        counts.apply(event)
    except ProtocolError:
        assert counts.dump() == before


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | WORD,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3)))  # fmt: skip
def test_any_json_is_counts_or_refused(value):
    top = {"schema": "rankguard.dev/counters/v1", "counters": {}, "histograms": {}, "gauges": {}, "seen": []}
    for key in ("counters", "histograms", "gauges", "seen"):
        for whole in ({**top, key: value}, {**top, key: {"rank_deaths": value, "failfast_seconds": value}}):
            with suppress(BrokenCounters):
                load(json.dumps(whole).encode())


def test_ranks_show_their_deaths(web: WebProcess):
    guard = web.guard()
    guard.state([rank("TP0"), rank("TP1")])
    death(guard, "TP1")
    guard.wait_acked(1)
    assert [(r["rank"], r["deaths"]) for r in web.api("ranks").json()["ranks"]] == [("TP0", 0), ("TP1", 1)]
