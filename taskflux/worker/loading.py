"""The deployments: how one is named and loaded, and what the services among them read that scale by lag."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from taskflux.stream.topics import dead_letter_group, dead_letter_topic, router_group
from taskflux.worker.handler import Handler
from taskflux.worker.process import Service
from taskflux.worker.settings import Settings

OBJECTS: Final = 5_000
"""New containers after which Python looks for garbage: those of the tasks in a busy worker are no garbage."""

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
    """What `name` stands for: `process-email`, `package.module:attribute`, or a module with one handler.

    Raises:
        UnknownHandler: a sentence that says what is wrong with it.
    """
    if name in BUILT_IN:
        attribute = name.replace("-", "_")
        return _attribute(_imported(f"{PACKAGE}.{attribute}", name), attribute, name)
    module, colon, attribute = name.partition(":")
    if colon:
        return _attribute(_imported(module, name), attribute, name)
    found = _handlers_of(_imported(module, name), name)
    if len(found) > 1:
        raise UnknownHandler(f"{name!r} has {len(found)} handlers: name one of them, {', '.join(found)}")
    return next(iter(found.values()))


def run(name: str) -> int:
    """Run what `name` stands for until it is told to end; the exit status.

    Raises:
        UnknownHandler: a sentence that says what is wrong with the name.
    """
    from taskflux.worker import process
    from taskflux.worker.worker import service_of

    service = service_of(load(name))
    gc.freeze()  # otherwise, the first collection would look through all that was imported
    gc.set_threshold(OBJECTS)
    gc.enable()
    return process.run(service)


def load_own(names: Sequence[str]) -> Mapping[str, Handler[Any]]:
    """The task handlers that these modules, or `package.module:attribute`, stand for: `module:attribute` → handler.

    Each is there once, and of the built-in ones none.

    Raises:
        UnknownHandler: a sentence that says what is wrong with a name.
    """
    found: dict[str, Handler[Any]] = {}
    for name in names:
        if name in BUILT_IN:
            beside = "run it beside `taskflux dev`, by `taskflux run router --topic …`"
            runs = beside if name == "router" else "`taskflux dev` runs it by itself"
            raise UnknownHandler(f"{name!r} is built in: {runs}. Name modules of your own here")
        module, colon, attribute = name.partition(":")
        loaded = _imported(module, name, built_in=())
        if not colon:
            found |= _handlers_of(loaded, name)
            continue
        target = _attribute(loaded, attribute, name)
        if not isinstance(target, Handler):
            raise UnknownHandler(f"{name!r} is a service, not the handler of a task type")
        found[name] = target
    built_in = {id(target) for target in built_in_handlers()}
    once = {id(handler): target for target, handler in reversed(found.items()) if id(handler) not in built_in}
    return {target: handler for target, handler in found.items() if once.get(id(handler)) == target}


def built_in_handlers() -> Sequence[Handler[Any]]:
    """The task handlers among the built-in deployments."""
    return [target for target in map(load, BUILT_IN) if isinstance(target, Handler)]


def _imported(module: str, name: str, built_in: Sequence[str] = BUILT_IN) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # an application's own handlers stand where the command is called
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UnknownHandler(_not_there(name, error.name, built_in)) from error
        raise UnknownHandler(f"{name!r} cannot be imported: {_reason(error)}") from error
    except (Exception, SystemExit) as error:  # whatever its own code raises, such as for a contradictory declaration
        raise UnknownHandler(f"{name!r} cannot be imported: {_reason(error)}") from error


def _not_there(name: str, missing: str, built_in: Sequence[str]) -> str:
    """Why there is no module `missing`, and which one, or which of the `built_in` deployments, may be meant."""
    if name.endswith(".py") or "/" in name:
        module = name.strip("./").removesuffix(".py").replace("/", ".")
        return f"{name!r} is a path: name the module as Python does, {module}"
    parent, _, last = missing.rpartition(".")
    folders = list(sys.modules[parent].__path__) if parent in sys.modules else [] if parent else [str(Path.cwd())]
    there = [module.name for module in pkgutil.iter_modules(folders)]
    close = get_close_matches(last, [*there, *(built_in if name == missing else ())], n=1)
    meant = f" Did you mean {f'{parent}.' if parent else ''}{close[0]}?" if close else ""
    if built_in and name == missing and not parent:
        return (
            f"there is no handler {name!r}: choose {', '.join(built_in)},"
            f" or name your own as package.module:attribute.{meant}"
        )
    question = meant or " Is its folder the current directory?"
    return f"{name!r} cannot be imported: there is no module {missing!r}.{question}"


def _handlers_of(module: ModuleType, name: str) -> Mapping[str, Handler[Any]]:
    """The task handlers of a module, each under its first name.

    Raises:
        UnknownHandler: it has none.
    """
    found = {f"{name}:{each}": value for each, value in vars(module).items() if isinstance(value, Handler)}
    if not found:
        inside = [each.name for each in pkgutil.iter_modules(getattr(module, "__path__", ()))]
        place = getattr(module, "__file__", None)
        where = f" ({_shown(place)})" if place else ""
        instead = f", or name one of its modules: {', '.join(f'{name}.{each}' for each in inside)}" if inside else ""
        raise UnknownHandler(f"{name!r}{where} has no handler: declare a function with @handler(…){instead}")
    return found


def _attribute(module: ModuleType, attribute: str, name: str) -> Handler[Any] | Service:
    try:
        target = getattr(module, attribute)
    except AttributeError as error:
        there = sorted(each for each, value in vars(module).items() if isinstance(value, Handler | Service))
        instead = f"; handlers in it: {', '.join(there)}" if there else ""
        close = get_close_matches(attribute, there, n=1)
        meant = f". Did you mean {module.__name__}:{close[0]}?" if close else ""
        raise UnknownHandler(f"{name!r}: the module {module.__name__} has no {attribute}{instead}{meant}") from error
    if not isinstance(target, Handler | Service):
        raise UnknownHandler(f"{name!r} is not a handler: declare the function with @handler(…)")
    return target


def _reason(error: BaseException) -> str:
    """What went wrong inside a module, and where: the last line outside the libraries."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg}, in {_shown(error.filename)} at line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    # An application may be installed beside the libraries.
    frames = [frame for frame in frames if not _is_librarys(Path(frame.filename))] or frames
    return f"{said}, in {_shown(frames[-1].filename)} at line {frames[-1].lineno}" if frames else said


def _is_librarys(file: Path) -> bool:
    """Whether it is in one of the folders of code that is not the application's own."""
    named = (sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(file.is_relative_to(folder) for folder in (Path(__file__).parents[1], *map(Path, named)))


def _shown(file: str) -> str:
    """A file from where we stand, if it is below."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def check_together(handlers: Mapping[str, Handler[Any]]) -> Sequence[str]:
    """Whether these can run beside the built-in ones; the built-in deployments whose place they take.

    Raises:
        UnknownHandler: two have the same name or type, or one has that of a built-in one.
    """
    types = {handler.type: handler.name for handler in built_in_handlers()}
    replaced: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for target, handler in handlers.items():
        told = f"{target} ({place_of(handler)})"
        if (built_in := types.get(handler.type)) is not None:
            if not handler.replaces:
                raise UnknownHandler(
                    f"{told} declares the task type {handler.type!r}, which is the built-in {built_in}'s: give it"
                    " another type, or declare it with @handler(…, replaces=True) to run it instead"
                )
            replaced.append(built_in)
        for what, value in (("task type", handler.type), ("name", handler.name)):
            if other := seen.get((what, value)):
                change = "give one of them another type" if what == "task type" else "rename one of the functions"
                raise UnknownHandler(f"{told} and {other} have the same {what}, {value!r}: {change}")
            seen[what, value] = told
    for target, handler in handlers.items():
        if handler.name in BUILT_IN and handler.name not in replaced:
            raise UnknownHandler(
                f"{target} ({place_of(handler)}) has the name of the built-in {handler.name}: rename the function"
            )
    return replaced


def place_of(handler: Handler[Any]) -> str:
    """Where its function stands, as file:line."""
    function = inspect.unwrap(handler.function)
    code = getattr(function, "__code__", None)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}" if code is not None else function.__module__


def sources_of(handlers: Mapping[str, Handler[Any]]) -> Iterator[Path]:
    """The folders and files whose change may change these: what was imported of the application's own code."""
    here = Path.cwd().resolve()
    modules = [target.partition(":")[0] for target in handlers]
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/").resolve()
        if file.is_relative_to(here) and not _is_librarys(file) and ".venv" not in file.relative_to(here).parts:
            modules.append(name)
    for top in sorted({module.partition(".")[0] for module in modules} - {"taskflux", "__main__"}):
        places = getattr(sys.modules[top], "__path__", None) or [getattr(sys.modules[top], "__file__", None)]
        yield from (Path(place).resolve() for place in places if place)


class Reads(NamedTuple):
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
