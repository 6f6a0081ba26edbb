"""The shipped rules and the dashboard, and which metrics they speak of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "charts" / "rankguard" / "files" / "monitoring"
RULES, DASHBOARD = FILES / "rules.yaml", FILES / "dashboard.json"
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGE = ROOT / "docs" / "monitoring.md"


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found = json.loads(DASHBOARD.read_text())
    assert isinstance(found, dict)
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_expressions() -> Iterator[tuple[str, str]]:
    """(title, expression as Prometheus gets it) of each panel's queries."""
    values = {"$__rate_interval": "1m", "$__range": "24h", "$namespace": ".*", "$pod": ".*"}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def page_expressions() -> list[str]:
    """The queries in docs/monitoring.md: its blocks marked promql."""
    return re.findall(r"^```promql\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names, as `# TYPE` has them."""
    names = set(re.findall(r"\brankguard_[a-z_]+", expression))
    return {
        re.sub(r"_(bucket|sum|count)$", "", name) if name.endswith(("_bucket", "_sum", "_count")) else name
        for name in names
    }
