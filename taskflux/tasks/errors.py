"""What a handler raises, by what happens next.

::

    TaskError
    ├── Transient      this task, later            spends an attempt, waits for the backoff
    ├── Permanent      this task, never            dead letter
    ├── Ambiguous      it may have happened        resend or hold, as the handler's policy says
    └── ProviderError  not this task's fault       spends no attempt, counts towards the provider's circuit
        ├── Unavailable    the provider is away
        └── Misconfigured  credentials, balance, template: heals only when a person acts, so it also alerts

Anything else that leaves a handler was not foreseen (`decision.unforeseen`): under `hold` it is `Ambiguous`, else a
`Crash`, retried within the task's budget and counted apart.

A reason is a sentence for the person who reads the task. It may name a recipient: it is kept on the task's row and
goes neither into a log line, nor a metric, nor a Kafka record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

JsonValue = object
"""Anything that `json.dumps` takes."""

LONGEST_REASON: Final = 10_000
"""Characters that are kept of what an error says."""
LONGEST_NAME: Final = 100
"""Characters that are kept of the name of an error's class."""


class TaskError(Exception):
    """A side effect did not (surely) happen.

    Args:
        reason: one sentence on what went wrong.
        progress: what did happen, kept on the row and handed to the next attempt as `Task.progress` (a mail that
            reached two of three recipients). None leaves what earlier attempts noted.
    """

    named: str | None = None
    """The name of a handler's own kind, where this error stands for one: see `understood`."""

    def __init__(self, reason: str, *, progress: Mapping[str, JsonValue] | None = None) -> None:
        super().__init__(reason)
        self.reason = text_of(reason)  # `raise Transient(error)` comes to mind so easily
        self.progress = progress

    @property
    def error_class(self) -> str:
        """A bounded name for metrics and for grouping dead letters."""
        return self.named or type(self).__name__


class Transient(TaskError):
    """Try this task again later; `retry_after` (seconds) is the least delay that the other side asked for."""

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
    """No later attempt can succeed: straight to the dead letters."""


class Ambiguous(TaskError):
    """The side effect may have happened: the answer was lost, or the handler was cut in mid-call."""


class ProviderError(TaskError):
    """The provider as a whole fails; raise one of its two kinds."""


class Unavailable(ProviderError):
    """The provider cannot be reached or refuses everybody."""


class Misconfigured(ProviderError):
    """The provider refuses us: wrong credentials, empty balance, unapproved template."""


class InvalidPayload(Permanent):
    """The payload is not what the handler's type declares, or cannot be sent: the provider was not asked."""


class Expired(Permanent):
    """The task's `expiresAt` has passed."""


class WorkerLost(Permanent):
    """It ended its worker more than once while it ran there alone; running it again would likely kill another."""


class Crash(TaskError):
    """A handler raised something that is none of the above: a bug, or an error it did not foresee."""


# What a handler raises is foreign code: its class may answer anything, or raise in its turn ---------------------------

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
    """`error` as the kind above that it derives from, with plain fields: a `Crash` where that is `TaskError` alone.

    None where it is no `TaskError`. Only `progress` is handed on as it is: `store.texts` makes it plain. Raises
    nothing.
    """
    if not issubclass(type(error), TaskError):  # isinstance would ask the error's own `__class__`
        return None
    kind = next((each for each in _KINDS if issubclass(type(error), each)), Crash)
    said, name = attribute(error, "reason"), attribute(error, "error_class")
    named = (text_of(name, LONGEST_NAME) if issubclass(type(name), str) else "") or class_name(error)
    named = "".join(char if char.isprintable() else "\ufffd" for char in named)  # it goes where not all texts can
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
    """The name of the class of `value`, whatever that says of itself. Raises nothing."""
    # The class's own class could say another, or raise.
    name: str = type.__dict__["__name__"].__get__(type(value))
    return str.__getitem__(name, slice(0, LONGEST_NAME))


def text_of(value: object, longest: int = LONGEST_REASON) -> str:
    """What `value` says of itself, at most `longest` characters of it. Raises nothing."""
    try:
        text = str(value)
    except BaseException as fault:  # noqa: BLE001 - foreign code
        return f"(its text cannot be read: {class_name(fault)})"
    plain = str.__getitem__(text, slice(0, longest + 1))  # of a subclass of str, too, without its own code
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def attribute(value: object, name: str) -> object:
    """An attribute of a foreign object; None where it has none. Raises nothing."""
    try:
        return getattr(value, name, None)
    except BaseException:  # noqa: BLE001 - foreign code
        return None


def _seconds(value: Any) -> float | None:
    """A delay in seconds; None where it is no number."""
    try:
        seconds = float(value)
    except BaseException:  # noqa: BLE001 - foreign code
        return None
    return seconds if seconds == seconds else None
