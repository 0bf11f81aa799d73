"""The deployments: how one is named and loaded, and what it is to whoever writes manifests for it.

The chart's tests hold the chart to what is told here by the code.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskflux.stream.topics import dead_letter_group, dead_letter_topic, router_group, task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.process import EVERYTHING, Service
from taskflux.worker.settings import HttpSettings, Settings, WorkerSettings

PACKAGE: Final = "taskflux.handlers"
"""What `handlers/` is installed as. Its modules are loaded by name only: no other module imports one."""
BUILT_IN: Final[Sequence[str]] = sorted(
    module.name.replace("_", "-") for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
)
"""Every module of `handlers/` is one deployment."""

LIVENESS: Final = "/livez"
READINESS: Final = "/readyz"
METRICS: Final = "/metrics"
PORT: Final[int] = HttpSettings().port
"""Where every deployment answers these three, and ingest and notify their API, unless told otherwise."""
DRAIN_SECONDS: Final[float] = WorkerSettings().drain_seconds
"""What running attempts may take after SIGTERM, unless told otherwise."""


def deployments_folder() -> Path:
    """Where the sources of the built-in deployments are."""
    return Path(next(iter(importlib.import_module(PACKAGE).__path__)))


class UnknownHandler(Exception):
    """There is nothing to run under that name."""


def load(name: str) -> Handler[Any] | Service:
    """What `name` stands for: `process-email`, or `package.module:attribute`.

    Raises:
        UnknownHandler: a sentence that says what is wrong with it.
    """
    if ":" not in name:
        if name not in BUILT_IN:
            raise UnknownHandler(
                f"there is no handler {name!r}: choose {', '.join(BUILT_IN)},"
                " or name your own as package.module:attribute"
            )
        attribute = name.replace("-", "_")
        return _get(f"{PACKAGE}.{attribute}", attribute, name)
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # an application's own handlers stand where the command is called
    return _get(module, attribute, name)


def built_in_handlers() -> Sequence[Handler[Any]]:
    """The task handlers among the built-in deployments."""
    return [target for target in map(load, BUILT_IN) if isinstance(target, Handler)]


def _get(module: str, attribute: str, name: str) -> Handler[Any] | Service:
    try:
        target = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UnknownHandler(f"{name!r} cannot be imported: {error}. Is its folder the one you stand in?") from error
    except (TypeError, ValueError) as error:
        # No name of a module, or a declaration that contradicts itself.
        raise UnknownHandler(f"{name!r} cannot be run: {error}") from error
    except AttributeError as error:
        raise UnknownHandler(f"{name!r}: the module {module} has no {attribute}") from error
    if not isinstance(target, Handler | Service):
        raise UnknownHandler(f"{name!r} is no handler: declare the function with @handler(…)")
    return target


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
