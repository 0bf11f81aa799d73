"""Calls to a provider, as traces and metrics show them; outside of a recorded trace a span costs a comparison.

The process that records spans sets `record`, the one that counts calls `observe`. A provider describes its call by what
never names a person: an address of a server, a protocol, a code, a count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Final, Protocol
from urllib.parse import urlsplit

from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, Transient, Unavailable

Value = str | int | float | bool

TRACE: Final[ContextVar[str | None]] = ContextVar("trace", default=None)
"""The traceparent (W3C) of what is under way here: a request, an attempt, or a call within one of them."""


class Call(Protocol):
    """A call that is under way. An error that leaves its block is the call's."""

    def __enter__(self) -> Call: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, name: str, value: Value) -> None:
        """Say something about the call, by an attribute's name."""
        ...

    def failed(self, error_type: str, error_class: str = "") -> None:
        """The call brought an error that is returned, not raised: what it is, and the class of errors that it is of."""
        ...


class Unrecorded:
    """A call that nobody looks at."""

    def __enter__(self) -> Unrecorded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, name: str, value: Value) -> None:
        """Nothing is kept."""

    def failed(self, error_type: str, error_class: str = "") -> None:
        """Nothing is kept."""


_UNRECORDED: Final = Unrecorded()

record: Callable[[str, Mapping[str, Value]], Call | None] | None = None
"""Begins the span of a call, where the trace around it is recorded. Set by the process that records spans."""

observe: Callable[[str, str, float, str | None], None] | None = None
"""Is told provider, outcome, seconds and traceparent of every call. Set by the process that counts them."""


class Counted:
    """A call whose end is told to `observe`, whatever else is made of it."""

    def __init__(self, provider: str, span: Call, tell: Callable[[str, str, float, str | None], None]) -> None:
        self._provider = provider
        self._span = span
        self._tell = tell
        self._outcome: str | None = None
        self._began = monotonic()

    def __enter__(self) -> Counted:
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, traceparent = monotonic() - self._began, TRACE.get()
        self._span.__exit__(kind, error, trace)
        outcome = self._outcome or (SUCCEEDED if error is None else outcome_of(error))
        self._tell(self._provider, outcome, seconds, traceparent)

    def note(self, name: str, value: Value) -> None:
        """Pass it on."""
        self._span.note(name, value)

    def failed(self, error_type: str, error_class: str = "") -> None:
        """Pass it on, and count the call as one that failed."""
        self._outcome = error_class if error_class in _CLASSES else CRASHED
        self._span.failed(error_type, error_class)


SUCCEEDED: Final = "succeeded"
CRASHED: Final = "crashed"
OUTCOMES: Final = (Unavailable, Misconfigured, Transient, Permanent, Ambiguous)
_CLASSES: Final = frozenset(kind.__name__ for kind in OUTCOMES)


def outcome_of(error: BaseException) -> str:
    """What a call that raised this counts as: one of a few words."""
    if isinstance(error, asyncio.CancelledError | TimeoutError):
        return Ambiguous.__name__  # cut off in the middle: it may have happened
    return next((kind.__name__ for kind in OUTCOMES if isinstance(error, kind)), CRASHED)


def http_attributes(method: str, base_url: str, path: str) -> Mapping[str, Value]:
    """An HTTP call in a trace (OpenTelemetry's stable conventions); `path` holds no value of anybody's."""
    base = urlsplit(base_url)
    return {
        "http.request.method": method,
        "server.address": base.hostname or "",
        "server.port": base.port or (443 if base.scheme == "https" else 80),
        "url.full": f"{base.scheme}://{base.netloc.rpartition('@')[2]}{base.path.rstrip('/')}/{path.lstrip('/')}",
    }


def call(provider: str, name: str, attributes: Mapping[str, Value]) -> Call:
    """A call to a provider, for a `with` block; `name` is its span's."""
    span: Call = (_UNRECORDED if record is None else record(name, attributes)) or _UNRECORDED
    return span if observe is None else Counted(provider, span, observe)
