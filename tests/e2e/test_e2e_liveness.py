"""The kubelet gives an engine up by its own probe: the evidence comes before SIGTERM; and what happens where the
sidecar can't answer the hook.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime

from e2e_pod import SIDECAR, Pod, artifacts

Play = Callable[..., Pod]
PROBE = {"periodSeconds": 2, "failureThreshold": 3}
# The kubelet is to find the hang, and Rankguard not to end it before.
PATIENT = {"stall-timeout": "600", "stall-limit": "600"}
SUPERVISOR, ALL = "sidecar.supervisor.__main__", ".__main__"


def told_to_stop(pod: Pod) -> datetime:
    """When the engine's container that ran before this one got SIGTERM, by its own clock, which is the node's."""
    log = pod.logs("engine", previous=True)
    (line,) = [line for line in log.splitlines() if line.startswith("TERM ")]
    return datetime.fromtimestamp(float(line.split()[1]), UTC)


def test_the_evidence_comes_before_the_signal(play: Play) -> None:
    """The engine stands still and its livenessProbe fails. The kubelet calls the hook; what every rank did is on the
    volume, and only then does SIGTERM come. One incident, told by an Event; nothing is counted as a death, and the
    engine is back.
    """
    pod = play("engine", "--health-port", "0", settings=PATIENT, probe=PROBE, ranks=3).wait_ready().wait_serving(3)
    # The probe's own grace period holds the whole capture; the pod's, which users set, is left alone.
    window = pod.container("engine")["livenessProbe"]["terminationGracePeriodSeconds"]
    assert window == 60 + 15
    assert pod.read()["spec"]["terminationGracePeriodSeconds"] == 30
    pod.hang()

    ended = pod.wait_restart()

    (record,) = pod.sealed()
    assert record["reason"] == "PreStop"
    assert {"server", "TP0", "TP1", "TP2"} <= artifacts(record, "pyspy_json")
    stopped = told_to_stop(pod)
    steps = {step["event"]: datetime.fromisoformat(step["at"]) for step in record["timeline"]}
    assert max(steps.values()) < stopped, (record["timeline"], stopped)
    assert ended["exitCode"] == 143
    assert record["id"] in pod.wait_event("LivenessFailed")["message"]
    pod.wait_serving(3, times=2).wait_ready()
    values = pod.metrics()
    assert values["rankguard_incidents_total"]["PreStop",] == 1
    assert sum(values["rankguard_rank_deaths_total"].values()) == 0
    assert len(pod.incidents()) == 1
    assert pod.restarts(SIDECAR) == 0


def test_the_sidecar_is_down_when_the_hook_is_called(play: Play) -> None:
    """Its container waits in the kubelet's back-off: the hook is refused, and the engine is restarted at once by the
    kubelet, as without Rankguard. Once it is back the sidecar watches, and a death is an incident.
    """
    probe = {"periodSeconds": 1, "failureThreshold": 2}
    pod = play("engine", settings=PATIENT, probe=probe).wait_ready().wait_serving(2)
    for count in (1, 2):
        assert pod.signal_sidecar(signal.SIGKILL, SUPERVISOR) == 1
        pod.wait_restart(SIDECAR, count)
        pod.wait_serving(2)
    # The third time the kubelet waits for 20 s at least: time enough for the probe to fail.
    assert pod.signal_sidecar(signal.SIGKILL, SUPERVISOR) == 1
    pod.until(
        lambda: pod.status(SIDECAR)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff", "it is held back"
    )
    pod.hang()
    assert pod.wait_restart()["exitCode"] == 143
    pod.wait_event("FailedPreStopHook")

    pod.until(lambda: "running" in pod.status(SIDECAR)["state"], "the sidecar is back", 400)
    pod.wait_serving(2).wait_ready()
    before = pod.restarts("engine")
    pod.kill("sglang::scheduler_TP1")
    pod.wait_restart(count=before + 1)
    assert pod.sealed()[-1]["reason"] == "RankDied"


def test_the_sidecar_is_slow_when_the_hook_is_called(play: Play) -> None:
    """All of its processes stand still: the kubelet waits for no answer longer than the probe's grace period, which the
    user has set and which stays as it is. Woken, the sidecar goes on, and is not restarted.
    """
    probe = {**PROBE, "terminationGracePeriodSeconds": 20}
    pod = play("engine", settings=PATIENT, probe=probe).wait_ready().wait_serving(2)
    assert pod.container("engine")["livenessProbe"]["terminationGracePeriodSeconds"] == 20
    assert pod.signal_sidecar(signal.SIGSTOP, ALL) >= 4  # supervisor, guard, recorder, web
    pod.hang()
    pod.wait_restart()
    assert pod.signal_sidecar(signal.SIGCONT, ALL) >= 4
    pod.until(lambda: sum(pod.metrics().get("rankguard_rank_up", {}).values()) == 2, "the new ranks are watched")
    pod.wait_ready()
    assert pod.restarts(SIDECAR) == 0


def test_the_sidecar_is_not_up_yet(play: Play) -> None:
    """An ordinary sidecar whose image can't be had never comes up: the engine runs without it, is restarted by its own
    probe at once, and its pod's deletion takes no longer.
    """
    missing = {"form": "ordinary", "image": "rankguard-that-is-nowhere:0"}
    pod = play("engine", settings={**PATIENT, **missing}, probe=PROBE, grace=300)
    pod.until(lambda: "running" in pod.status("engine").get("state", {}), "the engine runs")
    assert "waiting" in pod.status(SIDECAR)["state"]
    pod.exec("engine", "touch", "/tmp/hang")
    assert pod.wait_restart()["exitCode"] == 143
    pod.wait_event("FailedPreStopHook")
    pod.delete()
    pod.wait_gone(150)


def test_a_sidecar_that_starts_late_finds_the_engine(play: Play) -> None:
    """Its container is restarted beside a running engine: it watches the ranks that are there, and tells of a death."""
    pod = play("engine").wait_ready().wait_serving(2)
    assert pod.signal_sidecar(signal.SIGKILL, SUPERVISOR) == 1
    pod.wait_restart(SIDECAR)
    pod.wait_serving(2)
    assert pod.restarts("engine") == 0
    pod.kill("sglang::scheduler_TP0")
    assert pod.wait_restart()["exitCode"] == 137
    assert pod.sealed()[-1]["reason"] == "RankDied"
