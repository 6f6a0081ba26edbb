"""The alerts and the dashboard, judged by Prometheus' own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from monitoring_files import RULES, RUNBOOKS, alerts, dashboard, panel_expressions, panels
from prepare_prometheus import Programs
from prometheus_process import Prometheus

TESTS = sorted(Path(__file__).parent.glob("*.test.yaml"))


def promtool(programs: Programs, *arguments: str, **options: object) -> str:
    """What promtool says. Raises `AssertionError` with that where it finds a fault."""
    done = subprocess.run(
        [programs.promtool, *arguments], capture_output=True, text=True, check=False, timeout=100, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_file_is_one_of_prometheus(programs: Programs) -> None:
    assert f"{len(alerts())} rules found" in promtool(programs, "check", "rules", str(RULES))


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_each_alert_fires_when_it_should(programs: Programs, file: Path, tmp_path: Path) -> None:
    """What fires in each story, and nothing beside it; the stories stand in the file."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(file, tmp_path)
    promtool(programs, "test", "rules", file.name, cwd=tmp_path)


def test_no_alert_is_left_out_of_the_stories() -> None:
    """Each fires in some story, and in a story where it fires there is a time when it does not."""
    stories = [story for file in TESTS for story in yaml.safe_load(file.read_text())["tests"]]
    fired, silent = set(), set()
    for story in stories:
        asked = [
            set(re.findall(r'alertname="(\w+)"', str(query["exp_samples"]))) for query in story["promql_expr_test"]
        ]
        fired |= set().union(*asked)
        silent |= {name for name in set().union(*asked) if any(name not in names for names in asked)}
    names = {alert["alert"] for alert in alerts()}
    assert fired == names
    assert silent == names


def test_each_alert_says_what_it_is_and_where_its_runbook_is() -> None:
    for alert in alerts():
        name = alert["alert"]
        assert name.startswith("Rankguard"), name
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), name
        assert alert["annotations"]["summary"].strip().endswith("."), name
        assert len(alert["annotations"]["description"]) > len(alert["annotations"]["summary"]), name
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_each_runbook_is_of_an_alert() -> None:
    """One for each, none too many; each says what it means, what to do, and when it is nothing."""
    names = {alert["alert"] for alert in alerts()}
    assert {path.stem for path in RUNBOOKS.glob("Rankguard*.md")} == names
    for name in names:
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n")
        for heading in ("## What it means", "## What to do", "## When it is nothing"):
            assert heading in text, (name, heading)
        assert f"({name}.md)" in (RUNBOOKS / "README.md").read_text()


def test_all_queries_are_understood(programs: Programs, tmp_path: Path) -> None:
    """Each panel's is evaluated by a Prometheus (one that has no data yet)."""
    queries = [query for _, query in panel_expressions()]
    assert len(queries) > 30
    with Prometheus(programs, tmp_path / "prometheus", {}) as prometheus:
        for query in queries:
            prometheus.query(query)


def test_the_dashboard_is_whole() -> None:
    """Ids are different, nothing overlaps, and data source and namespace are the reader's choice."""
    board = dashboard()
    assert {variable["name"] for variable in board["templating"]["list"]} >= {"datasource", "namespace"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}, panel["title"]
        for target in panel["targets"]:
            assert "webhook" in target["expr"] or "volume" in target["expr"] or "$namespace" in target["expr"]
