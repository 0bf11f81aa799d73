"""The errors that a handler raises, by what happens next.

::

    TaskError
    ├── Transient      this task, later            spends an attempt, waits for the backoff
    ├── Permanent      this task, never            dead letter
    ├── Ambiguous      it may have happened        resend or hold, as the handler's policy says
    └── ProviderError  not this task's fault       spends no attempt, counts towards the provider's circuit
        ├── Unavailable    the provider is unreachable
        └── Misconfigured  credentials, balance, template: a person has to fix it, so it also alerts

Any other exception is unforeseen (`decision.unforeseen`): under `hold` it is `Ambiguous`, else a `Crash`, retried
within the task's budget and counted apart.

A reason is a sentence for the person who reads the task. It may name a recipient: it is kept on the task's row and
goes neither into a log line, nor a metric, nor a Kafka record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

JsonValue = object
"""Anything that `json.dumps` takes."""

LONGEST_REASON: Final = 10_000
"""Characters of an error's reason that are kept."""
LONGEST_NAME: Final = 100
"""Characters of an error class's name that are kept."""


class TaskError(Exception):
    """A side effect did not happen, or is not known to have happened.

    Args:
        reason: one sentence on what went wrong.
        progress: what did happen (a mail that reached two of three recipients). It is kept on the row, and the next
            attempt gets it as `Task.progress`. None leaves what earlier attempts noted.
    """

    named: str | None = None
    """The name of a handler's own error class, where this error stands for it: see `understood`."""

    def __init__(self, reason: str, *, progress: Mapping[str, JsonValue] | None = None) -> None:
        super().__init__(reason)
        self.reason = text_of(reason)  # `raise Transient(error)` is an easy mistake
        self.progress = progress

    @property
    def error_class(self) -> str:
        """A bounded name for metrics and for grouping dead letters."""
        return self.named or type(self).__name__


class Transient(TaskError):
    """Try this task again later; `retry_after` is the least delay that the provider asked for, in seconds."""

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        progress: Mapping[str, JsonValue] | None = None,
    ) -> None:
        super().__init__(reason, progress=progress)
        self.retry_after = None if retry_after is None else float(retry_after)


class Permanent(TaskError):
    """No later attempt can succeed: the task becomes a dead letter at once."""


class Ambiguous(TaskError):
    """The side effect may have happened: the answer was lost, or the handler was cancelled during the call."""


class ProviderError(TaskError):
    """The provider as a whole fails; raise one of its two kinds."""


class Unavailable(ProviderError):
    """The provider cannot be reached or refuses all requests."""


class Misconfigured(ProviderError):
    """The provider refuses us: wrong credentials, empty balance, unapproved template."""


class InvalidPayload(Permanent):
    """The payload is not what the handler's type declares, or cannot be sent: the provider was not called."""


class Expired(Permanent):
    """The task's `expiresAt` has passed."""


class WorkerLost(Permanent):
    """It ended its worker more than once while it ran there alone; running it again would likely end another."""


class Crash(TaskError):
    """A handler raised something else: a bug, or an error it did not foresee."""


# What a handler raises is foreign code: its class may answer anything, or raise errors itself -------------------------

_KINDS: Final[tuple[type[TaskError], ...]] = (
    Unavailable,
    Misconfigured,
    ProviderError,
    Ambiguous,
    InvalidPayload,
    Expired,
    WorkerLost,
    Permanent,
    Transient,
)


def understood(error: BaseException) -> TaskError | None:
    """`error` as the class above that it derives from, with plain fields: a `Crash` where that is `TaskError` alone.

    None where it is not a `TaskError`. Only `progress` is passed on as it is: `store.texts` makes it plain. Raises
    nothing.
    """
    if not issubclass(type(error), TaskError):  # isinstance would ask the error's own `__class__`
        return None
    kind = next((each for each in _KINDS if issubclass(type(error), each)), Crash)
    said, name = attribute(error, "reason"), attribute(error, "error_class")
    named = (text_of(name, LONGEST_NAME) if issubclass(type(name), str) else "") or class_name(error)
    named = "".join(char if char.isprintable() else "\ufffd" for char in named)  # it becomes a label and a column
    reason = text_of(error if said is None else said)
    if kind is Crash:
        return Crash(f"{named}: {reason}")
    progress: Any = attribute(error, "progress")
    plain = kind(reason, progress=progress)
    plain.named = named
    if isinstance(plain, Transient):
        plain.retry_after = _seconds(attribute(error, "retry_after"))
    return plain


def class_name(value: object) -> str:
    """The real name of the class of `value`. Raises nothing."""
    # A metaclass could return another name, or raise.
    name: str = type.__dict__["__name__"].__get__(type(value))
    return str.__getitem__(name, slice(0, LONGEST_NAME))


def text_of(value: object, longest: int = LONGEST_REASON) -> str:
    """`value` as text, at most `longest` characters of it. Raises nothing."""
    try:
        text = str(value)
    except BaseException as fault:  # noqa: BLE001 - foreign code
        return f"(its text cannot be read: {class_name(fault)})"
    plain = str.__getitem__(text, slice(0, longest + 1))  # for a subclass of str, too, without its own code
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def attribute(value: object, name: str) -> object:
    """An attribute of a foreign object; None where it has none. Raises nothing."""
    try:
        return getattr(value, name, None)
    except BaseException:  # noqa: BLE001 - foreign code
        return None


def _seconds(value: Any) -> float | None:
    """A delay in seconds; None where it is not a number."""
    try:
        seconds = float(value)
    except BaseException:  # noqa: BLE001 - foreign code
        return None
    return seconds if seconds == seconds else None
