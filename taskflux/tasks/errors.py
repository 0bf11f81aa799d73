"""What a handler raises, by what happens next.

::

    TaskError
    ├── Transient      this task, later            spends an attempt, waits for the backoff
    ├── Permanent      this task, never            dead letter
    ├── Ambiguous      it may have happened        resend or hold, as the handler's policy says
    └── ProviderError  not this task's fault       spends no attempt, counts towards the provider's circuit
        ├── Unavailable    the provider is away
        └── Misconfigured  credentials, balance, template: heals only when a person acts, so it also alerts

Anything else that a handler raises is a `Crash`: retried within the task's budget and counted apart.

A reason is a sentence for the person who reads the task. It may name a recipient: it is kept on the task's row and
goes neither into a log line, nor a metric, nor a Kafka record.
"""

from __future__ import annotations

from collections.abc import Mapping

JsonValue = object
"""Anything that `json.dumps` takes."""


class TaskError(Exception):
    """A side effect did not (surely) happen.

    Args:
        reason: one sentence on what went wrong.
        progress: what did happen, kept on the row and handed to the next attempt as `Task.progress` (a mail that
            reached two of three recipients). None leaves what earlier attempts noted.
    """

    def __init__(self, reason: str, *, progress: Mapping[str, JsonValue] | None = None) -> None:
        super().__init__(reason)
        self.reason = str(reason)  # `raise Transient(error)` comes to mind so easily
        self.progress = progress

    @property
    def error_class(self) -> str:
        """A bounded name for metrics and for grouping dead letters."""
        return type(self).__name__


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
    """The payload is not what the handler's type declares."""


class Expired(Permanent):
    """The task's `expiresAt` has passed."""


class WorkerLost(Permanent):
    """Every attempt ended with the loss of its worker; running it again would likely kill another."""


class Crash(TaskError):
    """A handler raised something that is not a `TaskError`: a bug, or an error it did not foresee."""
