"""What is counted: the table of events, the table of counters, and the values, with no I/O.

Guarantees, and what each rests on:
1. An event counts once. `seen` holds the last `seq` of each `epoch` (a guard's life, or an incident's); a guard
   sends in order, so a `seq` that is not above it was counted before.
2. An event counts wholly or not at all: it is checked in full before the first value changes.
3. What is read back from a file was checked as if an enemy had written it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import ProtocolError, RankguardError
from sidecar.model import ArtifactStatus, Cause, Outcome, Reason

SCHEMA = "rankguard.dev/counters/v1"
MAX_SERIES = 8192  # of one counter; more label values than this are counted as "other"
MAX_LABEL = 128  # characters of one label value
MAX_EPOCHS = 64  # an epoch's events are unacknowledged for seconds, so the last 64 are plenty
MAX_VALUE = 1e18  # seconds or bytes: an exabyte
MAX_COUNT = 2**53  # what a Prometheus sample can hold without rounding

# What the API server is asked for.
OPERATIONS = ("get_pod", "create_event", "patch_event", "patch_pod", "delete_pod", "get_configmap")

Labels = tuple[str, ...]


class BrokenCounters(RankguardError):
    """A counters file that cannot be believed."""


@dataclass(frozen=True, slots=True)
class Counter:
    """`rankguard_<key>_total`. `seeds` are label values that are 0 from the start: alerts need a 0 to rise from."""

    labels: Labels
    help: str
    seeds: tuple[Labels, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """`rankguard_<key>`. `bounds` are upper limits in seconds; +Inf is implied."""

    labels: Labels
    help: str
    bounds: tuple[float, ...]


COUNTERS: Mapping[str, Counter] = {
    "rank_deaths": Counter(
        ("cause",), "Deaths of ranks that Rankguard did not cause, by cause.", tuple((c.value,) for c in Cause)
    ),
    "rank_deaths_by_rank": Counter(("role", "rank"), "Deaths of ranks that Rankguard did not cause, by rank."),
    "incidents": Counter(("reason",), "Incidents, by reason.", tuple((r.value,) for r in Reason)),
    "captures": Counter(("kind", "outcome"), "Pieces of evidence, by kind and by what became of them."),
    "terminations": Counter(
        ("outcome",), "Terminations of the engine, by how they ended.", tuple((o.value,) for o in Outcome)
    ),
    "liveness_failures": Counter(
        ("probe",),
        "Times that the engine was found stuck or dead, by what found it.",
        (("http",), ("progress",), ("prestop",)),
    ),
    "reap_timeouts": Counter((), "Terminations after which a process was still there at the limit.", ((),)),
    "records_lost": Counter(("what",), "Evidence or records that could not be written, by what was lost."),
    "kubernetes_errors": Counter(
        ("operation",), "Calls of the API server that failed, by what they were for.", tuple((o,) for o in OPERATIONS)
    ),
    "process_restarts": Counter(
        ("process",), "Restarts of Rankguard's own processes.", (("guard",), ("recorder",), ("web",))
    ),
}

HISTOGRAMS: Mapping[str, Histogram] = {
    "capture_seconds": Histogram(
        ("kind",),
        "Seconds that one piece of evidence took, by kind.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    ),
    "failfast_seconds": Histogram(
        (),
        "Seconds from the detection of a failure until the engine was gone.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
    ),
}

# Gauges that an event sets. They are kept too, since a restarted process would not hear of them again.
GAUGES: Mapping[str, str] = {
    "last_incident_timestamp_seconds": "When the last incident began, in seconds since the epoch; 0 if there was none.",
    "dump_bytes": "Bytes that the incidents on the volume take.",
    "dump_free_bytes": "Bytes that are free on the volume.",
}


# What a collector makes where that is not one artifact of its own name. One that is missing here starts at its first.
KINDS: Mapping[str, tuple[str, ...]] = {
    "process": ("process", "process2"),
    "pyspy": ("pyspy_json", "pyspy_text", "pyspy2_json", "pyspy2_text"),
    "metrics": ("engine_metrics",),
    "pyspy_native": ("pyspy_native_json", "pyspy_native_text"),
    "crash_folder": ("crash_file",),
}


@dataclass(frozen=True, slots=True)
class _Count:
    counter: str
    fields: tuple[str, ...] = ()  # the event's fields, in the order of the counter's labels


@dataclass(frozen=True, slots=True)
class _Observe:
    histogram: str
    value: str
    fields: tuple[str, ...] = ()
    unless: tuple[str, str] = ("", "")  # (field, value): nothing was timed


@dataclass(frozen=True, slots=True)
class _Set:
    gauge: str
    value: str
    unknown: int | None = None  # this value means that nobody knows


EVENTS: Mapping[str, tuple[_Count | _Observe | _Set, ...]] = {
    "rank_death": (_Count("rank_deaths", ("cause",)), _Count("rank_deaths_by_rank", ("role", "rank"))),
    "incident": (_Count("incidents", ("reason",)), _Set("last_incident_timestamp_seconds", "wall")),
    "liveness_failure": (_Count("liveness_failures", ("probe",)),),
    "captured": (
        _Count("captures", ("kind", "status")),
        _Observe("capture_seconds", "seconds", ("kind",), unless=("status", ArtifactStatus.SKIPPED.value)),
    ),
    "terminated": (_Count("terminations", ("outcome",)),),
    "closed": (),
    "failfast": (_Observe("failfast_seconds", "seconds"),),
    "reap_timeout": (_Count("reap_timeouts"),),
    "store": (_Set("dump_bytes", "dump_bytes", unknown=-1), _Set("dump_free_bytes", "free_bytes", unknown=-1)),
    "lost": (_Count("records_lost", ("what",)),),
    "process_restart": (_Count("process_restarts", ("process",)),),
}


@dataclass(slots=True)
class Timings:
    """One series of a histogram: `buckets[i]` counts the values up to `bounds[i]` alone; the last one is +Inf."""

    buckets: list[int]
    sum: float = 0.0


@dataclass(slots=True)
class Counts:
    """All values. Not thread-safe: only the event loop touches it. `about` is what else the file says, and is not read
    back: whose it is (`sidecar.keeping`)."""

    counters: dict[str, dict[Labels, int]] = field(default_factory=lambda: {name: {} for name in COUNTERS})
    histograms: dict[str, dict[Labels, Timings]] = field(default_factory=lambda: {name: {} for name in HISTOGRAMS})
    gauges: dict[str, float] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def is_new(self, epoch: str, seq: int) -> bool:
        return seq > self.seen.get(epoch, -1)

    def mark(self, epoch: str, seq: int) -> None:
        """Remember that `seq` of `epoch` was counted, and forget the lives of long ago."""
        last = self.seen.pop(epoch, -1)
        self.seen[epoch] = max(last, seq)  # popped and set: the order is that of the last use
        while len(self.seen) > MAX_EPOCHS:
            del self.seen[next(iter(self.seen))]

    def apply(self, event: Mapping[str, Any], weight: int = 1) -> bool:
        """Count one event (`weight` -1 takes it back). False if its name is unknown.

        Raises `ProtocolError`, and changes nothing, where a field is missing or is not what it should be.
        """
        name = event.get("name")
        steps = EVENTS.get(name) if isinstance(name, str) else None
        if steps is None:
            return False
        ready: list[tuple[_Count | _Observe | _Set, Labels, float]] = []
        for step in steps:
            if isinstance(step, _Set) and step.unknown is not None and event.get(step.value) == step.unknown:
                continue
            labels = () if isinstance(step, _Set) else tuple(clean(event.get(key)) for key in step.fields)
            value = 1.0 if isinstance(step, _Count) else _number(event.get(step.value), step.value)
            ready.append((step, labels, value))
        for step, labels, value in ready:
            if isinstance(step, _Count):
                series = self.counters[step.counter]
                labels = _within(series, labels)
                series[labels] = max(0, series.get(labels, 0) + weight)
                if step.counter == "captures":
                    self.seed_kind(labels[0])
            elif isinstance(step, _Observe):
                if event.get(step.unless[0]) != step.unless[1]:
                    self._observe(step.histogram, labels, value, weight)
            elif weight > 0:
                self.gauges[step.gauge] = value
        return True

    def seed_kind(self, kind: str) -> None:
        """Let every outcome of a kind of evidence be told, from 0."""
        series = self.counters["captures"]
        for status in ArtifactStatus:
            if len(series) < MAX_SERIES:
                series.setdefault((kind, status.value), 0)

    def _observe(self, name: str, labels: Labels, value: float, weight: int) -> None:
        series = self.histograms[name]
        timings = series.setdefault(_within(series, labels), _no_timings(name))
        at = bisect_left(HISTOGRAMS[name].bounds, value)
        timings.buckets[at] = max(0, timings.buckets[at] + weight)
        timings.sum = max(0.0, timings.sum + weight * value)

    def merge(self, older: Counts) -> None:
        """Add what an earlier life had counted. A gauge that this life knows already stays, the later time wins."""
        for name, counts in older.counters.items():
            for labels, count in counts.items():
                series = self.counters[name]
                labels = _within(series, labels)
                series[labels] = series.get(labels, 0) + count
        for name, histograms in older.histograms.items():
            for labels, timings in histograms.items():
                mine = self.histograms[name].setdefault(labels, _no_timings(name))
                mine.buckets = [a + b for a, b in zip(mine.buckets, timings.buckets, strict=True)]
                mine.sum += timings.sum
        stamp = "last_incident_timestamp_seconds"
        if stamp in older.gauges:
            self.gauges[stamp] = max(older.gauges[stamp], self.gauges.get(stamp, 0.0))
        self.gauges = {**older.gauges, **self.gauges}
        live, self.seen = self.seen, dict(older.seen)
        for epoch, seq in live.items():
            self.mark(epoch, seq)

    def dump(self) -> bytes:
        """All values as JSON, for `load`."""
        return json.dumps(
            {
                **self.about,
                "schema": SCHEMA,
                "counters": {name: list(series.items()) for name, series in self.counters.items()},
                "histograms": {
                    name: {"bounds": HISTOGRAMS[name].bounds, "series": [[k, t.buckets, t.sum] for k, t in s.items()]}
                    for name, s in self.histograms.items()
                },
                "gauges": self.gauges,
                "seen": list(self.seen.items()),
            },
            separators=(",", ":"),
        ).encode()


def load(data: bytes) -> Counts:
    """The values that `dump` wrote. Raises `BrokenCounters` on anything else.

    Counters that this version does not know are left out, as are histograms with other bounds than this version's.
    """
    try:
        return _loaded(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, ProtocolError) as error:
        raise BrokenCounters(f"{type(error).__name__}: {error}"[:200]) from error


def _loaded(top: Any) -> Counts:
    if top["schema"] != SCHEMA:
        raise ValueError("another schema")
    counts = Counts()
    for name, spec in COUNTERS.items():
        for labels, value in top["counters"].get(name, ()):
            series = counts.counters[name]
            series[_within(series, _checked(labels, len(spec.labels)))] = _count(value)
    for name, histogram in HISTOGRAMS.items():
        kept = top["histograms"].get(name)
        if kept is None or tuple(kept["bounds"]) != histogram.bounds:
            continue
        for labels, buckets, total in kept["series"]:
            if len(buckets) != len(histogram.bounds) + 1:
                raise ValueError("a histogram with missing buckets")
            timings = Timings([_count(b) for b in buckets], _number(total, "sum"))
            counts.histograms[name][_checked(labels, len(histogram.labels))] = timings
    for name in GAUGES:
        if name in top["gauges"]:
            counts.gauges[name] = _number(top["gauges"][name], name)
    for epoch, seq in top["seen"][-MAX_EPOCHS:]:
        counts.mark(clean(epoch), _count(seq))
    return counts


def seeded(captures: Iterable[str]) -> Counts:
    """Counts at 0 for every label value that is known beforehand; `captures` is the setting of that name."""
    counts = Counts()
    for name, spec in COUNTERS.items():
        counts.counters[name].update(dict.fromkeys(spec.seeds, 0))
    for kind in (kind for collector in captures for kind in KINDS.get(collector, (collector,))):
        counts.seed_kind(kind)
        counts.histograms["capture_seconds"][(kind,)] = _no_timings("capture_seconds")
    counts.histograms["failfast_seconds"][()] = _no_timings("failfast_seconds")
    return counts


def _no_timings(name: str) -> Timings:
    return Timings([0] * (len(HISTOGRAMS[name].bounds) + 1))


def clean(value: Any) -> str:
    """`value` as a label: printable, valid UTF-8, of bounded length. Raises `ProtocolError` if it is no text."""
    if not isinstance(value, str):
        raise ProtocolError(f"a text was expected, not {type(value).__name__}")
    # A rank's label can come from a process title. Lone surrogates cannot be encoded and would fail every scrape.
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value[:MAX_LABEL])[:MAX_LABEL]


def _within(series: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if labels in series or len(series) < MAX_SERIES else ("other",) * len(labels)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_VALUE:
        raise ProtocolError(f"{name} is not a number from 0 to {MAX_VALUE:g}")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_COUNT:
        raise ValueError("a count is not a whole number of at least 0")
    return value


def _checked(labels: Any, number: int) -> Labels:
    if not isinstance(labels, list) or len(labels) != number:
        raise ValueError("labels of another shape")
    return tuple(clean(label) for label in labels)
