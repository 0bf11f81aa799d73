"""From a handler's name to what runs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import handlers
from handlers.runtime.handler import Handler
from handlers.runtime.process import Serves

BUILT_IN: Final[Sequence[str]] = sorted(
    path.stem.replace("_", "-") for path in Path(handlers.__file__).parent.glob("*.py") if path.stem != "__init__"
)
"""Every module of `handlers` is one deployment."""


class UnknownHandler(Exception):
    """There is nothing to run under that name."""


def load(name: str) -> Serves:
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
        return _get(f"handlers.{attribute}", attribute, name)
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # an application's own handlers stand where the command is called
    return _get(module, attribute, name)


def built_in_handlers() -> Sequence[Handler[object]]:
    """The task handlers among the built-in deployments."""
    return [target for target in map(load, BUILT_IN) if isinstance(target, Handler)]


def _get(module: str, attribute: str, name: str) -> Serves:
    try:
        target = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UnknownHandler(f"{name!r} cannot be imported: {error}. Is its folder the one you stand in?") from error
    except (TypeError, ValueError) as error:
        # No name of a module, or a declaration that contradicts itself.
        raise UnknownHandler(f"{name!r} cannot be run: {error}") from error
    except AttributeError as error:
        raise UnknownHandler(f"{name!r}: the module {module} has no {attribute}") from error
    if not hasattr(target, "serve"):
        raise UnknownHandler(f"{name!r} is no handler: declare the function with @handler(…)")
    return target  # type: ignore[no-any-return]
