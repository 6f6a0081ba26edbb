"""Everything that /metrics says, as the outer contract names it.

One collector over the counts and the last state, in a registry of our own, so that nothing else can slip in. The
answer changes only when something happens, so it is rendered once and kept.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar.model import State
from sidecar.web.counters import COUNTERS, GAUGES, HISTOGRAMS, Counts
from sidecar.web.state import EngineState

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Metrics(Collector):
    """`build` are the labels of rankguard_build_info; `config_errors` the number of settings that were refused."""

    def __init__(self, counts: Counts, build: dict[str, str], config_errors: int) -> None:
        self._counts = counts
        self._state: EngineState | None = None
        self._rights: Mapping[str, bool] = {}
        self._build = build
        self._config_errors = config_errors
        self._fleet_observes: bool | None = None
        self._kept: dict[tuple[str, bool], bytes] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def show(self, state: EngineState | None) -> None:
        """Take over the guard's word. None: there is no guard, and nothing is claimed about the ranks."""
        self._state = state
        self._kept.clear()

    def show_rights(self, rights: Mapping[str, bool]) -> None:
        """Take over the doctor's findings: what was tried, and whether it is there."""
        self._rights = rights
        self._kept.clear()

    def show_fleet(self, observes: bool) -> None:
        """Take over the fleet switch's word; until then it is what the guard was told by an earlier web."""
        self._fleet_observes = observes
        self._kept.clear()

    def changed(self) -> None:
        """A count changed: what was rendered is out of date."""
        self._kept.clear()

    def render(self, accept: str, compress: bool) -> tuple[str, bytes]:
        """The answer to a scrape: content type and body, in the format that `accept` asks for (OpenMetrics or text)."""
        # The library's own choice is asked with one of two fixed headers only: a stranger's version, which it compares
        # and repeats, can make it fail, and would be a new answer to keep each time.
        encoder, content_type = choose_encoder(OPENMETRICS if wants_openmetrics(accept) else "")
        body = self._kept.get((content_type, compress))
        if body is None:
            body = encoder(self._registry)
            if compress:
                body = gzip.compress(body, compresslevel=1, mtime=0)
            self._kept[content_type, compress] = body
        return content_type, body

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from self._kept_gauges()
        yield from self._counters()
        yield from self._histograms()
        yield _gauge("config_errors", "Settings that could not be used and were replaced.", self._config_errors)
        observes = self._fleet_observes
        if observes is None:
            observes = self._state is not None and self._state.observes
        yield _gauge("fleet_observe", "1 while the fleet switch has it only observe.", float(observes))
        build = GaugeMetricFamily("rankguard_build_info", "What runs here; always 1.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build

    def _engine(self) -> Iterator[Metric]:
        state = self._state
        up = GaugeMetricFamily("rankguard_rank_up", "Whether a known rank is running.", labels=["role", "rank"])
        expected = GaugeMetricFamily("rankguard_ranks_expected", "Ranks the engine should have; absent while unknown.")
        features = GaugeMetricFamily(
            "rankguard_capability_available", "Whether the kernel and our rights give us this.", labels=["capability"]
        )
        engine = GaugeMetricFamily("rankguard_engine_state", "1 for the state the engine is in.", labels=["state"])
        if state is not None:
            # A label that was given to two processes is one series: up if one of them is.
            ranks: dict[tuple[str, str], bool] = {}
            for rank in state.ranks:
                ranks[rank.role, rank.rank] = rank.up or ranks.get((rank.role, rank.rank), False)
            for labels, there in ranks.items():
                up.add_metric(labels, float(there))
            if state.expected is not None:
                expected.add_metric((), state.expected)
            for name in dict.fromkeys([*(s.value for s in State), state.state]):
                engine.add_metric((name,), float(name == state.state))
        # What the guard itself found of the kernel comes first: it is what the watch rests on.
        for name, there in {**self._rights, **(state.features if state is not None else {})}.items():
            features.add_metric((name,), float(there))
        yield from (up, expected, features, engine)

    def _kept_gauges(self) -> Iterator[Metric]:
        for name, text in GAUGES.items():
            family = GaugeMetricFamily(f"rankguard_{name}", text)
            value = self._counts.gauges.get(name, 0.0 if name == "last_incident_timestamp_seconds" else None)
            if value is not None:
                family.add_metric((), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        for name, spec in COUNTERS.items():
            family = CounterMetricFamily(f"rankguard_{name}", spec.help, labels=spec.labels)
            series = self._counts.counters[name]
            for labels, count in series.items():
                family.add_metric(labels, count)
            if name == "rank_deaths_by_rank" and self._state is not None:
                for pair in dict.fromkeys((rank.role, rank.rank) for rank in self._state.ranks):
                    if pair not in series:
                        family.add_metric(pair, 0)
            yield family

    def _histograms(self) -> Iterator[Metric]:
        for name, spec in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"rankguard_{name}", spec.help, labels=spec.labels)
            series = self._counts.histograms[name]
            for labels, timings in series.items():
                total = 0
                buckets: list[tuple[str, float]] = []
                for bound, count in zip((*spec.bounds, math.inf), timings.buckets, strict=True):
                    total += count
                    buckets.append(("+Inf" if bound == math.inf else str(bound), total))
                family.add_metric(labels, buckets, timings.sum)
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"rankguard_{name}", text, value=value)


def wants_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0.0 is asked for before plain text. As in the library, `q` is not weighed."""
    for offer in accept.split(","):
        kind, *parameters = (part.strip() for part in offer.split(";"))
        version = next((p.partition("=")[2] for p in parameters if p.startswith("version=")), "")
        if kind == "application/openmetrics-text" and version in ("", "1.0.0"):
            return True
        if kind == "text/plain":
            return False
    return False
