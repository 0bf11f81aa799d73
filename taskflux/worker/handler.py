"""`@handler`: how a task type and the code that runs it are declared together.

To declare one needs neither Kafka nor PostgreSQL; `worker.service_of` makes a process of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from taskflux.providers.provider import Provider
from taskflux.stream.topics import check_task_type
from taskflux.tasks.bounds import MOST_BYTES, USUAL_BYTES, OutOfBounds, check, excess
from taskflux.tasks.errors import InvalidPayload
from taskflux.tasks.fields import UNNAMED, sentence_of
from taskflux.tasks.model import Receipt, Task, TaskType
from taskflux.tasks.policy import AmbiguousPolicy, Policy, RetryPolicy
from taskflux.worker.schemas import schema_text

P = TypeVar("P")
C = TypeVar("C")
Returned = Awaitable[Receipt | None] | Receipt | None
Run = Callable[..., Any]  # the decorator's overloads say which


@dataclass(frozen=True, slots=True)
class Handler(Generic[P]):
    """A task type, its policy, and the function that does its work. Made by `@handler`."""

    type: str
    name: str
    policy: Policy
    provider: Provider[Any] | None
    concurrency: int
    adapter: TypeAdapter[P]
    function: Run
    max_bytes: int = USUAL_BYTES
    replaces: bool = False

    def __call__(self, *args: Any) -> Any:
        """The bare function, for tests of a handler's own logic."""
        return self.function(*args)

    @property
    def blocking(self) -> bool:
        """Whether the function is a plain one, which is called in a thread."""
        return not inspect.iscoroutinefunction(self.function)

    def parse(self, payload: str) -> P:
        """The payload as the handler declared it.

        Raises:
            InvalidPayload: naming each bad field, without its value; or it is beyond the bounds of every task.
        """
        self.check_size(len(payload))
        self.values(payload)
        try:
            return self.adapter.validate_json(payload)
        except ValidationError as error:
            raise InvalidPayload(describe(error)) from None

    def check_size(self, size: int) -> None:
        """Whether a payload of `size` bytes may be read at all.

        Raises:
            InvalidPayload: it is larger than the type takes.
        """
        if size > self.max_bytes:
            raise InvalidPayload(excess(size, self.max_bytes))

    def values(self, payload: str) -> int:
        """How many values stand in a payload, at most.

        Raises:
            InvalidPayload: it is beyond the bounds of every task.
        """
        try:
            return check(payload.encode("utf-8", "replace"))
        except OutOfBounds as error:
            raise InvalidPayload(f"payload: {error}") from None

    def task_type(self) -> TaskType:
        """What a worker registers, so that ingest can refuse a payload before it is accepted."""
        policy, schema = self.policy, schema_text(self.adapter)
        return TaskType(
            self.type,
            schema,
            policy.retry.max_attempts,
            policy.ambiguous,
            policy.provider,
            self.max_bytes,
            declared_by=f"{self.function.__module__}:{self.function.__name__}",
            replaces=self.replaces,
        )


def describe(error: ValidationError) -> str:
    """The fields that are wrong and why, in one sentence that does not repeat what stood in them."""
    found = [f"{'.'.join(map(str, where))[:200] or 'payload'}: {said}" for where, said in wrong_fields(error)]
    further = error.error_count() - len(found)
    return "; ".join(found) + (f"; and {further:,} more" if further else "")


MOST_ERRORS: Final = 20
"""Bad fields that are named; a large payload can have a hundred thousand."""

_TOO_MANY: Final = 1000


def wrong_fields(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """The first bad fields, at most `MOST_ERRORS`: the path of each, and what is wrong with it.

    pydantic writes all of its errors out or none: those of a payload that is wrong in a thousand places are not worth
    the memory.
    """
    if error.error_count() > _TOO_MANY:
        return [((), "it is not what the type's model takes")]
    found = error.errors(include_url=False, include_input=False)[:MOST_ERRORS]
    return [(each["loc"], _sentence(each)[:300]) for each in found]


def _sentence(error: ErrorDetails) -> str:
    """The message of pydantic about a field, without regular expressions."""
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a known field"
        case "string_pattern_mismatch":
            return sentence_of(error.get("ctx", {}).get("pattern", "")) or UNNAMED
        case _:
            return error["msg"].removeprefix("Value error, ")


class Options(TypedDict, total=False):
    """What `@handler` takes beside the task type, the payload and the provider."""

    retry: RetryPolicy | None
    ambiguous: AmbiguousPolicy
    timeout: float
    concurrency: int
    max_bytes: int
    replaces: bool


@overload
def handler(
    type: str, *, payload: type[P], provider: Provider[C], **options: Unpack[Options]
) -> Callable[[Callable[[Task[P], C], Returned]], Handler[P]]: ...
@overload
def handler(
    type: str, *, payload: type[P], provider: None = None, **options: Unpack[Options]
) -> Callable[[Callable[[Task[P]], Returned]], Handler[P]]: ...
@overload  # an annotation that is not a class, such as `int | str`: what it stands for is unknown here
def handler(
    type: str, *, payload: object, provider: Provider[C], **options: Unpack[Options]
) -> Callable[[Callable[[Task[Any], C], Returned]], Handler[Any]]: ...
@overload
def handler(
    type: str, *, payload: object, provider: None = None, **options: Unpack[Options]
) -> Callable[[Callable[[Task[Any]], Returned]], Handler[Any]]: ...
def handler(
    type: str,
    *,
    payload: Any,
    provider: Provider[Any] | None = None,
    retry: RetryPolicy | None = None,
    ambiguous: AmbiguousPolicy = "resend",
    timeout: float = 60.0,
    concurrency: int = 64,
    max_bytes: int = USUAL_BYTES,
    replaces: bool = False,
) -> Callable[[Run], Handler[Any]]:
    """Declare a function as the handler of a task type.

    An `async def` runs on the event loop of its process, together with all other attempts. A plain `def` may block: it
    runs in a thread. A thread cannot be stopped, so that an attempt which exceeds its timeout is settled without it.

    Args:
        type: the task type; its topic is `tasks.<type>`.
        payload: what a payload must be: a pydantic model, or any annotation that pydantic understands.
        provider: the outside service; its client is the function's second argument.
        retry: attempts and delays.
        ambiguous: `resend` or `hold` where the side effect may have happened.
        timeout: seconds that one attempt may take.
        concurrency: attempts that one process runs at once, and threads that it has for a plain function.
        max_bytes: bytes that a payload may have, as its JSON text is stored: compact, and in ASCII, so that a character
            beyond it counts six or twelve. At most `bounds.MOST_BYTES`; larger things are better sent as a link.
        replaces: it replaces another function that declares this type with another schema, such as a built-in
            one; without it, the second declaration is refused.

    Raises:
        TypeError, ValueError: the declaration contradicts itself; the sentence says what to change.
    """
    check_task_type(type)
    if concurrency < 1:
        raise ValueError(f"concurrency of {type!r} is {concurrency}: at least one attempt must be able to run")
    if not 1 <= max_bytes <= MOST_BYTES:
        raise ValueError(
            f"max_bytes of {type!r} is {max_bytes:,}: it can be 1 to {MOST_BYTES:,}; what is larger is sent as a link"
        )
    policy = Policy(retry or RetryPolicy(), ambiguous, timeout, provider.name if provider else None)
    adapter: TypeAdapter[Any] = TypeAdapter(payload)

    def declare(function: Run) -> Handler[Any]:
        _check_signature(type, function, provider)
        name = function.__name__.replace("_", "-")
        return Handler(type, name, policy, provider, concurrency, adapter, function, max_bytes, replaces)

    return declare


def _check_signature(task_type: str, function: Run, provider: Provider[Any] | None) -> None:
    if complaint := _why_no_handler(function):
        raise TypeError(f"the handler of {task_type!r} {complaint}")
    expected = 2 if provider else 1
    found = len(inspect.signature(function).parameters)
    if found != expected:
        takes = "the task and the provider's client" if provider else "the task alone (no provider is declared)"
        raise TypeError(f"the handler of {task_type!r} must take {takes}; it takes {found} arguments")


def _why_no_handler(function: object) -> str:
    """Why `function` cannot be a handler, as a predicate; empty if it can."""
    if isinstance(function, partial):
        return "is a functools.partial, which has no name of its own: write a function that calls it"
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return "is a generator: return the receipt instead of yielding"
    if inspect.iscoroutinefunction(function):
        return ""
    if inspect.isbuiltin(function):
        return "is a built-in function: write a function that calls it"
    if not inspect.isroutine(function):
        kind = f"the class {function.__name__}" if isinstance(function, type) else f"a {type(function).__name__} object"
        return f"is {kind}, not a function: write a function that calls it"
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return "has a decorator that returns a plain function: the decorator's wrapper must be `async def`, too"
    return ""
