"""Names and labels: what all of the chart's objects have in common."""

from __future__ import annotations

import yaml
from helm_chart import CHART, render

from sidecar.version import VERSION


def test_the_chart_is_of_the_version_that_it_installs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION
    assert chart["type"] == "application"


def test_nothing_is_rendered_for_those_who_use_the_templates_alone():
    """A chart that has this one among its dependencies gets no object that it did not ask for."""
    assert render({"webhook": {"enabled": False}}) == []
    assert render({"injection": "none"}) == []
