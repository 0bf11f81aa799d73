"""The task types that ingest knows, and whether a payload is what its type takes: ingest refuses what a handler would.

The types are read from the store, and cached while it is unreachable. The payload of a built-in type is validated by
its handler's model, any other by the JSON schema that the type's workers have registered, with its formats asserted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import islice
from typing import Any, Final

import jsonschema_rs
from pydantic import TypeAdapter, ValidationError

from taskflux.http.keywords import FORMATS, Content, Errors, Limited, Stripped, format_sentence
from taskflux.http.problems import FieldError, field_error
from taskflux.providers.email import Email
from taskflux.providers.sms import Sms
from taskflux.store.errors import StoreError, StoreUnavailable
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.bounds import Path, check
from taskflux.tasks.fields import UNNAMED, sentence_of
from taskflux.tasks.model import TaskType
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Counter
from taskflux.worker.handler import MOST_ERRORS, wrong_fields
from taskflux.worker.schemas import LIMITS, STRIPPED, schema_text

log = logging.getLogger(__name__)

REFRESH_EVERY: Final = 10.0
"""Seconds between two reads of the store."""

ASK_AGAIN_AFTER: Final = 1.0
"""Seconds between two reads for unknown types; requests that come in between share the next one."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A type and its compiled schema."""

    type: TaskType
    schema: PayloadSchema


class TypeRegistry:
    """Every registered type by name, at most `REFRESH_EVERY` seconds old while the store answers.

    `counters` show each type from the moment it is known.
    """

    def __init__(
        self,
        task_types: TaskTypes,
        *,
        counters: Sequence[Counter] = (metrics.SUBMITTED,),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = task_types
        self._counters = counters
        self._clock = clock
        self._sleep = sleep
        self._types: dict[str, Registered] = {}
        self._ended_at = float("-inf")
        self._trouble: StoreError | None = StoreUnavailable("the task types have not been read yet")
        self._reading: asyncio.Task[None] | None = None
        self.reads = 0
        """Reads of the store that have begun. A request notes the number when it arrives, see `find`."""
        self._finished = self._succeeded = 0  # the numbers of the last read that has ended, and that has succeeded

    @property
    def names(self) -> list[str]:
        """The known types whose handlers are on, sorted."""
        return sorted(name for name in self._types if self.off_handler(name) is None)

    @property
    def schemas(self) -> tuple[tuple[str, str], ...]:
        """The known types with the JSON schemas of their payloads, as text, sorted."""
        return tuple((name, self._types[name].schema.text) for name in self.names)

    def known(self, name: str) -> Registered | None:
        """The type, if it is known here and its handler is not off."""
        registered = self._types.get(name)
        return None if registered is None or registered.type.off_handler is not None else registered

    def off_handler(self, name: str) -> str | None:
        """The handler of the type, if that is known to be off."""
        registered = self._types.get(name)
        return None if registered is None else registered.type.off_handler

    async def find(self, name: str, since: int | None = None) -> Registered | None:
        """The type, read from the store when it is unknown or off; None only if it is not registered, or off.

        One read fetches all types, and all who wait share it, so that a flood of unknown types is one query a second.

        Args:
            since: `reads` when the request arrived; None: now. All that the request asks for is then answered from the
                first read that began after it.

        Raises:
            StoreError: it is unknown here, and the store is unavailable.
        """
        known = self.known(name)
        if known is None:
            await self._newer(self.reads if since is None else since)
            known = self.known(name)
        return known

    async def refresh(self) -> None:
        """Read all types again; concurrent callers share the read. When it fails, the known types stay."""
        await self._read_together(0.0)

    async def run(self, every: float = REFRESH_EVERY) -> None:
        """Refresh each `every` seconds until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(every)

    async def _newer(self, since: int) -> None:
        """Return once a read has succeeded that began after the first `since`; raise StoreError when one fails."""
        while self._succeeded <= since:
            if self._finished <= since:
                await self._read_together(ASK_AGAIN_AFTER - (self._clock() - self._ended_at))
            if self._trouble is not None:
                # A new one each time: an error that is raised again keeps the frames of all its raisers alive.
                raise type(self._trouble)(*self._trouble.args)

    async def _read_together(self, pause: float) -> None:
        """Read all types after a pause in seconds, or wait for the read that is in progress."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(pause), context=Context())
        await asyncio.shield(self._reading)  # which others wait for, too

    async def _read(self, pause: float) -> None:
        try:
            if pause > 0:
                await self._sleep(pause)
            self.reads += 1
            found = await self._source.all()
        except StoreError as error:
            self._trouble = error
            log.debug("the task types could not be read: %s", type(error).__name__)
        else:
            self._trouble = None
            self._succeeded = self.reads
            self._types = {name: self._renewed(task_type) for name, task_type in found.items()}
            for counter in self._counters:
                counter.zeros(self._types)
        finally:
            self._finished = self.reads
            self._ended_at = self._clock()
            self._reading = None

    def _renewed(self, task_type: TaskType) -> Registered:
        """The type as it stands now; its schema stays compiled while its text is the same."""
        known = self._types.get(task_type.name)
        if known is not None and known.type == task_type:
            return known
        if known is not None and known.schema.text == task_type.schema:
            return Registered(task_type, known.schema)
        return Registered(task_type, PayloadSchema(task_type.name, task_type.schema))


DESCRIBED: Final = 2000
"""Number of values up to which each error of a payload is described."""

_MASK: Final = "the value"
"""Replaces the value in messages: it may be megabytes long, and clients log the answer."""

Kind = jsonschema_rs.ValidationErrorKind


class PayloadSchema:
    """Validates the payloads of a type by its JSON schema (draft 2020-12), compiled at first use, or by its model."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def errors(self, payload: object, text: str) -> list[FieldError]:
        """What is wrong with `payload`, at most `MOST_ERRORS`; nothing when it is valid. `text` is its JSON text.

        An error takes 20 µs, and the library creates all of them before it returns the first. So a payload with more
        than `DESCRIBED` values gets one error for the whole.
        """
        if self._model is not None:
            try:
                # Strict, and by the fields' public names only, like the schema.
                self._model.validate_json(text, strict=True, by_alias=True, by_name=False)
            except ValidationError as error:
                return _merged((_within(payload, where), said) for where, said in wrong_fields(error))
            return []
        validator = self._validator
        if validator is None or validator.is_valid(payload):
            return []
        values = check(text.encode())
        if values > DESCRIBED:
            told = f"does not match the type's schema; with {values:,} values it is too large to say where"
            return [FieldError("payload", told)]
        found = _describe(validator.iter_errors(payload), self._schema)
        return [field_error(("payload", *path), said) for path, said in islice(found, MOST_ERRORS)]

    @cached_property
    def _model(self) -> TypeAdapter[Any] | None:
        """The model of a built-in type; None if another release or another handler has registered the type."""
        adapter = built_in().get(self.name)
        return adapter if adapter is not None and schema_text(adapter) == self.text else None

    @cached_property
    def _schema(self) -> Any:
        return json.loads(self.text)

    @cached_property
    def _validator(self) -> jsonschema_rs.Draft202012Validator | None:
        """None for an invalid schema: then only the workers validate payloads."""
        try:
            # Offline: a schema that refers to another address must not make ingest fetch it.
            return jsonschema_rs.Draft202012Validator(
                self._schema,
                mask=_MASK,
                offline=True,
                validate_formats=True,
                formats=dict(FORMATS),
                keywords={
                    LIMITS: Limited,
                    STRIPPED: partial(Stripped, self._inner),  # type: ignore[dict-item]
                    "contentSchema": partial(Content, self._inner),  # type: ignore[dict-item]
                },
            )
        except ValueError:
            log.warning("the schema of task type %s cannot be compiled: its payloads are not validated", self.name)
            return None

    def _inner(self, schema: Any) -> Errors:
        """The validator of a value within a payload; `schema` may refer to the definitions of the whole."""
        if isinstance(schema, dict) and isinstance(self._schema, dict):
            schema = {**schema, "$defs": self._schema.get("$defs", {})}
        return PayloadSchema(self.name, json.dumps(schema)).errors


@cache
def built_in() -> Mapping[str, TypeAdapter[Any]]:
    """The built-in types whose models a schema cannot express: addresses, base64, headers."""
    return {"email": TypeAdapter(Email), "sms": TypeAdapter(Sms)}


def _merged(found: Iterable[tuple[Path, str]]) -> list[FieldError]:
    """One error for each field: those of a union's branches are joined."""
    said: dict[Path, dict[str, None]] = {}
    for path, message in found:
        said.setdefault(path, {})[message] = None
    return [field_error(("payload", *path), ", or ".join(messages)) for path, messages in said.items()]


def _within(payload: object, where: Path) -> Path:
    """The part of pydantic's path that exists in the payload: it also names branches of unions, and items of a text."""
    at, path = payload, list[str | int]()
    for number, part in enumerate(where):
        match at, part:
            case dict(), str():
                if part not in at:
                    return (*path, part) if number == len(where) - 1 else tuple(path)
                at = at[part]
            case list(), int():
                at = at[part]
            case _:
                break
        path.append(part)
    return tuple(path)


# Errors of a JSON schema ---------------------------------------------------------------------------------------------


def _describe(errors: Iterable[Any], schema: Any) -> Iterator[tuple[Sequence[str | int], str]]:
    """The path of each bad field, and what is wrong with it."""
    for error in errors:
        path = list(error.instance_path)
        match error.kind:
            case Kind.Required():
                yield [*path, error.kind.property], "is required"
            case Kind.AdditionalProperties() | Kind.UnevaluatedProperties():
                for name in error.kind.unexpected:
                    yield [*path, name], "is not a known field"
            case Kind.FalseSchema() if path:
                yield path, "is not a known field"
            case Kind.AnyOf() | Kind.OneOfNotValid():
                yield from _of_union(error, schema)
            case Kind.PropertyNames():
                inner = error.kind.error
                yield [*path, str(inner.instance)], f"is not a valid name: {_sentence(inner, schema)}"
            case _:
                yield path, _sentence(error, schema)


def _of_union(error: Any, schema: Any) -> Iterator[tuple[Sequence[str | int], str]]:
    """The errors of the branch that fits the value, or what each branch requires."""
    path = list(error.instance_path)
    branches: list[list[Any]] = [branch for branch in error.kind.context if branch]
    tag = _parent(error, schema).get("discriminator", {}).get("propertyName")
    fitting = [branch for branch in branches if _fits(branch, len(path))]
    tagged = [branch for branch in fitting if not _tags(branch, len(path), tag)]
    if fitting and not tagged:
        wanted = [each for branch in fitting for each in _tags(branch, len(path), tag)]
        yield from _of_tags(path, wanted)
        return
    if not tagged:
        yield path, ", or ".join(dict.fromkeys(_wanted(error, schema))) or error.message
        return
    inner = [branch for branch in tagged if not _at(branch, len(path))]
    if len(tagged) > 1 and not inner:
        yield path, ", or ".join(dict.fromkeys(_sentence(branch[0], schema) for branch in tagged))
        return
    nearest: list[Any] = min(inner or tagged, key=len)
    yield from _describe(nearest, schema)


def _wanted(error: Any, schema: Any) -> Iterator[str]:
    """What each branch of a union requires, nested unions included."""
    if not isinstance(error.kind, Kind.AnyOf | Kind.OneOfNotValid):
        yield _sentence(error, schema)
        return
    for branch in error.kind.context:
        if branch:
            yield from _wanted(branch[0], schema)


def _at(branch: Sequence[Any], depth: int) -> bool:
    """Whether a branch refuses the value itself, rather than something inside it."""
    inner = (Kind.Required, Kind.AdditionalProperties, Kind.UnevaluatedProperties, Kind.AnyOf, Kind.OneOfNotValid)
    return any(len(each.instance_path) == depth and not isinstance(each.kind, inner) for each in branch)


def _fits(branch: Sequence[Any], depth: int) -> bool:
    """Whether the value has the JSON type that a branch accepts."""
    for each in branch:
        if len(each.instance_path) == depth:
            if isinstance(each.kind, Kind.Type):
                return False
            if isinstance(each.kind, Kind.AnyOf | Kind.OneOfNotValid):
                return any(_fits(inner, depth) for inner in each.kind.context if inner)
    return True


def _tags(branch: Sequence[Any], depth: int, tag: str | None) -> list[Any]:
    """The errors which show that an object belongs to another branch: its discriminator has another value."""
    return [
        each
        for each in branch
        if (
            len(each.instance_path) == depth + 1
            and isinstance(each.kind, Kind.Constant | Kind.Enum)
            and tag in (None, each.instance_path[-1])
            and isinstance(each.instance_path[-1], str)
        )
        or (tag is not None and isinstance(each.kind, Kind.Required) and each.kind.property == tag)
    ]


def _of_tags(path: Sequence[str | int], wanted: Sequence[Any]) -> Iterator[tuple[Sequence[str | int], str]]:
    if isinstance(wanted[0].kind, Kind.Required):
        yield [*path, wanted[0].kind.property], "is required"
        return
    name = wanted[0].instance_path[-1]
    values: dict[str, None] = {}
    for each in wanted:
        if each.instance_path[-1] == name:
            found = [each.kind.expected_value] if isinstance(each.kind, Kind.Constant) else each.kind.options
            values |= dict.fromkeys(map(json.dumps, found))
    yield [*path, name], f"is none of {', '.join(values)}"


def _sentence(error: Any, schema: Any) -> str:
    """The error in words, without the value, a regular expression or a schema."""
    match error.kind:
        case Kind.Pattern():
            return sentence_of(error.kind.pattern) or _by_description(error, schema)
        case Kind.Format():
            return format_sentence(error.kind.format)
        case Kind.Not() | Kind.BacktrackLimitExceeded() | Kind.RegexEngineFailure():
            return _by_description(error, schema)
        case _:
            return str(error.message)


def _by_description(error: Any, schema: Any) -> str:
    """The error in the words of the schema's description or examples."""
    about = _parent(error, schema)
    if isinstance(about.get("description"), str):
        return f"does not match its description: {about['description']}"
    examples = about.get("examples")
    if isinstance(examples, list) and examples:
        return f"{UNNAMED}, for example {json.dumps(examples[0], ensure_ascii=False)}"
    return UNNAMED


def _parent(error: Any, schema: Any) -> Mapping[str, Any]:
    """The schema whose keyword failed; empty if it cannot be found."""
    at = schema
    for part in list(error.schema_path)[:-1]:
        try:
            at = at[part]
        except (KeyError, IndexError, TypeError):
            return {}
    return at if isinstance(at, dict) else {}
