"""The table of all settings, made from the classes that read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from click.shell_completion import get_completion_class
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from taskflux.cli.loading import built_in_handlers
from taskflux.cli.program import FAILED, leave
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Declared, Label
from taskflux.worker.settings import Settings


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


BEGIN: Final = "<!-- The table is made by `make docs` from taskflux/telemetry/metrics.py. -->"
END: Final = "<!-- The end of the table. -->"
_MOST: Final = 30
"""Values of a label that are listed one by one."""


def table() -> str:
    """A Markdown table of every metric, in the order of their declaration."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
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
    listed = label.values if len(label.values) <= _MOST or not label.said else ()
    return ", ".join([*(f"`{value}`" for value in listed), *([label.said] if label.said else [])])


def renewed(page: str) -> str:
    """`page` with the table between its two marks made anew.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


def static_document() -> str:
    """The document as the file holds it."""
    from taskflux.http.openapi.document import api_document

    types = {handler.type: handler.task_type().schema for handler in built_in_handlers()}
    return json.dumps(api_document(types), indent=2, ensure_ascii=False) + "\n"


@click.command()
def openapi() -> None:
    """Print the API's OpenAPI 3.1 description. A running TaskFlux serves its own, with your types, at /openapi.json."""
    click.echo(static_document(), nl=False)


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash   eval "$(taskflux completion bash)"            in ~/.bashrc
    zsh    eval "$(taskflux completion zsh)"             in ~/.zshrc
    fish   taskflux completion fish | source             in ~/.config/fish/config.fish
    """
    from taskflux.cli import main

    kind = get_completion_class(shell)
    if kind is None:
        leave(f"{shell} is not known to this version of click", FAILED)
    # source() of bash first runs the shell to learn its version; the text alone needs no shell.
    complete = kind(main, {}, "taskflux", "_TASKFLUX_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
