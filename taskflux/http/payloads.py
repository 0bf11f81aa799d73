"""Payloads held against their types' schemas, which are compiled once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Final

import jsonschema_rs

from taskflux.http.problems import FieldError, shortened
from taskflux.tasks.bounds import check

log = logging.getLogger(__name__)

MOST_ERRORS: Final = 20
DESCRIBED: Final = 2000
"""Values up to which a wrong payload is described."""
LONGEST_FIELD: Final = 200
LONGEST_MESSAGE: Final = 300

_MASK: Final = "the value"
"""Stands for the value in messages: it may be megabytes long, and an answer with it would end up in a client's log."""

Kind = jsonschema_rs.ValidationErrorKind


class PayloadSchema:
    """A JSON schema (draft 2020-12) for payloads, compiled when it is first needed."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def errors(self, payload: object) -> list[FieldError]:
        """What is wrong with `payload`, at most `MOST_ERRORS`; nothing when it is valid.

        An error takes 20 µs, and the library makes all of them before it gives the first: of a payload with more than
        `DESCRIBED` values it is only told that it is wrong.
        """
        validator = self._validator
        if validator is None or validator.is_valid(payload):
            return []
        values = check(json.dumps(payload).encode())
        if values > DESCRIBED:
            told = f"is not what the type's schema takes; with {values:,} values it is too large to be told where"
            return [FieldError("payload", told)]
        return list(islice(_describe(validator.iter_errors(payload)), MOST_ERRORS))

    @cached_property
    def _validator(self) -> jsonschema_rs.Draft202012Validator | None:
        """None for a schema that is none: what its workers take is then for them to say."""
        try:
            # Offline: a schema that refers to another address must not make ingest fetch it.
            return jsonschema_rs.Draft202012Validator(json.loads(self.text), mask=_MASK, offline=True)
        except ValueError:
            log.warning("the schema of task type %s cannot be compiled: its payloads are accepted unseen", self.name)
            return None


def _describe(errors: Iterator[Any]) -> Iterator[FieldError]:
    for error in errors:
        path = list(error.instance_path)
        match error.kind:
            case Kind.Required():
                yield _field_error([*path, error.kind.property], "is required")
            case Kind.AdditionalProperties() | Kind.UnevaluatedProperties():
                for name in error.kind.unexpected:
                    yield _field_error([*path, name], "is not a known field")
            case Kind.FalseSchema() if path:
                yield _field_error(path, "is not a known field")
            case Kind.AnyOf() | Kind.OneOfNotValid():
                yield _field_error(path, _alternatives(error))
            case _:
                yield _field_error(path, error.message)


def _alternatives(error: Any) -> str:
    """What each branch of an anyOf wanted, without repeats."""
    wanted = [branch[0].message for branch in error.kind.context if branch]
    return ", or ".join(dict.fromkeys(wanted)) or str(error.message)


def _field_error(path: Sequence[str | int], message: str) -> FieldError:
    return FieldError(shortened(field_name("payload", path), LONGEST_FIELD), shortened(message, LONGEST_MESSAGE))


def field_name(root: str, path: Sequence[str | int]) -> str:
    """`payload.attachments[0].name`."""
    return root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
