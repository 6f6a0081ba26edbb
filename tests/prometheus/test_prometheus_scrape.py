"""A real sidecar, a real Prometheus: what is scraped is as Prometheus likes it, and a death becomes an alert."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from monitoring_files import RULES, alerts, metrics_in, page_expressions, panel_expressions
from prepare_prometheus import Programs
from prometheus_process import Prometheus
from sidecar_process import Sidecar, eventually
from view_rig import Viewer

from sidecar.demo.standin import StandIn
from sidecar.webhook.metrics import Metrics as WebhookMetrics

# Told where there is a fleet switch.
OTHERS = {"rankguard_fleet_observe"}
POD = {"namespace": "prod", "pod": "llama-0", "node": "gpu-17", "container": "rankguard"}


@contextmanager
def watched(dumps: Path) -> Iterator[tuple[StandIn, Sidecar, str]]:
    """A stand-in engine, a Rankguard beside it, both serving, and the address of its /metrics."""
    with (
        StandIn(tp=2, light=True, detokenizer=False) as engine,
        Sidecar(dumps, "--root-pid", str(engine.process.pid), "--captures", "process") as sidecar,
    ):
        engine.wait_ready()
        sidecar.wait_serving()
        yield engine, sidecar, str(sidecar.wait("listening", process="supervisor")["listen"])


def test_metrics_are_clean_and_all_that_is_asked_for_is_there(programs: Programs, tmp_path: Path) -> None:
    """Of a sidecar that saw a death, of its volume's viewer, of the webhook: `promtool check metrics` finds nothing,
    and each of ours in alerts, dashboard and docs is one that is told."""
    with watched(tmp_path / "volume" / "prod" / "llama-0") as (engine, sidecar, address):
        engine.kill("TP1")
        sidecar.incident()
        texts = [eventually(lambda: _page(address), "the metrics"), WebhookMetrics().render().decode()]
    with Viewer(tmp_path / "volume") as viewer:
        told_of = 'rankguard_volume_rank_deaths_total{cause="sigkill",namespace="prod"} 1.0'
        texts.append(eventually(lambda: _page(f"127.0.0.1:{viewer.port}", told_of), "the volume's totals"))
    for text in texts:
        done = subprocess.run(
            [programs.promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told = set(re.findall(r"^# TYPE (\S+) ", "\n".join(texts), re.MULTILINE))
    asked = [alert["expr"] for alert in alerts()] + [query for _, query in panel_expressions()] + page_expressions()
    assert set().union(*map(metrics_in, asked)) <= told | OTHERS


def test_a_death_is_an_alert(programs: Programs, tmp_path: Path) -> None:
    """The rules as they are shipped, evaluated on what a real sidecar says: silent before, firing after the kill, and
    still when the sidecar is gone for good."""
    with (
        watched(tmp_path / "dumps") as (engine, sidecar, address),
        Prometheus(programs, tmp_path / "prometheus", {address: POD}, [RULES]) as prometheus,
    ):
        # Two scrapes before the death, so that Prometheus has seen the 0.
        eventually(lambda: _scrapes(prometheus) >= 2, f"two scrapes\n{prometheus.log()}", 60)
        assert [group["name"] for group in prometheus.get("rules")["groups"]]
        assert _names_firing(prometheus) == set()
        engine.kill("TP1")
        alert = eventually(lambda: _firing(prometheus, "RankguardRankDied"), "the alert", 60)
        assert alert["labels"] == {
            "alertname": "RankguardRankDied", "severity": "warning",
            **{name: POD[name] for name in ("namespace", "pod", "node")},
        }  # fmt: skip
        assert "prod/llama-0" in alert["annotations"]["summary"]
        assert "on node gpu-17 died" in alert["annotations"]["description"]
        sidecar.incident()
        sidecar.end()
        eventually(lambda: _down(prometheus), "the target seen to be down", 60)
        assert _firing(prometheus, "RankguardRankDied")
        assert _names_firing(prometheus) == {"RankguardRankDied"}


def _page(address: str, has: str = "# HELP") -> str:
    """The metrics, "" while the web process is being started, or as long as `has` is not in them."""
    text = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=20).text
    return text if has in text else ""


def _scrapes(prometheus: Prometheus) -> int:
    found = prometheus.query('sum(count_over_time(rankguard_rank_deaths_total{cause="sigkill"}[1m]))')
    return int(found[0]["value"][1]) if found else 0


def _firing(prometheus: Prometheus, name: str) -> dict | None:
    return next((alert for alert in prometheus.alerts(name) if alert["state"] == "firing"), None)


def _names_firing(prometheus: Prometheus) -> set[str]:
    found = prometheus.get("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}


def _down(prometheus: Prometheus) -> bool:
    return [sample["value"][1] for sample in prometheus.query("up")] == ["0"]
