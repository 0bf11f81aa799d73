"""`POST /tasks`: from a request to a submission, and the one definition of what a task may look like.

Of a name that occurs twice in a JSON object, the last one counts, as in most parsers. What is validated is what is
stored and what the handler gets, so the other one is never used.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii
from time import monotonic
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from taskflux.http.access import Access, other_type, principal_of
from taskflux.http.bodies import (
    JSON,
    SMALL,
    Flight,
    Held,
    beside_loop,
    bug_answer,
    decode_json,
    problem_answer,
    read_json,
    weigh,
)
from taskflux.http.problems import (
    INVALID_TASK,
    KEY_REUSED,
    TOO_LARGE,
    UNKNOWN_TASK_TYPE,
    FieldError,
    Problem,
    not_valid,
    shortened,
    store_problem,
)
from taskflux.http.requests import Answer, Client, Pairs, Requests, client_of, incoming
from taskflux.http.task_types import Registered, TypeRegistry
from taskflux.store.database import new_id
from taskflux.store.errors import StoreError
from taskflux.tasks.access import Principal
from taskflux.tasks.access import Scope as Need
from taskflux.tasks.bounds import LARGE, MOST_BYTES, excess
from taskflux.tasks.fields import OPTIONAL, compact, digest, read_fields, rfc3339
from taskflux.tasks.model import Accepted, IdempotencyKey, KeyReused, Submission
from taskflux.tasks.states import State
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.logs import TASK
from taskflux.telemetry.tracing import TRACE
from taskflux.worker.intake import Intake
from taskflux.worker.loading import BUILT_IN

LONGEST_IDEMPOTENCY_KEY: Final = 255

PLAIN_TYPE: Final = "simulated"
"""The type of a task without one whose payload is a text, as all of FluxTask's are."""


def type_of(document: Any) -> str:
    """The task type that a document asks for.

    Raises:
        Problem: 422, it is not a task, or has no type.
    """
    if not isinstance(document, dict):
        raise Problem(
            INVALID_TASK, 'a task is a JSON object, for example {"taskType": "simulated", "payload": "hello"}'
        )
    name = document.get("taskType")
    return name if isinstance(name, str) else implied_type(document)


def implied_type(document: dict[str, Any]) -> str:
    """The task type of a document that does not name one as a text.

    Raises:
        Problem: 422, it needs one.
    """
    if document.get("taskType") is not None:
        raise not_valid(INVALID_TASK, [FieldError("taskType", "must be a text")])
    if isinstance(document.get("payload"), str):
        return PLAIN_TYPE
    raise not_valid(INVALID_TASK, [*_unknown_fields(document), FieldError("taskType", "is required")])


def unknown_type(name: str, known: Sequence[str], off_handler: str | None = None) -> Problem:
    """The problem of a type that is not registered, or whose handler is off."""
    said = shortened(name, 100)
    handler = off_handler or f"process-{name}"
    if off_handler is not None or handler in BUILT_IN:
        state = "has been switched off" if off_handler is not None else "is off: it has never run here"
        target = f" {handler}" if handler in BUILT_IN else ""
        detail = (
            f"the handler of {said!r} is {handler}, which {state}. Deploy it, with what it"
            f" delivers through; or, where it is to run later, register its type by `taskflux topics{target}`"
        )
        errors = [FieldError("taskType", f"is the type of {handler}, which is off")]
        return Problem(UNKNOWN_TASK_TYPE, detail, errors, extra={"knownTypes": list(known[:50])})
    near = difflib.get_close_matches(said, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    registered = ", ".join(known[:50]) or "none yet"
    detail = (
        f"{hint}no worker has registered {said!r}; registered are: {registered}. A type is registered when a worker"
        " of it first starts, or by `taskflux topics`"
    )
    errors = [FieldError("taskType", "is not registered")]
    return Problem(UNKNOWN_TASK_TYPE, detail, errors, extra={"knownTypes": list(known[:50])})


def is_idempotency_key(key: object) -> bool:
    """Whether `key` may name a request."""
    return isinstance(key, str) and 1 <= len(key) <= LONGEST_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()


def _read_document(
    document: dict[str, Any], now: datetime, *, repeatable: bool
) -> tuple[dict[str, Any], list[FieldError]]:
    """The optional fields that are given, and what is wrong with the document's fields."""
    errors = _unknown_fields(document)
    if "payload" not in document:
        errors.append(FieldError("payload", "is required"))
    given, wrong = read_fields(document, now, repeatable=repeatable)
    return given, [*errors, *(FieldError(*each) for each in wrong)]


def _unknown_fields(document: dict[str, Any]) -> list[FieldError]:
    errors = []
    for name in sorted(document.keys() - FIELDS)[:20]:
        near = difflib.get_close_matches(name[:50], FIELDS, 1)
        hint = _FOREIGN.get(name) or (f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}")
        errors.append(FieldError(shortened(name, 100), f"is not a known field: {hint}"))
    return errors


FIELDS: Final = ("taskType", "payload", *OPTIONAL)

_FOREIGN: Final = {
    "idempotencyKey": "send the header Idempotency-Key (only an item of a batch has this field)",
    "taskId": "TaskFlux assigns the id; to repeat a request safely, use the header Idempotency-Key",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may hold, in bytes, and all of them together. A mail's attachments are part of its payload.

    `batch_hold_bytes` is how many bytes of a batch's answer are held until its request ends: a client that reads
    nothing until it has sent everything would otherwise wait for us while we wait for it.
    """

    max_body_bytes: int = MOST_BYTES
    max_item_bytes: int = MOST_BYTES
    bytes_in_flight: int = 64 * 1024 * 1024
    batch_items_in_flight: int = 1000
    batch_hold_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Submissions:
    """What all ways of submitting a task share; as an ASGI application, `POST /tasks`.

    Args:
        now: this process's clock; used only to refuse times that make no sense.
    """

    intake: Intake
    registry: TypeRegistry
    limits: Limits = Limits()
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 202 once the task is in PostgreSQL.

        A repeat of an idempotency key gets the first answer's body, byte for byte: nothing in it changes later. The
        answer is plain ASGI: building response objects would cost too much here.
        """
        client = client_of(scope)
        try:
            headers, document, size = await read_json(scope, receive, self.limits.max_body_bytes)
            key = headers.get(b"idempotency-key")
            name = None if key is None else key.decode("latin-1")
            submission = await self.read(document, client, name, principal=principal_of(scope), size=size)
            del document  # it may be large
            TASK.set(submission.id)
            with client.until_disconnected():
                accepted = await self.accept(submission, "Idempotency-Key")
            if accepted.repeated:
                TASK.set(accepted.id)
        except Problem as problem:
            metrics.SUBMITTED.labels(metrics.UNKNOWN, problem.kind.slug).inc()
            raise
        answer_headers, body = _answer(accepted)
        await send({"type": "http.response.start", "status": 202, "headers": answer_headers})
        await send({"type": "http.response.body", "body": body})

    async def read(
        self,
        document: Any,
        client: Client,
        key: str | None = None,
        *,
        principal: Principal,
        size: int,
        traceparent: str | None = None,
        since: int | None = None,
    ) -> Submission:
        """The submission that a document asks for.

        Args:
            client: the client that waits for it.
            key: its idempotency key.
            principal: who submits it.
            size: the document's bytes; a large one is checked outside the event loop.
            traceparent: the trace that it belongs to, if that is not the request's.
            since: `TypeRegistry.reads` when the request arrived, for one of several documents of a request.

        Raises:
            Problem: 422, with every bad field; 403, its type is not one of the principal's; 413, its
                payload is larger than its type takes; 503, its type is not
                known here, and the store is unavailable or too slow.
            ClientDisconnect: it disconnected while its type was looked for.
        """
        name = type_of(document)
        registered = self.registry.known(name)
        if registered is None:
            try:
                with client.until_late():
                    registered = await self.registry.find(name, since)
            except StoreError as error:
                raise store_problem(error) from error
        if registered is None:
            raise unknown_type(name, self.registry.names, self.registry.off_handler(name))
        if size < LARGE:
            return self._checked(document, registered, key, traceparent or TRACE.get(), principal)
        return await beside_loop(self._checked, document, registered, key, traceparent or TRACE.get(), principal)

    def read_now(
        self, document: Any, key: str | None, traceparent: str | None, principal: Principal
    ) -> Submission | None:
        """What `read` returns for a document of less than `LARGE` bytes; None if that has to wait for something.

        Raises:
            Problem: as `read`.
        """
        registered = self.registry.known(type_of(document))
        return None if registered is None else self._checked(document, registered, key, traceparent, principal)

    def _checked(
        self,
        document: dict[str, Any],
        registered: Registered,
        key: str | None,
        traceparent: str | None,
        principal: Principal,
    ) -> Submission:
        """The submission, after every field of the document was checked."""
        task_type = registered.type
        if not principal.sees(task_type.name):
            raise other_type(principal)
        given: dict[str, Any] = {}
        errors: list[FieldError] = []
        if len(document) != 2 or "taskType" not in document or "payload" not in document:
            given, errors = _read_document(document, self.now(), repeatable=key is not None)
        payload = document.get("payload")
        text = ""
        try:
            text = compact(payload)
            if len(text) > task_type.max_bytes:
                raise Problem(TOO_LARGE, excess(len(text), task_type.max_bytes))
            errors += registered.schema.errors(payload, text) if "payload" in document else []
        except ValueError:
            errors.append(FieldError("payload", "holds a number beyond the range of a double"))
        if key is not None and not is_idempotency_key(key):
            errors.append(
                FieldError("Idempotency-Key", f"must be 1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters")
            )
        if errors:
            raise not_valid(INVALID_TASK, errors)
        metadata = given.get("metadata")
        return Submission(
            id=new_id(),
            type=task_type.name,
            payload=text,
            max_attempts=given.get("maxAttempts", task_type.max_attempts),
            tenant=principal.tenant,
            key=given.get("key"),
            schedule_at=given.get("scheduleAt"),
            delay=given.get("delaySeconds", 0.0),
            expires_at=given.get("expiresAt"),
            metadata=None if metadata is None else compact(metadata),
            traceparent=traceparent,
            idempotency=None if key is None else IdempotencyKey(key, digest(task_type.name, payload, given)),
            provider=task_type.provider,
        )

    async def accept(self, submission: Submission, key_field: str) -> Accepted:
        """Return once the task is durable; `key_field` is where its idempotency key was given.

        Raises:
            Problem: 422, its key was used with another request; 503, it is not (surely) accepted.
        """
        try:
            outcome = await self.intake.accept(submission)
        except StoreError as error:
            raise store_problem(error) from error
        return counted(outcome, key_field)

    async def accept_all(self, submissions: Sequence[Submission], key_field: str) -> Sequence[Accepted | BaseException]:
        """Return once each is durable, or why it is not; problems as in `accept`."""
        outcomes = list[Accepted | BaseException]()
        counted: Counter[tuple[str, bool]] = Counter()
        for outcome in await self.intake.accept_all(submissions):
            if isinstance(outcome, Accepted):
                counted[outcome.type, outcome.repeated] += 1
                outcomes.append(outcome)
            elif isinstance(outcome, KeyReused):
                outcomes.append(_key_reused(key_field))
            else:
                outcomes.append(store_problem(outcome) if isinstance(outcome, StoreError) else outcome)
        for (name, repeated), number in counted.items():
            metrics.SUBMITTED.labels(name, "repeated" if repeated else "accepted").inc(number)
        return outcomes


def counted(outcome: Accepted | KeyReused, key_field: str) -> Accepted:
    """The accepted task, once it is counted.

    Raises:
        Problem: 422, its key was used with another request.
    """
    if isinstance(outcome, KeyReused):
        raise _key_reused(key_field)
    metrics.SUBMITTED.labels(outcome.type, "repeated" if outcome.repeated else "accepted").inc()
    return outcome


def _key_reused(key_field: str) -> Problem:
    detail = "this idempotency key was used with another request: use a new key for a new task"
    return Problem(KEY_REUSED, detail, [FieldError(key_field, "belongs to another request")])


_SCHEDULED: Final = f'"{State.SCHEDULED}"'


_text_of: Final = lru_cache(16)(rfc3339)
"""Those that share a statement were created at the same moment."""


def _answer(accepted: Accepted) -> tuple[Pairs, bytes]:
    """The headers and the body of the answer to a single task."""
    task = str(accepted.id)
    body = f"{{{accepted_members(accepted, _SCHEDULED, task)}}}".encode("ascii")
    headers = [
        (b"content-type", JSON),
        (b"content-length", b"%d" % len(body)),
        (b"location", f"/tasks/{task}".encode("ascii")),
    ]
    if accepted.repeated:
        headers.append((b"idempotent-replay", b"true"))
    return headers, body


def accepted_members(accepted: Accepted, status: str, task: str) -> str:
    """The submitter's answer, as members of a JSON object: formatted by hand, it takes a third of the time."""
    name = encode_basestring_ascii(accepted.type)
    created_at = _text_of(accepted.created_at)
    return f'"taskId":"{task}","taskType":{name},"status":{status},"createdAt":"{created_at}"'


class Direct:
    """`POST /tasks` without the framework: for a request that has come whole and has nothing unusual about it.

    Whatever else comes goes the general way, `Submissions.__call__` behind the application: a bad request, one without
    a key that is known to allow it, one whose
    type has to be looked up, one that is large or for which there is no room, and all while spans are recorded. What is
    taken here has the same effect, answer, count and log line.
    """

    def __init__(self, submissions: Submissions, flight: Flight, access: Access) -> None:
        self._submissions = submissions
        self._access = access
        self._flight = flight
        self._context = Context()  # of no request: the variables are set for each

    def take(
        self, requests: Requests, headers: Pairs, body: bytes, answer: Answer
    ) -> asyncio.Future[Accepted | KeyReused] | None:
        """Begin to accept the task, and call `answer` in the end; None if the request has to go the general way.

        Cancel the future when the client has disconnected.
        """
        by_name = dict(headers)
        if (
            tracing.on
            or len(by_name) < len(headers)
            or by_name.get(b"content-type") != JSON
            or b"content-encoding" in by_name
            or not 0 < len(body) <= min(SMALL, self._submissions.limits.max_body_bytes)
        ):
            return None
        principal = self._access.known(by_name)
        if principal is None or not principal.may(Need.SUBMIT):
            return None
        began, given, key = monotonic(), by_name.get(b"traceparent"), by_name.get(b"idempotency-key")
        trace = (incoming(given) if given is not None else None) or tracing.new_traceparent()
        held, future = Held(self._flight), None
        try:
            held.take(len(body))
            held.take(weigh(body))
            document = decode_json(body)
            name = None if key is None else key.decode("latin-1")
            submission = self._submissions.read_now(document, name, trace, principal)
            if submission is not None:
                future = self._submissions.intake.accept(submission)
        except Exception:  # noqa: BLE001 - the general way meets it again, and answers
            submission = None
        if submission is None or future is None:
            held.give_all()
            return None
        requests.in_progress += 1
        future.add_done_callback(
            partial(self._conclude, requests, held, submission, began, answer), context=self._context
        )
        return future

    def _conclude(
        self,
        requests: Requests,
        held: Held,
        submission: Submission,
        began: float,
        answer: Answer,
        future: asyncio.Future[Accepted | KeyReused],
    ) -> None:
        trace = submission.traceparent or ""
        TRACE.set(trace)
        TASK.set(submission.id)
        status = 0
        if not future.cancelled():
            status, headers, body = self._outcome(future)
            status = status if answer(status, headers, body) else 0
        held.give_all()
        requests.in_progress -= 1
        requests.record("POST", "/tasks", status, monotonic() - began, trace, broke=False)

    def _outcome(self, future: asyncio.Future[Accepted | KeyReused]) -> tuple[int, Pairs, bytes]:
        """The status, the headers and the body of the answer."""
        try:
            try:
                accepted = counted(future.result(), "Idempotency-Key")
            except StoreError as error:
                raise store_problem(error) from error
        except Problem as problem:
            metrics.SUBMITTED.labels(metrics.UNKNOWN, problem.kind.slug).inc()
            response = problem_answer(problem)
        except Exception as error:  # noqa: BLE001 - a bug of ours, as the application answers one
            response = bug_answer("POST", error)
        else:
            if accepted.repeated:
                TASK.set(accepted.id)
            return 202, *_answer(accepted)
        return response.status_code, response.raw_headers, bytes(response.body)
