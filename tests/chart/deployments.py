"""What a deployment needs in its manifests, read from the code: the tests compare the chart with this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from taskflux.stream.topics import task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.loading import BUILT_IN, Reads, load, services_that_read
from taskflux.worker.process import EVERYTHING, Service
from taskflux.worker.settings import HttpSettings, Settings, WorkerSettings

LIVENESS: Final = "/livez"
READINESS: Final = "/readyz"
METRICS: Final = "/metrics"
PORT: Final[int] = HttpSettings().port
"""The default port of the probes and metrics, and of the API of ingest and notify."""
DRAIN_SECONDS: Final[float] = WorkerSettings().drain_seconds
"""The default time for running attempts after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One part: `taskflux run <name>`.

    `needs` are the servers that it does not start without. `task_type`, `provider` (by its section of settings),
    `timeout` (seconds) and `concurrency` are a task handler's.
    """

    name: str
    needs: tuple[str, ...]
    serves_api: bool
    reads: Reads | None = None
    task_type: str | None = None
    provider: str | None = None
    timeout: float | None = None
    concurrency: int | None = None


def deployments(settings: Settings) -> Sequence[Deployment]:
    """Every built-in part, under the topic prefix and the router's topic of `settings`."""
    return [deployment(load(name), settings) for name in BUILT_IN]


def deployment(target: Handler[Any] | Service, settings: Settings) -> Deployment:
    """What `target`, built in or one's own, is under these settings."""
    if isinstance(target, Service):
        reads = services_that_read(settings).get(target.name)
        return Deployment(target.name, target.needs, target.own_http, reads)
    prefix, policy = settings.kafka.topic_prefix, target.policy
    return Deployment(
        target.name,
        EVERYTHING,
        False,
        Reads(task_group(prefix, target.type), task_topic(prefix, target.type)),
        target.type,
        policy.provider,
        policy.timeout,
        target.concurrency,
    )
