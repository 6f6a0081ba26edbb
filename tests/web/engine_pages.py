"""Pages of metrics as the engines serve them: their names, labels and buckets, made by the library that they use."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_LATENCY = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_TOKENS = tuple(1 << power for power in range(18))


def sglang_page(
    running: Sequence[float] = (0, 0),
    waiting: Sequence[float] = (0, 0),
    generated: float = 0,
    usage: float = 0.0,
    priorities: bool = False,
    observed: str = "",
) -> bytes:
    """SGLang with --enable-metrics and one scheduler for each number of `running`. Over 1,000 lines.

    `observed`: the latency of which the page has four observations.
    """
    registry = CollectorRegistry()
    names = ["model_name", "engine_type", "dp_rank", "tp_rank", "pp_rank", "moe_ep_rank"]
    gauges = {
        name: Gauge(f"sglang:{name}", f"About {name}.", [*names, "priority"], registry=registry)
        for name in ("num_running_reqs", "num_queue_reqs")
    }
    others = {
        name: Gauge(f"sglang:{name}", f"About {name}.", names, registry=registry)
        for name in ("num_used_tokens", "token_usage", "gen_throughput", "cache_hit_rate", "num_retracted_reqs",
                     "num_grammar_queue_reqs", "spec_accept_length", "utilization")
    }  # fmt: skip
    per_stage = Histogram(
        "sglang:per_stage_req_latency_seconds", "Stages.", [*names, "stage"], buckets=_LATENCY, registry=registry
    )
    for rank, (ran, waited) in enumerate(zip(running, waiting, strict=True)):
        labels = [MODEL, "unified", str(rank), "0", "0", "0"]
        gauges["num_running_reqs"].labels(*labels, "").set(ran)
        gauges["num_queue_reqs"].labels(*labels, "").set(waited)
        if priorities:
            gauges["num_queue_reqs"].labels(*labels, "1").set(waited)
        for gauge in others.values():
            gauge.labels(*labels).set(0)
        others["token_usage"].labels(*labels).set(usage)
        for stage in ("tokenize", "api_server_dispatch", "request_process", "prefill_waiting", "prefill_forward",
                      "prefill_chunked_forward", "prefill_bootstrap", "prefill_transfer", "decode_prepare",
                      "decode_bootstrap", "decode_waiting", "decode_transferred", "decode_forward"):  # fmt: skip
            per_stage.labels(*labels, stage).observe(0.3)
    names = ["model_name", "engine_type", "is_streaming"]
    counters = {
        name: Counter(f"sglang:{name}", f"Number of {name}.", names, registry=registry)
        for name in ("prompt_tokens_total", "generation_tokens_total", "cached_tokens_total", "num_requests_total",
                     "num_so_requests_total", "num_aborted_requests_total")
    }  # fmt: skip
    for streaming in ("true", "false"):
        for counter in counters.values():
            counter.labels(MODEL, "unified", streaming).inc(0)
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        latency = Histogram(f"sglang:{name}", name, names, buckets=_LATENCY, registry=registry)
        for _ in range(4 if name == observed else 0):
            latency.labels(MODEL, "unified", "true").observe(0.5)
    counters["generation_tokens_total"].labels(MODEL, "unified", "true").inc(generated)
    func = Histogram("sglang:func_latency_seconds", "Functions.", ["name"], buckets=_LATENCY, registry=registry)
    for number in range(20):
        func.labels(f"function_{number}").observe(0.01)
    return generate_latest(registry)


def vllm_page(
    running: Sequence[float] = (0, 0, 0, 0),
    waiting: Sequence[float] = (0, 0, 0, 0),
    generated: float = 0,
    steps: int = 0,
    usage: float = 0.0,
    aborted: float = 0,
) -> bytes:
    """vLLM with one data parallel engine for each number of `running`. Over 1,000 lines."""
    registry = CollectorRegistry()
    names = ["model_name", "engine"]
    gauges = {
        name: Gauge(f"vllm:{name}", f"About {name}.", names, registry=registry)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "engine_sleep_state")
    }
    counters = {
        name: Counter(f"vllm:{name}", f"Number of {name}.", names, registry=registry)
        for name in ("prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries",
                     "prefix_cache_hits", "external_prefix_cache_queries")
    }  # fmt: skip
    ended = Counter("vllm:request_success", "Ended.", [*names, "finished_reason"], registry=registry)
    iteration = Histogram(
        "vllm:iteration_tokens_total", "Tokens of a step.", names, buckets=_TOKENS[:15], registry=registry
    )
    latencies = [
        Histogram(f"vllm:{name}_seconds", name, names, buckets=_LATENCY, registry=registry)
        for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time",
                     "request_inference_time", "request_prefill_time", "request_decode_time",
                     "request_time_per_output_token")
    ]  # fmt: skip
    sizes = [
        Histogram(f"vllm:{name}", name, names, buckets=_TOKENS, registry=registry)
        for name in ("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens",
                     "request_max_num_generation_tokens")
    ]  # fmt: skip
    Gauge("vllm:cache_config_info", "Info.", ["block_size", "engine"], registry=registry).labels("16", "0").set(1)
    for engine, (ran, waited) in enumerate(zip(running, waiting, strict=True)):
        labels = (MODEL, str(engine))
        gauges["num_requests_running"].labels(*labels).set(ran)
        gauges["num_requests_waiting"].labels(*labels).set(waited)
        gauges["kv_cache_usage_perc"].labels(*labels).set(usage)
        gauges["engine_sleep_state"].labels(*labels).set(0)
        for counter in counters.values():
            counter.labels(*labels).inc(0)
        for reason in ("stop", "length", "abort", "error", "repetition"):
            ended.labels(*labels, reason).inc(aborted if reason == "abort" else 0)
        for histogram in (iteration, *latencies, *sizes):
            histogram.labels(*labels)
    counters["generation_tokens"].labels(MODEL, "0").inc(generated)
    for _ in range(steps):
        iteration.labels(MODEL, "0").observe(3)
    return generate_latest(registry)
