"""What the viewer's /metrics says: what lies on the volume, and what all pods ever on it have counted.

The last look is told until there is another; where the volume has not answered, `rankguard_volume_readable` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar.dumps.counters import SUMMED
from sidecar.version import VERSION
from sidecar.view.survey import Survey
from sidecar.web.metrics import OPENMETRICS, wants_openmetrics

# The metric's name and its help for each counter that is summed. Incidents have another name than the gauge of those
# that are still there.
_SUMS = {
    "rank_deaths": ("rank_deaths", "Deaths of ranks that Rankguard did not cause, in all pods of the volume."),
    "incidents": ("incidents_recorded", "Incidents, in all pods of the volume, those removed since among them."),
    "liveness_failures": ("liveness_failures", "Times that an engine was found stuck or dead, by what found it."),
    "terminations": ("terminations", "Terminations of engines, by how they ended."),
    "reap_timeouts": ("reap_timeouts", "Terminations after which a process was still there at the limit."),
    "records_lost": ("records_lost", "Evidence or records that could not be written, by what was lost."),
}


class VolumeMetrics(Collector):
    def __init__(self) -> None:
        self._survey: Survey | None = None
        self._readable = False
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def show(self, survey: Survey | None) -> None:
        """Take over a look; None: the volume did not answer."""
        self._survey = survey or self._survey
        self._readable = survey is not None

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body."""
        encoder, content_type = choose_encoder(OPENMETRICS if wants_openmetrics(accept) else "")
        return content_type, encoder(self._registry)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield _gauge("readable", "1 while the volume can be read.", {(): float(self._readable)})
        build = GaugeMetricFamily("rankguard_viewer_build_info", "What runs here; always 1.", labels=["version"])
        build.add_metric([VERSION], 1)
        yield build
        if self._survey is not None:
            yield from self._gauges(self._survey)
            yield from self._counters(self._survey)

    def _gauges(self, survey: Survey) -> Iterator[Metric]:
        spaces = ("namespace",)
        yield _gauge("incidents", "Incidents on the volume, by reason.", survey.incidents, ("namespace", "reason"))
        yield _gauge("unreadable_incidents", "Incidents whose record cannot be used.", _by(survey.unreadable), spaces)
        yield _gauge("pinned_incidents", "Incidents that are pinned.", {(): survey.pinned})
        yield _gauge("pods", "Pods of which there are incidents.", _by(survey.pods), spaces)
        yield _gauge("bytes", "Bytes that the incidents' files have.", _by(survey.bytes), spaces)
        yield _gauge(
            "last_incident_timestamp_seconds", "When the newest incident began, in seconds since the epoch.",
            _by(survey.newest), spaces,
        )  # fmt: skip
        yield _gauge("free_bytes", "Bytes that are free on the volume.", {(): survey.free_bytes})
        yield _gauge("size_bytes", "Bytes that the volume has.", {(): survey.size_bytes})
        yield _gauge(
            "broken_counters", "Counters files that cannot be read; the sums are without them.", {(): survey.broken}
        )
        yield _gauge(
            "scan_timestamp_seconds", "When the volume was last looked at, in seconds since the epoch.", {(): survey.at}
        )
        yield _gauge("scan_seconds", "Seconds that the last look took.", {(): survey.seconds})

    def _counters(self, survey: Survey) -> Iterator[Metric]:
        for counter, labels in SUMMED.items():
            name, text = _SUMS[counter]
            family = CounterMetricFamily(f"rankguard_volume_{name}", text, labels=["namespace", *labels])
            for (namespace, other, values), count in survey.sums.items():
                if other == counter and len(values) == len(labels):
                    family.add_metric([namespace, *values], count)
            yield family


def _by(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in values.items()}


def _gauge(name: str, text: str, values: Mapping[Any, float], labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"rankguard_volume_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
