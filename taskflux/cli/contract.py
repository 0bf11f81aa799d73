"""What a deployment is to whoever writes manifests for it, told by the code: the chart's tests hold it to this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import SecretStr

from taskflux.cli.api import URL_VARIABLE
from taskflux.cli.loading import BUILT_IN, load
from taskflux.cli.reference import sections
from taskflux.stream.topics import dead_letter_group, dead_letter_topic, router_group, task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.process import EVERYTHING, Service
from taskflux.worker.settings import HttpSettings, Settings, WorkerSettings

LIVENESS: Final = "/livez"
READINESS: Final = "/readyz"
METRICS: Final = "/metrics"
PORT: Final[int] = HttpSettings().port
"""Where every deployment answers these three, and ingest and notify their API, unless told otherwise."""
DRAIN_SECONDS: Final[float] = WorkerSettings().drain_seconds
"""What running attempts may take after SIGTERM, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Reads:
    """A group and the topic whose records are its lag; no topic: none is set."""

    group: str
    topic: str | None


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


def services_that_read(settings: Settings) -> dict[str, Reads]:
    """The deployments besides the task handlers that scale by lag."""
    prefix = settings.kafka.topic_prefix
    return {
        "dlq-sink": Reads(dead_letter_group(prefix), dead_letter_topic(prefix)),
        "router": Reads(router_group(prefix), settings.router.topic),
    }


@dataclass(frozen=True, slots=True)
class Variable:
    """A name in the environment that is read; `section` is what stands before its two underscores."""

    name: str
    section: str
    secret: bool


def variables() -> Sequence[Variable]:
    """Every one, those of the built-in providers and of the command too."""
    found = [
        Variable(f"TASKFLUX_{section}__{field}".upper(), section, _is_secret(info.annotation))
        for section, model in sections().items()
        for field, info in model.model_fields.items()
    ]
    return [*found, Variable(URL_VARIABLE, "api", False)]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))
