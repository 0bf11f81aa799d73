"""Calls to providers, as metrics."""

from __future__ import annotations

from taskflux.telemetry import calls, metrics, tracing


def install() -> None:
    """Count the calls of this process from now on."""
    calls.observe = _observe


def _observe(provider: str, outcome: str, seconds: float, traceparent: str | None) -> None:
    metrics.PROVIDER_REQUESTS.labels(provider, outcome).inc()
    metrics.PROVIDER_SECONDS.labels(provider).observe(seconds, tracing.exemplar(traceparent))
