"""Keywords of a payload's JSON schema that the library does not assert by itself, since only a handler's model does.

The library makes one object of a class for each place in a schema where its keyword stands. `validate` is called with
each value there, and raises ValueError with a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from taskflux.http.formats import read_json
from taskflux.http.problems import FieldError
from taskflux.worker.schemas import LIMIT_NAMES

Errors = Callable[[object, str], list[FieldError]]
"""What is wrong with a value; the text is its JSON text."""

Inner = Callable[[Any], Errors]
"""Compiles a schema that stands within that of a payload."""


class Limited:
    """The keyword `schemas.LIMITS`: compares the value that a text represents with its limits, as the model does."""

    def __init__(
        self, parent_schema: Mapping[str, Any], value: Mapping[str, Any], schema_path: Sequence[str | int]
    ) -> None:
        self._type, self._strict = value["type"], bool(value.get("strict"))
        self._reads = _LIMITED[self._type]
        # The limits that the type itself has.
        limits = {
            name: self._reads(value[name]) if name in _OF_TYPE else value[name] for name in LIMIT_NAMES if name in value
        }
        schema: Any = {"type": self._type, **limits}
        self._validator = SchemaValidator(schema)

    def validate(self, instance: object) -> None:
        """Raises ValueError with a sentence."""
        if not isinstance(instance, _GIVEN.get(self._type, str)) or isinstance(instance, bool):
            return
        try:
            self._validator.validate_json(json.dumps(instance))
        except ValidationError as error:
            (found,) = error.errors(include_url=False, include_input=False, include_context=False)
            if not found["type"].endswith(("_parsing", "_type")) or (self._strict and self._is_read(instance)):
                raise ValueError(found["msg"]) from None

    def _is_read(self, instance: object) -> bool:
        """Whether its format and pattern accept it: otherwise these report what is wrong."""
        try:
            self._reads(instance)
        except ValidationError:
            return False
        return True


_GIVEN: Final[Mapping[str, Any]] = {"int": float, "decimal": str | int | float}
"""The JSON form of a value, for comparing it with its limits."""

_OF_TYPE: Final = ("gt", "ge", "lt", "le", "multiple_of")
_LIMITED: Final[Mapping[str, Callable[[object], Any]]] = {
    "int": TypeAdapter(int).validate_python,
    "datetime": TypeAdapter(datetime).validate_python,
    "date": TypeAdapter(date).validate_python,
    "time": TypeAdapter(time).validate_python,
    "timedelta": TypeAdapter(timedelta).validate_python,
    "decimal": TypeAdapter(Decimal).validate_python,
}


class Content:
    """The keyword `contentSchema`: validates the JSON in a text by its own schema, as the handler's model does."""

    def __init__(
        self, inner: Inner, parent_schema: Mapping[str, Any], value: Any, schema_path: Sequence[str | int]
    ) -> None:
        self._asserted = parent_schema.get("format") == "json-string"
        self._errors = inner(value)

    def validate(self, instance: object) -> None:
        if not (self._asserted and isinstance(instance, str)):
            return  # its type reports this
        try:
            document = read_json(instance)
        except (ValueError, RecursionError):
            return  # its format reports this
        for error in self._errors(document, instance):
            where = error.field.removeprefix("payload").removeprefix(".")
            raise ValueError(f"holds invalid JSON{' at ' if where else ''}{where}: {error.message}")


class Stripped:
    """The keyword `schemas.STRIPPED`: validates a text without the spaces around it by its own schema."""

    def __init__(
        self, inner: Inner, parent_schema: Mapping[str, Any], value: Any, schema_path: Sequence[str | int]
    ) -> None:
        about = {name: parent_schema[name] for name in ("description", "examples") if name in parent_schema}
        self._errors = inner(about | value)

    def validate(self, instance: object) -> None:
        if isinstance(instance, str):
            for error in self._errors(_strip(instance), instance):
                raise ValueError(f"{error.message}, without the spaces around it")


_strip: Final = TypeAdapter(Annotated[str, StringConstraints(strip_whitespace=True)]).validate_python
