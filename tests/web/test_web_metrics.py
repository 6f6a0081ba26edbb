"""What /metrics says: the outer contract's names, labels and zeros, and nothing that a hostile title could break."""

import re

import pytest
from web_harness import OPENMETRICS, rank, wait_for, web_process

CONTRACT = {
    "rankguard_fleet_observe": "gauge",
    "rankguard_kubernetes_errors_total": "counter",
    "rankguard_rank_up": "gauge",
    "rankguard_ranks_expected": "gauge",
    "rankguard_dump_bytes": "gauge",
    "rankguard_dump_free_bytes": "gauge",
    "rankguard_capability_available": "gauge",
    "rankguard_last_incident_timestamp_seconds": "gauge",
    "rankguard_config_errors": "gauge",
    "rankguard_build_info": "gauge",
    "rankguard_engine_state": "gauge",
    "rankguard_rank_deaths_total": "counter",
    "rankguard_rank_deaths_by_rank_total": "counter",
    "rankguard_incidents_total": "counter",
    "rankguard_captures_total": "counter",
    "rankguard_terminations_total": "counter",
    "rankguard_liveness_failures_total": "counter",
    "rankguard_reap_timeouts_total": "counter",
    "rankguard_records_lost_total": "counter",
    "rankguard_process_restarts_total": "counter",
    "rankguard_capture_seconds": "histogram",
    "rankguard_failfast_seconds": "histogram",
}


def test_names_types_and_help(shared):
    """Exactly the contract's metrics (and our additions), each with a HELP text, under Prometheus' naming rules."""
    text = shared.get("/metrics").text
    assert dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) == CONTRACT
    assert set(re.findall(r"^# HELP (\S+) .*\S", text, re.MULTILINE)) == set(CONTRACT)
    for name, kind in CONTRACT.items():
        assert re.fullmatch(r"rankguard_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent|minutes|hours|count|sum|bucket)(_|$)", name)


def test_zeros_from_the_start(web):
    """A counter that an alert watches is there before the first event: increase() needs a 0 to rise from."""
    found = web.metrics()
    causes = "oom_killed sigkill sigsegv sigabrt sigbus sigterm other_signal exit_nonzero unknown"
    reasons = "RankDied RankMissing LivenessFailed EngineStalled EngineExited PreStop PeerFailed Manual"
    outcomes = "reaped exited_unreaped still_alive already_gone denied"
    for name in [
        *(f'rankguard_rank_deaths_total{{cause="{c}"}}' for c in causes.split()),
        *(f'rankguard_incidents_total{{reason="{r}"}}' for r in reasons.split()),
        *(f'rankguard_terminations_total{{outcome="{o}"}}' for o in outcomes.split()),
        *(f'rankguard_process_restarts_total{{process="{p}"}}' for p in ("guard", "recorder", "web")),
        'rankguard_captures_total{kind="pyspy_json",outcome="timed_out"}',
        'rankguard_captures_total{kind="process",outcome="skipped"}',
        'rankguard_capture_seconds_count{kind="process"}',
        "rankguard_reap_timeouts_total",
        "rankguard_failfast_seconds_count",
        "rankguard_config_errors",
        "rankguard_last_incident_timestamp_seconds",
    ]:
        assert found[name] == 0, name
    assert "rankguard_dump_bytes" not in found
    assert "rankguard_ranks_expected" not in found


def test_every_event_counts(web):
    guard = web.guard()
    guard.event("rank_death", role="scheduler", rank="TP3", cause="oom_killed")
    guard.event("rank_death", role="scheduler", rank="TP0", cause="sigkill")
    guard.event("incident", reason="RankDied", wall=1763600000.25)
    guard.event("captured", kind="pyspy", status="captured", seconds=0.3)
    guard.event("captured", kind="pyspy", status="timed_out", seconds=3)
    guard.event("captured", kind="pyspy", status="skipped", seconds=0.0)
    guard.event("captured", kind="nccl_ras", status="failed", seconds=0.001)
    guard.event("terminated", outcome="reaped")
    guard.event("failfast", seconds=0.25)
    guard.event("failfast", seconds=500.0)
    guard.event("reap_timeout")
    guard.event("store", dump_bytes=10, free_bytes=900)
    guard.event("store", dump_bytes=20, free_bytes=890)
    guard.event("store", dump_bytes=20, free_bytes=-1)  # nobody could tell: the last known number stands
    guard.event("lost", what="artifact")
    guard.event("process_restart", process="recorder")
    guard.wait_acked(guard.seq)
    expected = {
        'rankguard_rank_deaths_total{cause="oom_killed"}': 1,
        'rankguard_rank_deaths_total{cause="sigkill"}': 1,
        'rankguard_rank_deaths_total{cause="sigsegv"}': 0,
        'rankguard_rank_deaths_by_rank_total{rank="TP3",role="scheduler"}': 1,
        'rankguard_incidents_total{reason="RankDied"}': 1,
        "rankguard_last_incident_timestamp_seconds": 1763600000.25,
        'rankguard_captures_total{kind="pyspy",outcome="captured"}': 1,
        'rankguard_captures_total{kind="pyspy",outcome="timed_out"}': 1,
        'rankguard_captures_total{kind="pyspy",outcome="skipped"}': 1,
        'rankguard_captures_total{kind="nccl_ras",outcome="failed"}': 1,
        'rankguard_captures_total{kind="nccl_ras",outcome="captured"}': 0,
        'rankguard_capture_seconds_count{kind="pyspy"}': 2,
        'rankguard_capture_seconds_sum{kind="pyspy"}': 3.3,
        'rankguard_capture_seconds_bucket{kind="pyspy",le="0.25"}': 0,
        'rankguard_capture_seconds_bucket{kind="pyspy",le="0.5"}': 1,
        'rankguard_capture_seconds_bucket{kind="pyspy",le="5.0"}': 2,
        'rankguard_terminations_total{outcome="reaped"}': 1,
        "rankguard_failfast_seconds_count": 2,
        'rankguard_failfast_seconds_bucket{le="0.25"}': 1,
        'rankguard_failfast_seconds_bucket{le="120.0"}': 1,
        'rankguard_failfast_seconds_bucket{le="+Inf"}': 2,
        "rankguard_reap_timeouts_total": 1,
        "rankguard_dump_bytes": 20,
        "rankguard_dump_free_bytes": 890,
        'rankguard_records_lost_total{what="artifact"}': 1,
        'rankguard_process_restarts_total{process="recorder"}': 1,
    }
    found = web.metrics()
    assert {name: found.get(name) for name in expected} == expected
    assert without_checks(web.openmetrics()) == without_checks(found)


def test_state(web):
    """A known rank that is down is 0, one that left the state has no sample, and neither has an unknown number."""
    guard = web.guard()
    guard.state([rank("TP0"), rank("TP1", up=False), rank("detokenizer", role="detokenizer")], expected=4)
    web.wait_metric('rankguard_rank_up{rank="TP1",role="scheduler"}', 0)
    found = web.metrics()
    assert found['rankguard_rank_up{rank="TP0",role="scheduler"}'] == 1
    assert found['rankguard_rank_up{rank="detokenizer",role="detokenizer"}'] == 1
    assert found["rankguard_ranks_expected"] == 4
    assert found['rankguard_engine_state{state="serving"}'] == 1
    assert found['rankguard_engine_state{state="failing"}'] == 0
    assert found['rankguard_capability_available{capability="pidfd"}'] == 1
    assert found['rankguard_rank_deaths_by_rank_total{rank="TP0",role="scheduler"}'] == 0
    guard.state([rank("TP0")], state="starting", features={"pidfd": False})
    web.wait_metric('rankguard_engine_state{state="starting"}', 1)
    found = web.metrics()
    assert [name for name in found if name.startswith("rankguard_rank_up")] == [
        'rankguard_rank_up{rank="TP0",role="scheduler"}'
    ]
    assert "rankguard_ranks_expected" not in found
    assert found['rankguard_engine_state{state="serving"}'] == 0
    assert found['rankguard_capability_available{capability="pidfd"}'] == 0


def test_one_label_twice_is_one_sample(web):
    """The dead process of a rank and its successor carry the same label; two samples of it would fail the scrape."""
    guard = web.guard()
    guard.state([rank("TP0"), rank("TP0", up=False), rank("TP1", up=False), rank("TP1", up=False)])
    web.wait_metric('rankguard_rank_up{rank="TP0",role="scheduler"}', 1)
    assert web.metrics()['rankguard_rank_up{rank="TP1",role="scheduler"}'] == 0


@pytest.mark.parametrize(
    "label",
    ['quote"back\\slash', "line\nbreak", "\ud800lone surrogate", "\x1b[31mred", "x" * 5000, "\u202egnp", "TP\x00"],
)
def test_hostile_labels(shared, label):
    """A label is a process title's text: whatever it holds, the scrape and the API stay readable."""
    guard = shared.guard("")
    guard.state([rank(label, title=label), rank("TP1")])
    guard.event("rank_death", role="scheduler", rank=label, cause="sigkill")
    guard.wait_acked(1)
    found = shared.metrics()
    assert all(name.isprintable() and len(name) < 300 for name in found)
    assert without_checks(shared.openmetrics()) == without_checks(found)
    assert sum(value for name, value in found.items() if name.startswith("rankguard_rank_deaths_by_rank")) > 0
    assert len([name for name in found if name.startswith("rankguard_rank_up")]) == 2
    assert found['rankguard_rank_up{rank="TP1",role="scheduler"}'] == 1
    assert len(shared.api("ranks").json()["ranks"]) == 2


def test_labels_without_end_are_bounded(web):
    """However many labels somebody makes up, memory and the scrape stay bounded, and no event is lost."""
    guard = web.guard()
    for number in range(9000):
        guard.event("rank_death", role="worker", rank=f"TP{number}", cause="sigkill")
        if number % 500 == 0:
            guard.read()
    guard.wait_acked(guard.seq)
    found = web.metrics()
    ranks = [value for name, value in found.items() if name.startswith("rankguard_rank_deaths_by_rank")]
    assert sum(ranks) == 9000
    assert len(ranks) <= 8193
    assert found['rankguard_rank_deaths_total{cause="sigkill"}'] == 9000


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("rank_death", {}),
        ("rank_death", {"role": "scheduler", "rank": "TP0", "cause": 5}),
        ("captured", {"kind": "pyspy", "status": "captured", "seconds": -1}),
        ("captured", {"kind": "pyspy", "status": "captured", "seconds": "1"}),
        ("failfast", {"seconds": float("nan")}),
        ("failfast", {"seconds": 10**400}),
        ("failfast", {"seconds": True}),
        ("incident", {"reason": "RankDied"}),
        ("no_such_event", {"x": 1}),
        ([], {}),
    ],
)
def test_an_event_that_cannot_be_read(shared, name, fields):
    """It is acknowledged (it would come again for ever), named in the log, counts nothing, and stops nothing."""
    guard = shared.guard("")
    guard.settled()
    before, lines = shared.metrics(), shared.log().count("event")
    guard.event(name, **fields)
    guard.wait_acked(2)
    assert shared.metrics() == before
    assert shared.log().count("event") > lines
    guard.event("reap_timeout")
    guard.wait_acked(3)
    reaps = "rankguard_reap_timeouts_total"
    assert shared.metrics()[reaps] == before[reaps] + 1


@pytest.mark.parametrize(
    "message",
    [
        {"type": "nonsense"},
        {"type": "state"},
        {"type": "state", "state": 1, "ranks": [], "features": {}},
        {"type": "state", "state": "serving", "ranks": [{"role": "scheduler"}], "features": {}},
        {"type": "state", "state": "serving", "ranks": ["TP0"], "features": {}},
        {"type": "state", "state": "serving", "ranks": [], "expected": "8", "features": {}},
        {"type": "event", "name": "reap_timeout"},
        {"type": "event", "name": "reap_timeout", "seq": -1, "epoch": "e1"},
        {"type": "event", "name": "reap_timeout", "seq": 1, "epoch": None},
        {"type": "event", "name": "reap_timeout", "seq": 2**60, "epoch": "x"},
    ],
)
def test_a_message_that_cannot_be_read(shared, message):
    """It is named in the log; the last good state stands, and what comes after it counts."""
    guard = shared.guard("")
    guard.state([rank("TP0")], expected=1)
    lines = shared.log().count("a message of the guard's was ignored")
    guard.send(message)
    guard.settled()
    found = shared.metrics()
    assert found['rankguard_rank_up{rank="TP0",role="scheduler"}'] == 1
    assert shared.log().count("a message of the guard's was ignored") == lines + 1


def test_config_errors_and_build(tmp_path):
    with web_process(tmp_path, config_errors=("listen: bad", "captures: bad")) as web:
        found = web.metrics()
        assert found["rankguard_config_errors"] == 2
        build = [name for name in found if name.startswith("rankguard_build_info")]
        assert len(build) == 1
        assert all(f"{label}=" in build[0] for label in ("version", "python", "kernel"))


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=999999999999999999999.0.0",
        "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        "text/plain; version=1.0.0; escaping=dots",
        "text/plain; version=",
        ",;=,;;,version",
        "\u00ff",
    ],
)
def test_any_accept_header_gets_an_answer(shared, accept):
    for number in range(6):  # more ways than are kept rendered
        answer = shared.get("/metrics", headers={"accept": accept.replace("1.0.0", f"1.0.{number}").encode("latin-1")})
        assert answer.status_code == 200
        assert "rankguard_build_info" in answer.text


def test_compressed(shared):
    answer = shared.get("/metrics", headers={"accept-encoding": "gzip", "accept": OPENMETRICS})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text.endswith("# EOF\n")
    assert "content-encoding" not in shared.get("/metrics", headers={"accept-encoding": "identity"}).headers


def test_many_ranks(web):
    """512 ranks travel in one state (a memfd, past the packet's limit) and are all told."""
    guard = web.guard()
    ranks = [rank(f"DP{i // 8}_TP{i % 8}", title="sglang::scheduler" + "x" * 300) for i in range(512)]
    guard.state(ranks, expected=512)
    wait_for(lambda: len([n for n in web.metrics() if n.startswith("rankguard_rank_up")]) == 512, "512 ranks")
    assert web.get("/readyz").status_code == 200


def test_what_is_kept_rendered_is_never_stale(web):
    """The answer is rendered once and kept until something changes; a scrape after an ack shows the event."""
    guard = web.guard()
    for number in range(1, 30):
        guard.event("reap_timeout")
        guard.wait_acked(number)
        assert web.metrics()["rankguard_reap_timeouts_total"] == number


def without_checks(found: dict[str, float]) -> dict[str, float]:
    """All but what the doctor finds, which can come between two scrapes."""
    return {name: value for name, value in found.items() if not name.startswith("rankguard_capability_available")}
