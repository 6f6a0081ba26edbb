"""A crash loop, with a new recorder for each incident: N an hour in full, then summaries with a count."""

from __future__ import annotations

import time
from pathlib import Path

from recorder_rig import Ranks, Start, artifacts, incident, rank_process
from store_volumes import an_id, put

from sidecar.model import Identity, Liveness, PodInfo, Reason, Verdict
from sidecar.recorder.store import Store
from sidecar.system.clock import stamp

NOW = time.time()


def crash(start: Start, identity: Identity, wall: float, reason: Reason = Reason.RANK_DIED, **settings) -> dict:
    """One incident from beginning to end; gives its record."""
    rig = start(full_incidents_per_hour=3, dump_max_age=None, **settings)
    rig.until("standing_by")
    what = incident(captures=("process",), id=an_id(wall), reason=reason)
    rig.begin(what, [rank_process(identity, "TP0")])
    rig.until("captures_done")
    heard = rig.seal(what)
    assert heard[-1]["type"] == "sealed"
    record = rig.record(an_id(wall))
    assert record["sealed"] is True
    captured = [message for message in rig.heard if message["type"] == "captured"]
    assert len(captured) == len(record["artifacts"])
    return record


def test_a_crash_loop_gives_n_full_ones_then_summaries_with_a_count(start: Start, ranks: Ranks) -> None:
    """Ten deaths within minutes, each with a sidecar of its own: all are recorded, the first three with evidence."""
    identity = ranks.start()
    ranks.stop(identity)
    records = [crash(start, identity, NOW - 600 + 10 * n) for n in range(10)]
    full, summaries = records[:3], records[3:]
    assert [record["throttled"] for record in full] == [None] * 3
    assert all(artifacts(record)["process", "TP0"]["status"] == "captured" for record in full)
    last_full = stamp(int((NOW - 600 + 20) * 1000) / 1000)  # an id has milliseconds
    for n, record in enumerate(summaries, 1):
        assert record["throttled"] == {"limit": 3, "count": n, "since": last_full}
        assert record["artifacts"] == []
        assert record["summary"] == full[0]["summary"], "the sentence is as ever"
        assert "throttled" in [entry["event"] for entry in record["timeline"]]


def test_what_somebody_asked_for_is_full_in_the_middle_of_a_crash_loop(start: Start, ranks: Ranks) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    records = [crash(start, identity, NOW - 600 + 10 * n) for n in range(4)]
    assert records[-1]["throttled"]["count"] == 1
    manual = crash(start, identity, NOW - 500, Reason.MANUAL)
    assert manual["throttled"] is None
    assert artifacts(manual)["process", "TP0"]["status"] == "captured"
    assert crash(start, identity, NOW - 490)["throttled"]["count"] == 2, "and it does not count"


def test_an_hour_later_and_beside_another_pod_it_is_full(start: Start, ranks: Ranks, tmp_path: Path) -> None:
    identity = ranks.start()
    ranks.stop(identity)
    dumps = tmp_path / "dumps"
    for n in range(3):
        put(Store(str(dumps), None, None), NOW - 3700 - 10 * n)
    other = PodInfo("prod", "llama-9", "uid-9")
    for n in range(3):
        put(Store(str(dumps), None, None, pod=other), NOW - 300 - 10 * n, pod=other)
    us = {"pod_namespace": "prod", "pod_name": "llama-0", "pod_uid": "uid-1"}
    assert crash(start, identity, NOW, **us)["throttled"] is None


def test_an_incident_that_is_taken_up_again_is_not_counted_against_itself(start: Start, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    for n in range(2):
        put(Store(str(dumps), None, None), NOW - 60 - n)
    name = put(Store(str(dumps), None, None), NOW, sealed=False)
    rig = start(full_incidents_per_hour=3, dump_max_age=None)
    assert [left["id"] for left in rig.until("standing_by")[-1]["unfinished"]] == [name]
    what = incident(captures=(), id=name)
    rig.begin(what, [], resume=True)
    rig.until("opened")
    rig.seal(what)
    assert rig.record(name)["throttled"] is None


def test_the_record_has_a_signature_at_the_end_and_the_same_failure_the_same_one(start: Start, ranks: Ranks) -> None:
    """Reason, cause and where the ranks stood, whichever rank it was; another place is another failure."""
    one, two = ranks.start(), ranks.start(code=ELSEWHERE)
    signatures = []
    for n, (identity, rank) in enumerate([(one, "TP0"), (one, "TP1"), (two, "TP0")]):
        ranks.stop(identity)
        rig = start(dump_max_age=None)
        rig.until("standing_by")
        what = incident(captures=("pyspy",), id=an_id(NOW - 60 + n))
        rig.begin(what, [rank_process(identity, rank)])
        rig.until("captures_done")
        assert rig.record(what.id)["signature"] is None
        rig.seal(what)
        signatures.append(rig.record(what.id)["signature"])
    assert signatures[0].startswith("rankdied-sigkill-")
    assert signatures[0] == signatures[1] != signatures[2]


def test_a_verdict_and_a_group_are_in_the_record(start: Start) -> None:
    verdict = Verdict(Liveness.STUCK, ("no token in 31 s", "TP1 is stopped"), ("TP1",), 31.5)
    rig = start(dump_max_age=None)
    rig.until("standing_by")
    what = incident(
        captures=(), reason=Reason.ENGINE_STALLED, failures=(), verdict=verdict, group="llama", id=an_id(NOW)
    )
    rig.begin(what, [])
    rig.until("opened")
    rig.seal(what)
    record = rig.record(what.id)
    assert (
        record["verdict"].items()
        >= {
            "liveness": "stuck",
            "because": ["no token in 31 s", "TP1 is stopped"],
            "odd": ["TP1"],
            "since_seconds": 31.5,
        }.items()
    )
    assert record["group"] == "llama"
    assert record["signature"] == "enginestalled-stuck"


ELSEWHERE = """
import select, sys
def reads_weights():
    select.select([], [], [])
def somewhere_else():
    reads_weights()
print("ready", flush=True)
somewhere_else()
"""
