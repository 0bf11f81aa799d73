"""The deployments: how one is named and loaded, and what the services among them read that scale by lag."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskflux.stream.topics import dead_letter_group, dead_letter_topic, router_group
from taskflux.worker.handler import Handler
from taskflux.worker.process import Service
from taskflux.worker.settings import Settings

PACKAGE: Final = "taskflux.handlers"
"""What `handlers/` is installed as. Its modules are loaded by name only: no other module imports one."""
BUILT_IN: Final[Sequence[str]] = sorted(
    module.name.replace("_", "-") for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
)
"""Every module of `handlers/` is one deployment."""


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


def services_that_read(settings: Settings) -> dict[str, Reads]:
    """By name, the deployments besides the task handlers that scale by lag."""
    prefix = settings.kafka.topic_prefix
    return {
        "dlq-sink": Reads(dead_letter_group(prefix), dead_letter_topic(prefix)),
        "router": Reads(router_group(prefix), settings.router.topic),
    }
