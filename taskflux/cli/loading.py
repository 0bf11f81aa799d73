"""The deployments: how one is named and loaded, and what the services among them read that scale by lag."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import sysconfig
import traceback
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

_LIBRARIES: Final = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(each)) for each in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Folders of code that is not the application's own."""


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
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UnknownHandler(
                f"{name!r} cannot be imported: {error}. Is its folder the current directory?"
            ) from error
        raise UnknownHandler(f"{name!r} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:  # whatever its own code raises, such as for a contradictory declaration
        raise UnknownHandler(f"{name!r} cannot be imported: {_told(error)}") from error
    try:
        target = getattr(loaded, attribute)
    except AttributeError as error:
        there = [each for each, value in vars(loaded).items() if isinstance(value, Handler | Service)]
        instead = f"; handlers in it: {', '.join(sorted(there))}" if there else ""
        raise UnknownHandler(f"{name!r}: the module {module} has no {attribute}{instead}") from error
    if not isinstance(target, Handler | Service):
        raise UnknownHandler(f"{name!r} is no handler: declare the function with @handler(…)")
    return target


def _told(error: BaseException) -> str:
    """What went wrong inside a module, and where: the last line outside the libraries."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg}, in {error.filename} at line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    # An application may be installed beside the libraries.
    frames = [frame for frame in frames if not _is_librarys(Path(frame.filename))] or frames
    return f"{said}, in {frames[-1].filename} at line {frames[-1].lineno}" if frames else said


def _is_librarys(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _LIBRARIES)


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
