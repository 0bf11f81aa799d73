"""What a dead letter is sent again as: pure but for the look at the registered types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from taskflux.http.problems import INVALID_REPLAY, FieldError, Problem
from taskflux.http.registry import TypeRegistry
from taskflux.http.submissions import Circumstances, parse_json, read_submission
from taskflux.http.submit import registered_type
from taskflux.stream.envelope import Envelope, Poison, decode
from taskflux.stream.record import Record
from taskflux.stream.topics import type_of_topic
from taskflux.tasks.submission import Submission

FIELDS: Final = ("payload", "taskType", "value")


@dataclass(frozen=True, slots=True)
class Mending:
    """What a person gives in place of what the letter holds.

    Args:
        payload: a list of one payload, or of none: JSON's null is a payload too.
        task_type: of a record's payload.
        value: a record's whole value, as text.
    """

    payload: tuple[Any, ...] = ()
    task_type: str | None = None
    value: str | None = None

    @property
    def edited(self) -> bool:
        """Whether anything else is sent than what died."""
        return bool(self.payload) or self.value is not None


def read_mending(document: Mapping[str, Any]) -> Mending:
    """The mending that a body asks for; an empty object asks for none.

    Raises:
        Problem: 422, naming each field that cannot be taken.
    """
    errors = [
        FieldError(name[:100], f"is not known here; known are {', '.join(FIELDS)}")
        for name in sorted(document.keys() - set(FIELDS))[:20]
    ]
    task_type, value = document.get("taskType"), document.get("value")
    if task_type is not None and not isinstance(task_type, str):
        errors.append(FieldError("taskType", "must be a text"))
    if value is not None and not isinstance(value, str):
        errors.append(FieldError("value", "must be a text, the record's value as UTF-8"))
    if value is not None and ("payload" in document or task_type is not None):
        errors.append(FieldError("value", "is the whole record: give it, or payload and taskType"))
    if errors:
        raise invalid_replay(errors)
    return Mending((document["payload"],) if "payload" in document else (), task_type, value)


async def edited_payload(
    letter: Mapping[str, Any], mending: Mending, registry: TypeRegistry, circumstances: Circumstances
) -> str | None:
    """The JSON text that replaces the payload of a letter's task; None keeps it.

    Raises:
        Problem: 422, it is not what the type takes, or the fields are those of a broken record.
        StoreError: the type is not known here, and the store cannot be asked.
    """
    wrong = [name for name, given in (("taskType", mending.task_type), ("value", mending.value)) if given is not None]
    if wrong:
        raise invalid_replay([FieldError(name, "mends a record that was no task; this one was") for name in wrong])
    if not mending.payload:
        return None
    document = {"taskType": letter["type"], "payload": mending.payload[0]}
    registered = await registered_type(document, registry)
    return read_submission(document, registered, circumstances).payload


async def new_task(
    letter: Mapping[str, Any], mending: Mending, registry: TypeRegistry, prefix: str, circumstances: Circumstances
) -> Submission:
    """The task that a letter without one becomes: a mended record, or a task that was pruned.

    Raises:
        Problem: 422, something is still missing or wrong.
        StoreError: the type is not known here, and the store cannot be asked.
    """
    document = _document(letter, mending, prefix)
    registered = await registered_type(document, registry)
    return read_submission(document, registered, circumstances)


def _document(letter: Mapping[str, Any], mending: Mending, prefix: str) -> dict[str, Any]:
    if mending.value is not None:
        return _of_value(mending.value, json.loads(letter["origin"]))
    task_type = mending.task_type or letter["type"] or _type_of_origin(letter, prefix)
    if task_type is None:
        raise invalid_replay([FieldError("taskType", "is required: the record's topic does not tell it")])
    if mending.payload:
        return {"taskType": task_type, "payload": mending.payload[0]}
    if letter["payload"] is None:
        raise invalid_replay([FieldError("payload", "is required: what is there is no task; or give value")])
    return {"taskType": task_type, "payload": parse_json(letter["payload"].encode("utf-8"))}


def _type_of_origin(letter: Mapping[str, Any], prefix: str) -> str | None:
    return type_of_topic(prefix, str(json.loads(letter["origin"]).get("topic")))


def _of_value(value: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The task that a record of this value asks for, read as whoever takes records reads it."""
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid_replay([FieldError("value", "holds a lone surrogate, which no UTF-8 can carry")]) from None
    found = decode(Record(str(origin.get("topic")), 0, 0, 0, None, raw), max_bytes=len(raw) + 1)
    match found:
        case Poison():
            raise invalid_replay([FieldError("value", f"is still no task: {found.reason}")])
        case Envelope():
            raise invalid_replay([FieldError("value", "names a task and brings no payload: a task needs one")])
        case _:
            return {"taskType": found.task_type, "payload": found.payload}


def invalid_replay(errors: list[FieldError]) -> Problem:
    """The problem of these fields."""
    return Problem(INVALID_REPLAY, "not valid: " + ", ".join(error.field for error in errors), errors)
