"""How a provider is declared: a name for its circuit and rate limit, its settings, and how to connect; calls to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Annotated, Any, Final, Generic, Protocol, Self, TypeVar, runtime_checkable

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from taskflux.endpoints import check_url
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.tracing import TRACE, Attributes, Value

log = logging.getLogger(__name__)


class NotifySettings(BaseModel):
    """The notification service. If it is set, mails and SMS are sent through it."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        Annotated[str, AfterValidator(check_url)] | None,
        Field(description="base URL of `taskflux run notify`; unset: handlers call the providers directly"),
    ] = None
    key: Annotated[
        SecretStr | None,
        Field(
            min_length=32,
            description="key that handlers send to it, and that `taskflux run notify` takes from them beside those of"
            " `taskflux keys`; 32 characters or more",
        ),
    ] = None
    connect_timeout: Annotated[float, Field(gt=0, description="seconds that a connection may take")] = 5.0
    # Above what a mail may take there (SMTP's own ten minutes), below what process-email gives an attempt.
    read_timeout: Annotated[
        float, Field(gt=0, description="seconds that an answer may take; after that, it is unknown what was sent")
    ] = 840.0
    connections: Annotated[int, Field(ge=1, le=1000, description="maximum number of connections of one process")] = 64


C = TypeVar("C")
S = TypeVar("S", bound=BaseModel)


SUCCEEDED: Final = "succeeded"
CRASHED: Final = "crashed"
OUTCOMES: Final = (Unavailable, Misconfigured, Transient, Permanent, Ambiguous)


@dataclass(slots=True)
class Call:
    """A call to a provider, for a `with` block: counted, timed, and a span where the trace around it is recorded.

    An error that leaves the block is the call's. Attributes never name a person: they are an address of a server, a
    protocol, a code, a count.
    """

    provider: str
    name: str
    attributes: Attributes
    _outcome: str | None = field(default=None, init=False)
    _span: tracing.Span | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    def __enter__(self) -> Self:
        self._began = monotonic()
        if tracing.on and tracing.sampled(TRACE.get()):
            self._span = tracing.call(self.name, self.attributes)
            self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, exemplar = monotonic() - self._began, None
        if self._span is not None:
            exemplar = tracing.exemplar(self._span.traceparent)
            self._span.__exit__(kind, error, trace)
        outcome = self._outcome or (SUCCEEDED if error is None else _outcome(error))
        metrics.PROVIDER_REQUESTS.labels(self.provider, outcome).inc()
        metrics.PROVIDER_SECONDS.labels(self.provider).observe(seconds, exemplar)

    def note(self, name: str, value: Value) -> None:
        """Set an attribute of the call."""
        if self._span is not None:
            self._span.note(name, value)

    def failed(self, error_type: str, error_class: str = "") -> None:
        """Note that the call ended with an error that is returned, not raised: its type, and its error class."""
        self._outcome = error_class if error_class in {each.__name__ for each in OUTCOMES} else CRASHED
        if self._span is not None:
            self._span.failed(error_type)


def _outcome(error: BaseException) -> str:
    """The outcome of a call that raised this: one of a few words."""
    if isinstance(error, asyncio.CancelledError | TimeoutError):
        return Ambiguous.__name__  # cut off in the middle: it may have happened
    return next((kind.__name__ for kind in OUTCOMES if isinstance(error, kind)), CRASHED)


@dataclass(slots=True, eq=False)
class Sending:
    """One side effect at a provider, for a `with` block around it.

    The one place that knows whether any bytes were sent. A `TaskError` that leaves the block is classified already, and
    passes. Any other error (of a library or of Python, or a bug of ours in reading the answer) becomes `Ambiguous`
    after `begin`; before it nothing was sent, so the error becomes `Unavailable` if it is one of `lost`, and else
    `unforeseen`.

    Args:
        what: what is sent: "the mail".
        service: who gets it: "the SMTP server".
        lost: what the client raises when its connection cannot be made, breaks, or takes too long. It is not a bug,
            and not logged.
        unforeseen: what another error means before anything was sent. It may come from this very task, so by default
            it counts for the task and not for the provider.
    """

    what: str
    service: str
    lost: tuple[type[Exception], ...]
    unforeseen: type[TaskError] = Transient
    begun: bool = field(default=False, init=False)
    """Whether bytes of it may have been sent; never reset."""

    def begin(self) -> None:
        """Bytes may be sent from now on."""
        self.begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, TaskError):
            return
        name, lost = type(error).__name__, isinstance(error, self.lost)
        if not lost:
            # Where it happened, without what it says: that may name a person.
            log.error("a call to a provider crashed\n%s", logs.frames(error), extra={"error_class": name})
        if self.begun and lost and isinstance(error, TimeoutError):
            raise Ambiguous(f"{self.what} was sent, and {self.service} did not answer in time") from error
        if self.begun:
            raise Ambiguous(f"{self.what} was sent, and the answer of {self.service} was lost: {name}") from error
        if lost:
            raise Unavailable(f"{self.service} cannot be reached: {str(error) or name}") from error
        raise self.unforeseen(f"{self.what} was not sent: {name}") from error


@runtime_checkable
class Checkable(Protocol):
    """A client that can check whether its provider is available without doing a task's work."""

    async def check(self) -> None:
        """Connect, authenticate, and do nothing else.

        Raises:
            ProviderError: the provider is still unavailable, or still refuses us.
        """


@dataclass(frozen=True, slots=True)
class Provider(Generic[C]):
    """A provider that handlers can ask for with `@handler(..., provider=...)`.

    `settings` names the model whose values come from the environment under `TASKFLUX_<NAME>__`; one of its fields may
    be `rate` (side effects a second, shared by all processes where there is a Redis). `connect` opens a client for
    the life of a worker; `through` opens one that does the same through the notification service, which then has
    the settings instead.
    """

    name: str
    settings: type[BaseModel]
    connect: Callable[[Any], AbstractAsyncContextManager[C]]
    through: Callable[[NotifySettings], AbstractAsyncContextManager[Any]] | None = None

    def call(self, name: str, attributes: Mapping[str, Value] | None = None) -> Call:
        """A call to this provider, for a `with` block around it in the client: counted, timed, and a span of the trace.

        How the block is left says how the call ended: nothing (`succeeded`), one of the errors that handlers raise, or
        another (`crashed`); cut off in the middle it is `Ambiguous`. `name` and `attributes` are the span's, and must
        not name a person::

            with billing.call("POST /charges", {"http.request.method": "POST"}) as span:
                answer = await self._http.post("/charges", json=charge)
                span.note("http.response.status_code", answer.status_code)
        """
        return Call(self.name, name, attributes or {})


def provider(
    name: str,
    *,
    settings: type[S],
    through: Callable[[NotifySettings], AbstractAsyncContextManager[Any]] | None = None,
) -> Callable[[Callable[[S], AbstractAsyncContextManager[C]]], Provider[C]]:
    """Declare an async context manager over a client as a provider.

    ::

        @provider("billing", settings=BillingSettings)
        @asynccontextmanager
        async def connect(settings: BillingSettings) -> AsyncIterator[Billing]: ...
    """

    def declare(connect: Callable[[S], AbstractAsyncContextManager[C]]) -> Provider[C]:
        return Provider(name, settings, connect, through)

    return declare
