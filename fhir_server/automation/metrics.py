"""Figures of the engine, for Prometheus and `$hook-status`. https://prometheus.io/docs/practices/naming/"""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class Metrics(Collector):
    """`lags`: the latest lags in seconds, from the acknowledgement of a change to the commit of its effects (0: together)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lag = Histogram(
            "fhir_hooks_lag_seconds",
            "From the acknowledgement of a change to the commit of its effects",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.events = Counter("fhir_hooks_events", "Events dealt with", registry=self.registry)
        # Not by rule: /metrics needs no token, and that somebody has a critical value is nobody's to read there.
        self.firings = Counter("fhir_hooks_firings", "Derived resources written", ["type"], registry=self.registry)
        self.failures = Counter("fhir_hooks_failures", "Runs of a rule that failed", registry=self.registry)
        self.depth = Gauge("fhir_hooks_queue_depth", "Events waiting in the outbox", registry=self.registry)
        self.dead = Gauge("fhir_hooks_dead_letters", "Rules that were given up for a patient", registry=self.registry)
        self.commands: Tally[str] = Tally()
        self.fired: Tally[str] = Tally()
        self.failed: Tally[str] = Tally()
        self.lags: deque[float] = deque(maxlen=1_000)

    def effect(self, seconds: float) -> None:
        self.lag.observe(seconds)
        self.lags.append(seconds)

    def fire(self, rule: str, resource_type: str) -> None:
        self.firings.labels(resource_type).inc()
        self.fired[rule] += 1

    def fail(self, rule: str) -> None:
        self.failures.inc()
        self.failed[rule] += 1

    def quantile(self, share: float) -> float | None:
        """Of the latest lags, in seconds."""
        ordered = sorted(self.lags)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def collect(self) -> Iterable[Metric]:
        return self.registry.collect()
