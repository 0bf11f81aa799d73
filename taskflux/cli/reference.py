"""What the code tells of itself: its handlers, settings, variables, metrics and API; `make docs` keeps most in docs/.

`python -m taskflux.cli.reference docs/observability.md` renews the table of metrics in that page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from taskflux import secrets
from taskflux.cli.program import FAILED, KEY_VARIABLE, URL_VARIABLE, USAGE, leave, settings_or_leave
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Declared, Label
from taskflux.worker.loading import UnknownHandler, built_in_handlers, check_together, load_own, sources_of
from taskflux.worker.settings import Settings, WrongSettings, load_provider

BEGIN: Final = "<!-- The table is made by `make docs` from taskflux/telemetry/metrics.py. -->"
END: Final = "<!-- The end of the table. -->"
_MOST: Final = 30
"""Values of a label that are listed one by one."""


@click.command()
@click.option("--reference", is_flag=True, help="Show what can be set, as Markdown, instead of what is.")
def config(reference: bool) -> None:
    """Show the effective settings as JSON, secrets masked."""
    if reference:
        click.echo(settings_table())
        return
    document: dict[str, Any] = json.loads(settings_or_leave().model_dump_json())
    try:
        for handler in built_in_handlers():
            if handler.provider is not None:
                section = load_provider(handler.provider.name, handler.provider.settings)
                document[handler.provider.name] = json.loads(section.model_dump_json())
    except WrongSettings as error:
        leave(f"the settings are wrong.\n{error}", USAGE)
    click.echo(json.dumps(document, indent=2))


def sections() -> Mapping[str, type[BaseModel]]:
    """Every section of settings by its name in the environment, the providers' own behind the program's."""
    found = {name: field.annotation for name, field in Settings.model_fields.items()}
    for handler in built_in_handlers():
        if handler.provider is not None:
            found[handler.provider.name] = handler.provider.settings
    return {name: model for name, model in found.items() if isinstance(model, type) and issubclass(model, BaseModel)}


def settings_table() -> str:
    """A Markdown table for each section."""
    return "\n".join("\n".join(_section(name, model)) for name, model in sections().items())


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    summary = (model.__doc__ or "").strip().splitlines()[0]
    yield f"**`TASKFLUX_{name.upper()}__…`** {summary}"
    yield ""
    yield "| setting | default | meaning |"
    yield "|---|---|---|"
    for field, info in model.model_fields.items():
        yield f"| `{field.upper()}` | {_default(info)} | {_meaning(info)} |"
    yield ""


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(info: FieldInfo) -> str:
    meaning = info.description or ""
    choices = _choices(info.annotation)
    return f"{meaning} ({', '.join(choices)})" if choices else meaning


def _choices(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


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
    ours = [Variable(URL_VARIABLE, "api", False), Variable(KEY_VARIABLE, "api", True)]
    return [*found, *ours, Variable(secrets.DIRECTORY, "secrets", False)]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


def metrics_table() -> str:
    """A Markdown table of every metric, in the order of their declaration."""
    return "\n".join(_metric_rows())


def _metric_rows() -> Iterator[str]:
    yield "| metric | type | labels | what it tells | by |"
    yield "|---|---|---|---|---|"
    for each in metrics.DECLARED.values():
        sentence = each.sentence.replace("|", "\\|")
        yield f"| `{each.name}` | {_kind(each)} | {_labels(each.labels)} | {sentence} | {each.by} |"


def _kind(declared: Declared) -> str:
    return f"{declared.kind}, exemplars" if declared.exemplars else declared.kind


def _labels(labels: tuple[Label, ...]) -> str:
    return "<br>".join(f"`{label.name}`: {_values(label)}" for label in labels)


def _values(label: Label) -> str:
    listed = label.values if len(label.values) <= _MOST or not label.description else ()
    return ", ".join([*(f"`{value}`" for value in listed), *([label.description] if label.description else [])])


def renewed(page: str) -> str:
    """`page` with the table between its two marks made anew.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{metrics_table()}\n\n{END}{after}"


def static_document() -> str:
    """The document with the built-in task types, as docs/openapi.json holds it."""
    from taskflux.http.openapi.operations import api_document

    types = {handler.type: handler.task_type().schema for handler in built_in_handlers()}
    return json.dumps(api_document(types), indent=2, ensure_ascii=False) + "\n"


@click.command("handlers", hidden=True)
@click.argument("names", nargs=-1, required=True)
def handlers(names: tuple[str, ...]) -> None:
    """Tell as JSON which handlers these modules have: for `taskflux dev`, which imports none of them itself."""
    try:
        with redirect_stdout(sys.stderr):  # what their own code prints
            found = load_own(names)
            replaced = check_together(found)
    except UnknownHandler as error:
        leave(str(error), FAILED)
    listed = [{"target": target, "name": each.name, "type": each.type} for target, each in found.items()]
    document = {"handlers": listed, "replaced": replaced, "sources": [str(path) for path in sources_of(found)]}
    click.echo(json.dumps(document))


@click.command()
def openapi() -> None:
    """Print the API's OpenAPI 3.1 description. A running TaskFlux serves its own, with your types, at /openapi.json."""
    click.echo(static_document(), nl=False)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
