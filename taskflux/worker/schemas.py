"""The JSON schema of a payload's type: pydantic's own, and what it leaves out though the type insists on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_jsonable_python

from taskflux.tasks.patterns import AWARE, BOOLEAN_NAME, DECIMAL, INTEGER_NAME, NAIVE, NUMBER_NAME


def schema_text(adapter: TypeAdapter[Any]) -> str:
    """The schema that a type is registered with. Two types are the same where their texts are."""
    return json.dumps(adapter.json_schema(by_alias=True, schema_generator=_PayloadSchema), sort_keys=True)


_ZONES: Final = {"aware": AWARE, "naive": NAIVE}
_NAMES: Final = {"int": INTEGER_NAME, "float": NUMBER_NAME, "decimal": NUMBER_NAME, "bool": BOOLEAN_NAME}


class _PayloadSchema(GenerateJsonSchema):
    """What the model refuses, the schema refuses, as far as a schema can say it."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        config, properties = schema["cls"].model_config, found.get("properties", {})
        by_name = config.get("populate_by_name") or config.get("validate_by_name")
        if by_name and config.get("extra") != "forbid":  # else every other name is refused anyway
            for name, field in schema["cls"].model_fields.items():
                if isinstance(field.validation_alias, str) and field.validation_alias in properties:
                    properties.setdefault(name, properties[field.validation_alias])
        return found

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        found = super().str_schema(schema)
        stripped = schema.get("strip_whitespace", self._config.str_strip_whitespace)
        return _stripped(found) if stripped and "pattern" not in found else found

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        found = super().decimal_schema(schema)
        for branch in found.get("anyOf", []):
            if branch.get("type") == "string" and not schema.get("allow_inf_nan"):
                branch.setdefault("pattern", DECIMAL)
                branch |= _limits(schema)
        return found

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        found = super().tagged_union_schema(schema)
        if "discriminator" not in found:  # a function tells them apart: a value may fit several
            found["anyOf"] = found.pop("oneOf")
        return found

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return super().date_schema(schema) | _limits(schema)

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return super().time_schema(schema) | _limits(schema)

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return super().timedelta_schema(schema) | _limits(schema)

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        zone = _ZONES.get(str(schema.get("tz_constraint")))
        return super().datetime_schema(schema) | ({"pattern": zone} if zone else {}) | _limits(schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return super().url_schema(schema) | _schemes(schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        return super().multi_host_url_schema(schema) | _schemes(schema.get("allowed_schemes"))

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:
        found = super().json_schema(schema)
        return found | ({"format": "json-string"} if self.mode == "validation" else {})

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        names = _NAMES.get(schema.get("keys_schema", {}).get("type", ""))
        return super().dict_schema(schema) | ({"propertyNames": {"pattern": names}} if names else {})


LIMITS: Final = "x-taskflux-limits"
"""A keyword of our own: what JSON schema has no word for, of a value that is written as a text."""

LIMIT_NAMES: Final = ("gt", "ge", "lt", "le", "multiple_of", "max_digits", "decimal_places", "now_op")


def _limits(schema: Mapping[str, Any]) -> JsonSchemaValue:
    """The type of the value that a text stands for, and how early, late, small or large it may be."""
    found = {name: to_jsonable_python(schema[name]) for name in LIMIT_NAMES if schema.get(name) is not None}
    return {LIMITS: {"type": schema["type"], **found}} if found else {}


_COUNTED: Final = 500
"""Characters up to which a pattern counts them."""


def _stripped(found: JsonSchemaValue) -> JsonSchemaValue:
    """A text that is read without the spaces around it, and so counted."""
    least, most = found.get("minLength", 0), found.get("maxLength")
    if not least and most is None:
        return found
    if (most is not None and most > _COUNTED) or least > _COUNTED:
        return found | ({"pattern": r"\S", "description": "not only spaces"} if least else {})
    inner = rf"\S(?:[\s\S]{{{max(least - 2, 0)},{'' if most is None else max(most - 2, 0)}}}\S)"
    if most == 0:
        core = ""
    elif most == 1:
        core = r"\S"
    else:
        core = inner if least > 1 else inner + "?"
    counted = {name: each for name, each in found.items() if name not in ("minLength", "maxLength")}
    said = f"at least {least}" if most is None else f"{least} to {most}"
    pattern = rf"^\s*(?:{core}){'' if least else '?'}\s*$"
    return counted | {"pattern": pattern, "description": f"{said} characters, without the spaces around them"}


def _schemes(allowed: Iterable[str] | None) -> JsonSchemaValue:
    """Only URLs of these schemes."""
    if not allowed:
        return {}
    names = sorted(allowed)
    either = "|".join("".join(_letter(letter) for letter in name) for name in names)
    return {
        "pattern": rf"^\s*(?:{either}):",
        "description": f"a URL that begins with {' or '.join(f'{name}:' for name in names)}",
    }


def _letter(letter: str) -> str:
    return f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else f"[{letter}]"
