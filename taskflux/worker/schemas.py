"""The JSON schema of a payload's type: pydantic's, with the rules of the type that pydantic leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import AliasChoices, ByteSize, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_jsonable_python

from taskflux.tasks.fields import ASCII, AWARE, BOOLEAN_NAME, DECIMAL, INTEGER_NAME, NAIVE, NUMBER_NAME


def schema_text(adapter: TypeAdapter[Any]) -> str:
    """The schema that a type is registered with. Types with equal texts are the same."""
    return json.dumps(adapter.json_schema(by_alias=True, schema_generator=_PayloadSchema), sort_keys=True)


_ZONES: Final = {"aware": AWARE, "naive": NAIVE}
_NAMES: Final = {"int": INTEGER_NAME, "float": NUMBER_NAME, "decimal": NUMBER_NAME, "bool": BOOLEAN_NAME}


class _PayloadSchema(GenerateJsonSchema):
    """The schema refuses what the model refuses, as far as a schema can express it."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        config, properties = schema["cls"].model_config, found.get("properties", {})
        by_name = config.get("populate_by_name") or config.get("validate_by_name")
        if by_name and config.get("extra") != "forbid":  # otherwise every other name is refused anyway
            for name, field in schema["cls"].model_fields.items():
                if isinstance(field.validation_alias, str) and field.validation_alias in properties:
                    properties.setdefault(name, properties[field.validation_alias])
        for field in schema["cls"].model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                _add_names(found, [each for each in field.validation_alias.choices if isinstance(each, str)])
        return found

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        strict = {LIMITS: {"type": "int", "strict": True}} if self._strict(schema) else {}
        return super().int_schema(schema) | strict  # JSON schema's integers are 1.0, too

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        # pydantic describes how they are written; what matters is how they are read.
        return super().bytes_schema(schema) | {"format": _BYTES[self._config.val_json_bytes]}

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        return super().complex_schema(schema) | {"format": "complex"}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        if schema.get("pattern") == ByteSize.byte_string_pattern:  # which accepts any unit
            return {"type": "string", "format": "byte-size"}
        found = super().str_schema(schema)
        if schema.get("ascii_only"):
            found["allOf"] = [{"pattern": ASCII}]
        if len(found) > 1 and schema.get("strip_whitespace", self._config.str_strip_whitespace):
            return {"type": found.pop("type"), STRIPPED: found}
        return found

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        found = super().decimal_schema(schema)
        for branch in found.get("anyOf", []):
            if branch.get("type") == "number":
                branch |= _limits({name: schema.get(name) for name in ("type", *_DIGITS)})
            elif schema.get("allow_inf_nan"):
                branch |= {"format": "decimal"} | _limits(schema)
            elif branch.get("type") == "string":
                branch.setdefault("pattern", DECIMAL)
                branch |= _limits(schema)
        return found

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        found = super().tagged_union_schema(schema)
        if "discriminator" not in found:  # a function selects the branch: a value may fit several
            found["anyOf"] = found.pop("oneOf")
        return found

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return super().date_schema(schema) | self._limits_of(schema)

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return super().time_schema(schema) | self._limits_of(schema)

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return super().timedelta_schema(schema) | self._limits_of(schema)

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        zone = _ZONES.get(str(schema.get("tz_constraint")))
        return super().datetime_schema(schema) | ({"pattern": zone} if zone else {}) | self._limits_of(schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return super().url_schema(schema) | _schemes(schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        return super().multi_host_url_schema(schema) | _schemes(schema.get("allowed_schemes"))

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:
        found = super().json_schema(schema)
        return found | ({"format": "json-string"} if self.mode == "validation" else {})

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        names = _NAMES.get(schema.get("keys_schema", {}).get("type", ""))
        found = super().dict_schema(schema) | ({"propertyNames": {"pattern": names}} if names else {})
        for pattern in found.get("patternProperties", ()):  # which does not limit other names
            found["propertyNames"] = {"pattern": pattern, **found.get("propertyNames", {})}
        return found

    def _strict(self, schema: Mapping[str, Any]) -> bool:
        return bool(schema.get("strict", self._config.strict))

    def _limits_of(self, schema: Mapping[str, Any]) -> JsonSchemaValue:
        return _limits({**schema, "strict": self._strict(schema) or None})


LIMITS: Final = "x-taskflux-limits"
"""A keyword of our own: limits of values written as texts, which JSON schema cannot express."""

STRIPPED: Final = "x-taskflux-stripped"
"""Another one: the schema of a text without the spaces around it."""

_DIGITS: Final = ("max_digits", "decimal_places")
LIMIT_NAMES: Final = ("gt", "ge", "lt", "le", "multiple_of", *_DIGITS, "now_op", "strict", "allow_inf_nan")


def _limits(schema: Mapping[str, Any]) -> JsonSchemaValue:
    """The type of the value that a text represents, and its limits."""
    found = {name: to_jsonable_python(schema[name]) for name in LIMIT_NAMES if schema.get(name) is not None}
    return {LIMITS: {"type": schema["type"], **found}} if found else {}


_BYTES: Final = {"utf8": "binary", "base64": "base64-bytes", "hex": "hex-bytes"}


def _add_names(found: JsonSchemaValue, names: list[str]) -> None:
    """Allow each of these names for a field, of which the schema has one."""
    properties, required = found.get("properties", {}), found.get("required", [])
    known = next((name for name in names if name in properties), None)
    if known is None:
        return
    for name in names:
        properties.setdefault(name, properties[known])
    if known in required and len(names) > 1:
        found["required"] = [name for name in required if name != known]
        found.setdefault("allOf", []).append({"anyOf": [{"required": [name]} for name in names]})


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
