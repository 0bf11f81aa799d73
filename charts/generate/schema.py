"""values.schema.json: every key of values.yaml and no other, so that a misspelt one fails by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from charts.generate import kubernetes
from charts.generate.settings import section_names, settings
from charts.generate.shapes import SECRET, SECRET_KEY, SHAPES
from charts.generate.values import Value

# The newest draft that older versions of Helm understand, too. It ignores what is next to a `$ref`: hence the `allOf`.
DRAFT: Final = "http://json-schema.org/draft-07/schema#"
# A label of the handler's pods, and behind the release's name a part of its objects'.
HANDLER_NAME: Final = "^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
RELAY: Final[Mapping[str, Any]] = {
    "allOf": [
        {"$ref": "#/$defs/handler"},
        {
            "properties": {
                "replicas": {"minimum": 1},
                "scaling": {"properties": {"minReplicas": {"minimum": 1}}},
            }
        },
    ],
    "description": "The relay recovers what was lost: one replica at least.",
}


class Undescribed(Exception):
    """A value has no comment, or nothing defines what it may be; the text names it."""


def schema(values: Value) -> dict[str, Any]:
    """The whole document. Raises Undescribed."""
    own = {"settings", "handlerDefaults", "handlers"}
    properties = {child.path[0]: _value(child) for child in values.children if child.path[0] not in own}
    properties["settings"] = {"$ref": "#/$defs/settings"}
    properties["handlerDefaults"] = {"$ref": "#/$defs/handler"}
    properties["handlers"] = {
        "description": "The deployments, by name.",
        "type": "object",
        "propertyNames": {"pattern": HANDLER_NAME},
        "properties": {"relay": RELAY},
        "additionalProperties": {"$ref": "#/$defs/handler"},
    }
    # Helm hands it down from a parent chart.
    properties["global"] = {"description": "Of a parent chart's; not read.", "type": "object"}
    return {
        "$schema": DRAFT,
        "title": "Values of the TaskFlux chart",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **_complete(values),
        # Apart from their definitions, which are those of a single handler's values as well.
        "allOf": [{"properties": {name: _complete(values.below(name)) for name in ("settings", "handlerDefaults")}}],
        "$defs": {
            "handler": _value(values.below("handlerDefaults")),
            "settings": _settings(values.below("settings")),
            **kubernetes.definitions(),
        },
    }


def _value(value: Value) -> dict[str, Any]:
    shape = SHAPES.get(value.name) or _of_a_secret(value)
    if shape is None and value.children:
        properties = {child.path[-1]: _value(child) for child in value.children}
        return {
            **({"description": value.description} if value.description else {}),
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            **({} if value.path[0] == "handlerDefaults" else _complete(value)),
        }
    if value.description is None:
        raise Undescribed(f"{value.name} has no comment that begins with `# --`")
    shape = shape or _by_default(value)
    return {"description": value.description, **({"allOf": [shape]} if "$ref" in shape else shape)}


def _complete(value: Value) -> dict[str, Any]:
    """That its sections are there: Helm takes away one that is left empty (`smtp:`), together with its defaults, and
    `--reuse-values` brings none that the chart before did not have.
    """
    return {"required": [child.path[-1] for child in value.children if isinstance(child.default, Mapping)]}


def _of_a_secret(value: Value) -> Mapping[str, Any] | None:
    if value.path[0] != "secrets" or value.children:
        return None
    return SECRET if value.path[-1] in ("existingSecret", "caSecret") else SECRET_KEY


def _by_default(value: Value) -> Mapping[str, Any]:
    match value.default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "minimum": 0}
        case str():
            return {"type": "string"}
        case _:
            raise Undescribed(f"charts/generate/shapes.py does not define {value.name}")


def _settings(values: Value) -> dict[str, Any]:
    """By the program's own classes; a section's summary is theirs."""
    properties: dict[str, Any] = {}
    for section, about in section_names():
        own = {each.name: each.schema for each in settings() if each.section == section}
        properties[section] = {
            "description": about,
            "type": "object",
            "properties": own,
            "additionalProperties": False,
        }
    if unknown := {child.path[-1] for child in values.children} ^ properties.keys():
        raise Undescribed(f"settings: not both in the values and in the program: {', '.join(sorted(unknown))}")
    return {
        "description": "Settings of the program; what is not set keeps its own default.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
