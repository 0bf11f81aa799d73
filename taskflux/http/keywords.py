"""Keywords of a payload's JSON schema that are asserted as pydantic reads the value in the handler's model.

A handler accepts more than the standards do (a time without an offset, a UUID without dashes), and so does ingest.
Formats that pydantic does not use are asserted as JSON schema defines them.

For a keyword of its own, the library makes one object of a class for each place in a schema where the keyword stands.
`validate` is called with each value there, and raises ValueError with a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Annotated, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import (
    UUID1,
    UUID3,
    UUID4,
    UUID5,
    UUID6,
    UUID7,
    UUID8,
    AllowInfNan,
    AnyUrl,
    Base64Bytes,
    Base64UrlBytes,
    ByteSize,
    IPvAnyAddress,
    IPvAnyInterface,
    IPvAnyNetwork,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.color import parse_str
from pydantic_core import CoreConfig, MultiHostUrl, PydanticCustomError, SchemaValidator

from taskflux.http.problems import FieldError
from taskflux.providers.addresses import Address
from taskflux.tasks.bounds import check, check_characters
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


def _reads(declared: Any) -> Callable[[str], bool]:
    """A check whether a type can read a text."""
    adapter: TypeAdapter[Any] = TypeAdapter(declared)

    def read(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except (ValueError, OverflowError, RecursionError):  # the latter two of `re`, which pydantic lets through
            return False
        return True

    return read


_DEEPEST: Final = 201
"""Nesting depth up to which pydantic reads JSON in a text."""


def read_json(text: str) -> Any:
    """The document in a JSON text that a handler can read and that takes no more memory than a payload may.

    Raises:
        ValueError, RecursionError: the text is not such JSON.
    """
    plain = text.encode()
    check(plain, depth=_DEEPEST)
    document = json.loads(text)
    check_characters(plain, document)
    return document


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_color(text: str) -> bool:
    try:
        parse_str(text)
    except PydanticCustomError:
        return False
    return True


def _reads_bytes(config: CoreConfig) -> Callable[[str], bool]:
    """A check whether a text encodes bytes in the way that `val_json_bytes` of a model's config names."""
    validator = SchemaValidator({"type": "bytes"}, config)

    def read(text: str) -> bool:
        try:
            validator.validate_json(json.dumps(text))
        except ValidationError:
            return False
        return True

    return read


_NAMED: Final = re.compile(
    r"""\s*(?:(?:[\w.!#$%&'*+\-/=?^_`{|}~]+\s+)*[\w.!#$%&'*+\-/=?^_`{|}~]+|"[^"]+")?\s*<([^<>]+)>\s*"""
)
_RESERVED: Final = ("arpa", "invalid", "local", "localhost", "onion", "test")


def _is_email(text: str) -> bool:
    """Whether pydantic's EmailStr accepts it (package email-validator): a dot-atom before the @, a public domain."""
    named = _NAMED.fullmatch(text)
    if (not named and "<" in text) or re.search(r"[\r\n]", text):
        return False
    try:
        address = Address.parse(named[1].strip() if named else text.strip())
    except ValueError:
        return False
    plain = not (address.name or address.quoted) and all(address.local.split("."))
    labels = address.envelope.partition("@")[2].split(".")
    public = len(labels) > 1 and labels[-1][-1].isalpha() and labels[-1] not in _RESERVED
    plain = plain and not any(label[2:4] == "--" and label[:2] != "xn" for label in labels)
    return plain and public and "_" not in address.domain and not address.domain.endswith(".")


FORMATS: Final[Mapping[str, Callable[[str], bool]]] = {
    "date-time": _reads(datetime),
    "date": _reads(date),
    "time": _reads(time),
    "duration": _reads(timedelta),
    "uuid": _reads(UUID),
    "uuid1": _reads(UUID1),
    "uuid3": _reads(UUID3),
    "uuid4": _reads(UUID4),
    "uuid5": _reads(UUID5),
    "uuid6": _reads(UUID6),
    "uuid7": _reads(UUID7),
    "uuid8": _reads(UUID8),
    "uri": _reads(AnyUrl),
    "multi-host-uri": _reads(MultiHostUrl),
    "email": _is_email,
    "name-email": _is_email,
    "ipv4": _reads(IPv4Address),
    "ipv6": _reads(IPv6Address),
    "ipv4network": _reads(IPv4Network),
    "ipv6network": _reads(IPv6Network),
    "ipv4interface": _reads(IPv4Interface),
    "ipv6interface": _reads(IPv6Interface),
    "ipvanyaddress": _reads(IPvAnyAddress),
    "ipvanynetwork": _reads(IPvAnyNetwork),
    "ipvanyinterface": _reads(IPvAnyInterface),
    "regex": _reads(re.Pattern[str]),
    "base64": _reads(Base64Bytes),
    "base64url": _reads(Base64UrlBytes),
    "base64-bytes": _reads_bytes({"val_json_bytes": "base64"}),
    "hex-bytes": _reads_bytes({"val_json_bytes": "hex"}),
    "json-string": _is_json,
    "zoneinfo": _reads(ZoneInfo),
    "fraction": _reads(Fraction),
    "complex": _reads(complex),
    "color": _is_color,
    "byte-size": _reads(ByteSize),
    "decimal": _reads(Annotated[Decimal, AllowInfNan()]),
}


_EXAMPLES: Final = {
    "date-time": "a time, such as 2030-01-31T09:00:00Z",
    "date": "a date, such as 2030-01-31",
    "time": "a time of day, such as 09:00:00",
    "duration": "a duration, such as P1DT2H",
    "uri": "a URI, such as https://example.org/a",
    "multi-host-uri": "a URI, such as https://example.org/a",
    "email": "an e-mail address, such as ann@example.org",
    "name-email": "an e-mail address, such as ann@example.org",
    "ipv4": "an IPv4 address, such as 192.0.2.1",
    "ipv6": "an IPv6 address, such as 2001:db8::1",
    "ipvanyaddress": "an IP address, such as 192.0.2.1",
    "ipv4network": "an IPv4 network, such as 192.0.2.0/24",
    "ipv6network": "an IPv6 network, such as 2001:db8::/32",
    "ipvanynetwork": "a network, such as 192.0.2.0/24",
    "ipv4interface": "an IPv4 address with its network, such as 192.0.2.1/24",
    "ipv6interface": "an IPv6 address with its network, such as 2001:db8::1/32",
    "ipvanyinterface": "an IP address with its network, such as 192.0.2.1/24",
    "hostname": "a host name, such as example.org",
    "regex": "a regular expression",
    "base64": "base64",
    "base64url": "base64",
    "base64-bytes": "base64",
    "hex-bytes": "hexadecimal digits, two per byte",
    "json-string": "a JSON text",
    "zoneinfo": "a time zone, such as Europe/Berlin",
    "fraction": "a fraction, such as 3/4",
    "complex": "a complex number, such as 1+2j",
    "byte-size": "a size in bytes, such as 10MB",
    "decimal": "a decimal number, such as 12.50",
    "color": "a colour, such as #ff8800 or red",
    "uri-reference": "a URI or a part of one, such as /a?b",
    "iri": "an address, such as https://example.org/a",
    "iri-reference": "an address or a part of one, such as /a?b",
    "uri-template": "a URI template, such as /orders/{id}",
    "idn-email": "an e-mail address, such as ann@example.org",
    "idn-hostname": "a host name, such as example.org",
    "json-pointer": "a JSON pointer, such as /lines/0",
    "relative-json-pointer": "a relative JSON pointer, such as 1/lines",
}


def format_sentence(name: str) -> str:
    """What is wrong with a text that is not of this format."""
    if name.startswith("uuid"):
        version = f" of version {name[4:]}" if name[4:] else ""
        return f"is not a UUID{version}, such as 0f8fad5b-d9cb-469f-a165-70867728950e"
    return f"is not {_EXAMPLES.get(name) or f'of the format {name}'}"
