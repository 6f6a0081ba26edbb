"""The engine's own metrics: whether work waits, and whether anything moves.

A whole page costs 24 ms per 1,000 lines to parse (seen) and has thousands, mostly buckets of histograms; so lines are
picked by their names as they come in, and only those are parsed.

Names are from the engines' sources: SGLang `srt/observability/metrics_collector.py` (once `srt/metrics/collector.py`),
vLLM `v1/metrics/loggers.py`. SGLang counts a request's tokens when it ends, so a long answer shows only in its latency
histograms, and in gauges. vLLM counts steps that give a token, so a prefill in chunks shows only in how full its cache
is. Hence a gauge that only a running scheduler sets is a sign of motion too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from sidecar.errors import RankguardError
from sidecar.policy.sightings import Scrape
from sidecar.web.liveness.fetch import Fetcher, NoAnswer

LARGEST_PAGE = 8 * 2**20  # bytes
_LARGEST_KEPT = 128 * 1024  # bytes of the lines that are wanted, about 1,000: their parsing holds up the loop
_LONGEST_LINE = 4096  # bytes; the parser takes the square of a hostile line's length

_RUNNING, _WAITING, _MOTION, _SHOWN = "running", "waiting", "motion", "shown"


def _counters(*names: str) -> dict[str, str]:
    """Counters, with and without the ending that some client libraries add."""
    return {form: _MOTION for name in names for form in (name, f"{name}_total")}


_WANTED: Mapping[str, Mapping[str, str]] = {
    "sglang": {
        "sglang:num_running_reqs": _RUNNING,
        "sglang:num_queue_reqs": _WAITING,
        **_counters(
            "sglang:generation_tokens", "sglang:prompt_tokens", "sglang:realtime_tokens", "sglang:num_requests",
        ),
        "sglang:time_to_first_token_seconds_count": _MOTION,
        "sglang:inter_token_latency_seconds_count": _MOTION,
        "sglang:time_per_output_token_seconds_count": _MOTION,
        "sglang:gen_throughput": _MOTION,
        "sglang:token_usage": _MOTION,
        "sglang:num_used_tokens": _MOTION,
        "sglang:cache_hit_rate": _SHOWN,
        "sglang:num_grammar_queue_reqs": _SHOWN,
        "sglang:num_retracted_reqs": _SHOWN,
        "sglang:num_paused_reqs": _SHOWN,
        "sglang:num_prefill_bootstrap_queue_reqs": _SHOWN,
        "sglang:num_prefill_inflight_queue_reqs": _SHOWN,
        "sglang:num_decode_prealloc_queue_reqs": _SHOWN,
        "sglang:num_decode_transfer_queue_reqs": _SHOWN,
    },
    "vllm": {
        "vllm:num_requests_running": _RUNNING,
        "vllm:num_requests_waiting": _WAITING,
        **_counters("vllm:generation_tokens", "vllm:prompt_tokens", "vllm:request_success"),
        "vllm:iteration_tokens_total_count": _MOTION,
        "vllm:kv_cache_usage_perc": _MOTION,
        "vllm:gpu_cache_usage_perc": _MOTION,
        "vllm:num_preemptions_total": _SHOWN,
        "vllm:num_requests_swapped": _SHOWN,
        "vllm:num_requests_waiting_by_reason": _SHOWN,
    },
}  # fmt: skip


async def scrape(
    url: str,
    timeout: float,
    engine: str,
    fetcher: Fetcher | None = None,
    on_trouble: Callable[[str], None] | None = None,
) -> tuple[Scrape, bytes]:
    """One reading of the metrics at `url`, and the lines that it was taken from, as they came (for people).

    `engine` is its profile's name; for any other than those known here both engines' names are looked for. Where no
    page can be had or believed the numbers are None and the lines empty, and `on_trouble` is told why.
    """
    at = time.monotonic()
    page = Page(engine)
    try:
        head = await (fetcher or Fetcher()).get(url, timeout, LARGEST_PAGE, page.take)
        if head.status != 200:
            raise Garbage(f"its metrics answer {head.status}")
        if head.encoding not in ("", "identity"):
            raise Garbage(f"its metrics come packed, which was not asked for: {head.encoding[:20]}")
        return page.scrape(at), page.lines()
    except (NoAnswer, Garbage) as error:
        if on_trouble is not None:
            on_trouble(str(error))
    return Scrape(at), b""


class Garbage(RankguardError):
    """A page that is no metrics, or that holds more of them than any engine has."""


class Page:
    """One page of metrics, which comes in pieces: only the lines that say something of `engine` are kept."""

    def __init__(self, engine: str) -> None:
        tables = [_WANTED[engine]] if engine in _WANTED else list(_WANTED.values())
        self._uses = {name: use for table in tables for name, use in table.items()}
        self._names = frozenset(name.encode() for name in self._uses)
        self._kept: list[bytes] = []
        self._size = 0
        self._rest = b""

    def take(self, piece: bytes) -> None:
        """The next piece, cut anywhere. Raises `Garbage`."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            raise Garbage(f"its metrics have a line of more than {_LONGEST_LINE} bytes")
        self._sift(lines)

    def lines(self) -> bytes:
        """What is kept, as it came. Raises `Garbage`."""
        self._sift([self._rest])  # a page may end without a line's end
        self._rest = b""
        return b"".join(self._kept)

    def scrape(self, at: float) -> Scrape:
        """The numbers, summed over all label sets: all engines with data parallelism, all ranks that report.

        Only none and some are certain of `running` and `waiting`: where every rank of SGLang reports, one request
        counts once for each. Raises `Garbage`.
        """
        sums = {use: _Sum() for use in (_RUNNING, _WAITING, _MOTION, _SHOWN)}
        try:
            for family in text_string_to_metric_families(self.lines().decode()):
                for sample in family.samples:
                    use = self._uses.get(sample.name, _SHOWN)
                    value = float(sample.value)
                    if math.isfinite(value) and not _counted_elsewhere(use, sample.labels):
                        sums[use].add(value)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise Garbage(f"its metrics cannot be read: {str(error)[:200] or type(error).__name__}") from None
        return Scrape(at, sums[_RUNNING].value, sums[_WAITING].value, sums[_MOTION].value)

    def _sift(self, lines: Iterable[bytes]) -> None:
        names = self._names
        for line in lines:
            if line.partition(b"{")[0].partition(b" ")[0] in names:
                self._size += len(line) + 1
                if len(line) > _LONGEST_LINE or self._size > _LARGEST_KEPT:
                    raise Garbage(f"its metrics are more than any engine has: over {self._size} bytes of the same few")
                self._kept.append(line + b"\n")


@dataclass(slots=True)
class _Sum:
    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + value


def _counted_elsewhere(use: str, labels: Mapping[str, str]) -> bool:
    """A part of a sum that stands there as well (SGLang, by priority), and ends for which no rank did anything."""
    if use in (_RUNNING, _WAITING):
        return bool(labels.get("priority"))
    return labels.get("finished_reason") in ("abort", "error")
