"""What the webhook counts. Everything starts at 0, so that the first failure is an increase that an alert can see."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Of what this server decides itself; those of skipped pods are `sidecar.inject`'s.
OUTCOMES = {
    "injected": ("Injected",),
    "skipped": ("NoLabel", "NotAPod", "NotACreation", "SystemNamespace"),
    "error": ("InternalError",),
    "refused": ("Malformed", "TooLarge", "WrongVersion", "Disconnected"),
}
OPERATIONS = ("namespace", "namespaces", "claim", "event", "secret", "webhook_configuration")


class Metrics:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "rankguard_webhook_requests_total", "Admission requests, by what became of them and why.",
            ["outcome", "reason"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "rankguard_webhook_seconds", "From a whole request to its answer.", registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
        )  # fmt: skip
        self.expiry = Gauge(
            "rankguard_webhook_certificate_expiry_timestamp_seconds", "When the served certificate ends, 0 for none.",
            registry=registry,
        )  # fmt: skip
        self.config_errors = Gauge(
            "rankguard_webhook_config_errors", "1 while the options file cannot be used and an older one stands.",
            registry=registry,
        )  # fmt: skip
        self.certificate_errors = Counter(
            "rankguard_webhook_certificate_errors_total", "New certificates that could not be used or made.",
            registry=registry,
        )  # fmt: skip
        self.bundles = Counter(
            "rankguard_webhook_ca_bundle_writes_total", "Times that caBundle was not ours and was written.",
            registry=registry,
        )  # fmt: skip
        self.events = Counter(
            "rankguard_webhook_events_total", "Events on what a pod belongs to, by what became of them.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.api_errors = Counter(
            "rankguard_webhook_kubernetes_errors_total", "Calls to the API server that failed.", ["operation"],
            registry=registry,
        )  # fmt: skip
        for outcome, reasons in OUTCOMES.items():
            for reason in reasons:
                self.requests.labels(outcome, reason)
        for outcome in ("sent", "failed", "dropped", "repeated"):
            self.events.labels(outcome)
        for operation in OPERATIONS:
            self.api_errors.labels(operation)

    def render(self) -> bytes:
        return generate_latest(self._registry)
