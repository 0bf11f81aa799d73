"""Tests of a handler without servers: one attempt, run and judged by the code that runs it in a worker.

::

    from taskflux.testing import run_once


    def test_plain_http_is_not_fetched() -> None:
        decision = run_once(resize_image, {"url": "http://example.org/a.png", "width": 100})
        assert (decision.state, decision.reason) == ("dead", "only https is fetched")
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from pydantic_core import to_jsonable_python
from uuid_utils.compat import uuid7

from taskflux.store.claims import Claim, Claims, Settled, Settlement, Worker
from taskflux.store.database import Database
from taskflux.store.publishing import Circuits
from taskflux.store.settings import PostgresSettings
from taskflux.tasks.decision import Decision
from taskflux.tasks.errors import JsonValue
from taskflux.tasks.states import Event, State
from taskflux.telemetry.tracing import Destination
from taskflux.worker.circuits import CircuitWatch, Gate
from taskflux.worker.executor import Executor
from taskflux.worker.handler import Handler
from taskflux.worker.lease import Lease
from taskflux.worker.outcomes import Outcomes

__all__ = ["Call", "Decision", "Event", "FakeClient", "State", "arun_once", "run_once"]

_LEASE: Final = 86400.0
"""Seconds: longer than any test, also one that somebody steps through in a debugger."""
_LAST_WAIT: Final = 1.0
"""Seconds that asyncio tasks which a handler has left behind have to end."""


class Fields(TypedDict, total=False):
    """Fields of `Task` that a test may choose; the others have the values of a task that names none of them."""

    id: UUID
    max_attempts: int
    replay: int
    created_at: datetime
    tenant: str
    key: str | None
    metadata: Mapping[str, JsonValue]


def run_once(
    handler: Handler[Any],
    payload: object,
    *,
    client: object | None = None,
    attempt: int = 1,
    progress: Mapping[str, JsonValue] | None = None,
    timeout: float | None = None,
    **fields: Unpack[Fields],
) -> Decision:
    """Run one attempt of `handler`, and return what a worker would do next.

    The worker's own code validates the payload, calls the function, keeps to the timeout, interprets the error, and
    decides: `decision.state` is the task's next state, `decision.event` what happened, `decision.error_class` and
    `decision.reason` why. `decision.result` is what a success returned, `decision.progress` what a failure noted, and
    `decision.delay` the longest delay (seconds) that a worker may choose before the next attempt.

    Args:
        handler: what `@handler` made of the function.
        payload: JSON values as a client sends them, or a model, which is written as JSON first. A `str` is a text.
        client: takes the place of the provider's client; `FakeClient` makes one.
        attempt: the number of this attempt, from 1. The last one is `max_attempts`.
        progress: what earlier attempts noted.
        timeout: seconds, in place of the handler's own.
        fields: fields of the task; `id` decides about `task.side_effect_id`.

    Raises:
        RuntimeError: an event loop runs already: `await arun_once(…)` there.
        TypeError: this is not a handler, its provider's client is missing, or it has no provider.
        ValueError: the payload is not JSON, or `attempt` or `timeout` is out of range.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("run_once cannot be called while an event loop runs: use `await arun_once(…)` instead")
    runner = asyncio.Runner()
    try:
        decision = runner.run(
            arun_once(handler, payload, client=client, attempt=attempt, progress=progress, timeout=timeout, **fields)
        )
        stuck = runner.run(_cancel_the_rest())
    except BaseException:
        runner.close()
        raise
    if stuck:  # the runner would wait for them
        runner.get_loop().close()
        asyncio.set_event_loop(None)
    else:
        runner.close()
    return decision


async def arun_once(
    handler: Handler[Any],
    payload: object,
    *,
    client: object | None = None,
    attempt: int = 1,
    progress: Mapping[str, JsonValue] | None = None,
    timeout: float | None = None,
    **fields: Unpack[Fields],
) -> Decision:
    """`run_once` for a test that is async itself."""
    _check(handler, client)
    if timeout is not None:
        handler = replace(handler, policy=replace(handler.policy, timeout=timeout))
    claim = _claim(handler, payload, attempt, progress, fields)
    claims = _Claims(handler.type)
    lease = Lease(claims, _LEASE)
    await lease.renew(0)
    gate = Gate(CircuitWatch(Circuits(claims.database)), None, client)
    executor = Executor(handler, gate, lease, Outcomes(claims), 1, jitter=lambda: 1.0)
    executor.start(claim, lease.term)
    try:
        await executor.wait_until_settled()
    finally:  # also where the test was cancelled
        await executor.drain(0.0, asyncio.Event())
    (decision,) = claims.decisions
    return decision


def _check(handler: object, client: object | None) -> None:
    if not isinstance(handler, Handler):
        raise TypeError(f"run_once runs what `@handler` made of a function, not {handler!r}")
    provider = handler.provider
    if provider is not None and client is None:
        raise TypeError(
            f"the handler of {handler.type!r} uses the provider {provider.name!r}: pass a client with `client=`, such"
            " as a FakeClient"
        )
    if provider is None and client is not None:
        raise TypeError(f"the handler of {handler.type!r} declares no provider: leave `client` out")


def _claim(
    handler: Handler[Any], payload: object, attempt: int, progress: Mapping[str, JsonValue] | None, fields: Fields
) -> Claim:
    """What a worker would have claimed."""
    most = fields.get("max_attempts", handler.policy.retry.max_attempts)
    if not 1 <= attempt <= most:
        raise ValueError(f"attempt is {attempt}: it can be 1 to {most}, the handler's max_attempts")
    if unknown := fields.keys() - Fields.__annotations__.keys():
        raise TypeError(f"no field of a task that a test may choose: {', '.join(sorted(unknown))}")
    text = _json(payload, "the payload")
    metadata, created = fields.get("metadata"), fields.get("created_at") or datetime.now(UTC)
    return Claim(
        id=fields.get("id") or uuid7(),
        version=1,
        attempt=attempt,
        max_attempts=most,
        releases=0,
        replays=fields.get("replay", 0),
        tenant=fields.get("tenant", "default"),
        key=fields.get("key"),
        payload=text,
        metadata=_json(metadata, "metadata") if metadata else None,
        progress=_json(progress, "progress") if progress else None,
        traceparent=None,
        attempt_span=None,
        created=(created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp(),
        expired=False,
        waited=0.0,
        size=len(text),
    )


def _json(value: object, what: str) -> str:
    """A value as it is stored: compact, and in ASCII."""
    try:
        return json.dumps(to_jsonable_python(value, by_alias=True), allow_nan=False, separators=(",", ":"))
    except ValueError as error:  # pydantic's own error is one, too
        raise ValueError(f"{what} cannot be written as JSON: {error}") from error


async def _cancel_the_rest() -> bool:
    """Cancel what a handler has left behind; whether something does not end."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for each in left:
        each.cancel()
    if not left:
        return False
    _, stuck = await asyncio.wait(left, timeout=_LAST_WAIT)
    return bool(stuck)


class _Claims(Claims):
    """A lease that does not end, and settlements that are kept here. Its database is never asked."""

    def __init__(self, task_type: str) -> None:
        nowhere = Database(PostgresSettings())
        worker = Worker(uuid7(), "test", "test", 0, None, task_type)
        super().__init__(nowhere, worker, Destination(task_type, "test"))
        self.decisions: list[Decision] = []

    async def beat(self, in_flight: int) -> bool:
        return True

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self.decisions += [settlement.decision for settlement in settlements]
        return [Settled(written=True)] * len(settlements)


# Fakes of clients ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a `FakeClient`."""

    method: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


class FakeClient:
    """Takes the place of a provider's client of class `of`, in a test.

    Each keyword is a method of the class, and its value is what the method does: an exception is raised, a function is
    called with the arguments of the call, and anything else is returned. The methods are async where those of the class
    are, and take the same arguments. `calls` has the calls in their order::

        fake = FakeClient(Billing, charge=Unavailable("billing is down"))
        decision = run_once(charge, {"cents": 500}, client=fake)
        assert fake.calls[0].arguments == (500, …)

    Raises:
        TypeError: the class has no such method. So does a call with other arguments, or of a method without an answer.
    """

    def __init__(self, of: type, **answers: Any) -> None:
        self.calls: list[Call] = []
        self._of = of
        for name, answer in answers.items():
            method = inspect.getattr_static(of, name, None)
            if not inspect.isfunction(method):
                raise TypeError(f"{of.__name__} has no method {name!r}")
            setattr(self, name, self._stand_in(method, answer))

    def __getattr__(self, name: str) -> Any:
        if inspect.isfunction(inspect.getattr_static(self._of, name, None)):
            raise TypeError(
                f"this fake has no answer for {name!r}: make it with FakeClient({self._of.__name__}, {name}=…)"
            )
        raise AttributeError(f"{self._of.__name__!r} object has no attribute {name!r}")

    def _stand_in(self, method: Any, answer: Any) -> Any:
        signature = inspect.signature(method)

        def call(*arguments: Any, **keywords: Any) -> Any:
            signature.bind(self, *arguments, **keywords)
            self.calls.append(Call(method.__name__, arguments, keywords))
            if isinstance(answer, BaseException) or (inspect.isclass(answer) and issubclass(answer, BaseException)):
                raise answer
            return answer(*arguments, **keywords) if inspect.isfunction(answer) else answer

        async def call_async(*arguments: Any, **keywords: Any) -> Any:
            found = call(*arguments, **keywords)
            return await found if inspect.isawaitable(found) else found

        return call_async if inspect.iscoroutinefunction(method) else call
