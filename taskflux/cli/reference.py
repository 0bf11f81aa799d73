"""The table of all settings, made from the classes that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from taskflux.cli.loading import built_in_handlers
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
