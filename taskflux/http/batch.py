"""`POST /tasks/batch`: a JSON array or NDJSON of tasks, processed while it arrives.

One result for each item, in their order: a JSON array for an array, NDJSON for NDJSON::

    {"index": 0, "status": 202, "taskId": "…", "taskType": "email", "createdAt": "…"}
    {"index": 1, "status": 422, "problem": {…as POST /tasks would answer…}}

* Items are independent: a bad one is reported, the others are accepted. An item is what `POST /tasks` accepts, and may
  have an `idempotencyKey` (the header, which would apply to all items, is refused). A repeated key gets the same answer
  as the first time, with `"idempotentReplay": true`.
* Failed items are described in full up to `DESCRIBED` bytes of results; later ones have only an index and a status.
* The status is 202 as soon as one item was read. If the array itself is broken (or ends too early) or too large, or
  more than `MOST_FAILED` items fail, a last result says so, and the items before it are accepted. A body that does not
  even begin an array is answered 400 as a whole.
* When PostgreSQL becomes unavailable midway, every item that was not certainly accepted by then, and every later one,
  is answered 503: send these again, with keys if none may be created twice.
* An unknown type is looked up once for the whole batch, see `TypeRegistry.find`.
* When the request's time is up, items that have not started are answered 503, and if there is more to read, a last
  result has status 408. The results of accepted items stay as they are.
* When the client disconnects, nothing further is started. Items in progress may be accepted without an answer: send the
  batch again with keys.
* Memory is bounded: reading pauses while too many items are in flight, or too many bytes of all requests. Results are
  held until the request has ended (many clients read only then), up to `Limits.batch_hold_bytes`, some 50,000 items;
  the client of a longer batch must read while it sends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from taskflux.http.access import principal_of
from taskflux.http.bodies import (
    JSON,
    JSON_TYPES,
    NDJSON_TYPES,
    Held,
    beside_loop,
    decode_json,
    headers_of,
    held_by,
    media_type,
    stream_body,
    to_json,
    too_large,
    weigh,
)
from taskflux.http.items import ArraySplitter, Item, LineSplitter, MalformedBatch, Splitter
from taskflux.http.problems import (
    BAD_REQUEST,
    BUSY,
    INTERNAL,
    INVALID_TASK,
    MALFORMED_JSON,
    STORE_UNAVAILABLE,
    TOO_LARGE,
    FieldError,
    Problem,
    not_valid,
)
from taskflux.http.requests import Client, client_of
from taskflux.http.submissions import Submissions, accepted_members, is_idempotency_key
from taskflux.tasks.access import Principal
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.model import Accepted, Submission
from taskflux.telemetry import metrics
from taskflux.telemetry.logs import frames
from taskflux.telemetry.tracing import TRACE

log = logging.getLogger(__name__)

PIECE: Final = 64 * 1024
"""Bytes that are collected before they are sent."""


@dataclass(frozen=True, slots=True)
class Form:
    """How results are joined."""

    media_type: bytes
    opening: bytes
    between: bytes
    closing: bytes


ARRAY: Final = Form(JSON, b"[", b",\n", b"]\n")
NDJSON: Final = Form(b"application/x-ndjson", b"", b"\n", b"\n")


class Results:
    """The results, held until `release`, or until they reach `hold` bytes.

    A client that reads only after it has sent everything would wait for us while we wait for it.
    """

    def __init__(self, send: Send, form: Form, hold: int, held: Held) -> None:
        self._send = send
        self._form = form
        self._hold = hold
        self._held = held
        self._waiting = bytearray()
        self._next = form.opening
        self._started = False

    async def write(self, results: Sequence[bytes]) -> None:
        """Add results, each a JSON text."""
        if results:
            added = self._next + self._form.between.join(results)
            self._waiting += added
            self._held.keep(len(added))
            self._next = self._form.between
        if len(self._waiting) > self._hold:
            await self._flush(more=True)

    async def release(self) -> None:
        """The request has ended: from now on results are sent as they come."""
        self._hold = PIECE
        await self.write(())

    async def end(self) -> None:
        """End the response."""
        empty = self._next is self._form.opening
        self._waiting += (self._form.opening + self._form.closing).lstrip() if empty else self._form.closing
        await self._flush(more=False)

    async def _flush(self, *, more: bool) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", self._form.media_type)]
            await self._send({"type": "http.response.start", "status": 202, "headers": headers})
        body, self._waiting = bytes(self._waiting), bytearray()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        if more:
            self._held.give(len(body))


DESCRIBED: Final = 64 * 1024
"""Bytes of failed items' results that are sent in full; later ones have only an index and a status."""

MOST_FAILED: Final = 50_000
"""Items of one batch that may fail; after more failures, the rest is not read."""

CHUNK: Final = 250
"""Items that are parsed in one go, before other requests get their turn."""


@dataclass(frozen=True, slots=True)
class SubmitBatch:
    """The endpoint."""

    submissions: Submissions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self.submissions.limits
        headers = headers_of(scope)
        form = NDJSON if media_type(headers, JSON_TYPES | NDJSON_TYPES) in NDJSON_TYPES else ARRAY
        if b"idempotency-key" in headers:
            raise Problem(BAD_REQUEST, "Idempotency-Key identifies one task: give each item its own idempotencyKey")
        splitter: Splitter = (LineSplitter if form is NDJSON else ArraySplitter)(limits.max_item_bytes)
        client, held = client_of(scope), held_by(scope)
        results = Results(send, form, limits.batch_hold_bytes, held)
        batch = Batch(self.submissions, results, client, held, principal_of(scope))
        try:
            with client.until_disconnected():
                await batch.run(stream_body(headers, receive, limits.max_body_bytes, held), splitter)
        except ClientDisconnect:
            pass  # no client reads an answer
        finally:
            batch.cancel()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Items that are being accepted together."""

    items: int
    size: int
    outcomes: asyncio.Task[Sequence[Accepted | BaseException]]


class Batch:
    """One batch in progress: a bounded number of items in flight, results in the order of the items."""

    def __init__(
        self, submissions: Submissions, results: Results, client: Client, held: Held, principal: Principal
    ) -> None:
        self._submissions = submissions
        self._principal = principal
        self._results = results
        self._client = client
        self._held = held
        self._looks = submissions.registry.reads
        self._chunks: deque[_Chunk] = deque()
        self._count = self._answered = self._failed = 0
        self._described = 0  # bytes of problems described in full
        self._trouble: Problem | None = None

    async def run(self, body: AsyncIterator[bytes], splitter: Splitter) -> None:
        """Read and answer all items.

        Raises:
            Problem: not even one item could be read.
            ClientDisconnect: the client has disconnected.
        """
        fault: Problem | None = None
        try:
            async for part in body:
                await self._take(splitter.feed(part))
            await self._take(splitter.end())
        except MalformedBatch as error:
            fault = Problem(MALFORMED_JSON, str(error))
        except Problem as problem:  # the rest is not read, or did not arrive in time
            fault = _busy(problem, _REST) if problem.kind is BUSY and self._count else problem
        if fault is not None and self._count == 0:
            raise fault
        await self._results.release()
        await self._answer_all()
        if fault is not None:
            await self._results.write([self._refusal(fault, last=True)])
        await self._results.end()

    def cancel(self) -> None:
        """Cancel what has not started; what PostgreSQL is writing is not undone."""
        for chunk in self._chunks:
            chunk.outcomes.cancel()
            chunk.outcomes.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _take(self, items: Iterator[Item]) -> None:
        """Start to accept the items; if the batch is malformed, those before that place first."""
        fault: MalformedBatch | None = None
        while fault is None:
            chunk: list[Item] = []
            try:
                chunk.extend(islice(items, CHUNK))
            except MalformedBatch as error:
                fault = error
            if not chunk:
                break
            await self._begin(chunk)
        if fault is not None:
            raise fault
        while self._chunks and self._chunks[0].outcomes.done():
            await self._answer_oldest()
        if self._failed > MOST_FAILED:
            raise Problem(TOO_LARGE, f"{self._failed:,} items have failed, more than a batch may have: {_REST}")

    async def _begin(self, items: Sequence[Item]) -> None:
        limits = self._submissions.limits
        size = sum(len(item or b"") for item in items)
        while self._chunks and (
            sum(chunk.items for chunk in self._chunks) + len(items) > limits.batch_items_in_flight or self._held.scarce
        ):
            await self._answer_oldest()
        outcomes = asyncio.create_task(self._accept(items))
        self._chunks.append(_Chunk(len(items), size, outcomes))
        self._count += len(items)

    async def _answer_all(self) -> None:
        while self._chunks:
            await self._answer_oldest()

    async def _answer_oldest(self) -> None:
        oldest = self._chunks[0]
        await asyncio.wait((oldest.outcomes,))
        self._chunks.popleft()
        self._held.give(oldest.size)
        error = oldest.outcomes.exception()
        outcomes = oldest.outcomes.result() if error is None else [error] * oldest.items
        await self._results.write(self._answers(outcomes))

    async def _accept(self, items: Sequence[Item]) -> Sequence[Accepted | BaseException]:
        """Accept these items, and return the outcome of each."""
        prepared = [self._read_now(item) or await self._prepare(item) for item in items]
        submissions = [each for each in prepared if isinstance(each, Submission)]
        outcomes = await self._submit(submissions) if submissions else []
        if len(submissions) == len(prepared):
            return outcomes
        made = iter(outcomes)
        return [each if isinstance(each, Problem) else next(made) for each in prepared]

    def _read_now(self, item: Item) -> Submission | Problem | None:
        """The submission, or what is wrong with it; None if that has to wait for something."""
        if item is None or len(item) >= LARGE or self._client.late:
            return None
        try:
            self._held.check(weigh(item))
            document = decode_json(item)
            return self._submissions.read_now(document, _take_key(document), TRACE.get(), self._principal)
        except Problem as problem:
            return _of_item(problem)

    async def _prepare(self, item: Item) -> Submission | Problem:
        try:
            if item is None:
                raise too_large("the item", self._submissions.limits.max_item_bytes)
            if self._client.late:
                raise self._client.not_begun()
            return await self._read(item)
        except Problem as problem:
            return _of_item(problem)

    async def _read(self, item: bytes) -> Submission:
        size = len(item)
        weight = weigh(item) if size < LARGE else await beside_loop(weigh, item)
        self._held.take(weight)
        try:
            document = decode_json(item) if size < LARGE else await beside_loop(decode_json, item)
            key = _take_key(document)
            return await self._submissions.read(
                document, self._client, key, principal=self._principal, since=self._looks, size=size
            )
        finally:
            self._held.give(weight)

    async def _submit(self, submissions: Sequence[Submission]) -> Sequence[Accepted | BaseException]:
        if self._trouble is None and self._client.late:
            return [self._client.not_begun()] * len(submissions)
        if self._trouble is not None:
            return [self._trouble] * len(submissions)
        outcomes = await self._submissions.accept_all(submissions, "idempotencyKey")
        for outcome in outcomes:
            if isinstance(outcome, Problem) and outcome.kind is STORE_UNAVAILABLE:
                self._trouble = outcome  # every further item would wait as long for the same answer
                break
        return outcomes

    def _answers(self, outcomes: Sequence[Accepted | BaseException]) -> list[bytes]:
        """The result of each item of a chunk."""
        faults: dict[int, Problem] = {}  # one that several items share is logged once
        results = list[bytes]()
        for outcome in outcomes:
            if not isinstance(outcome, Accepted):
                if not isinstance(outcome, Problem):
                    outcome = faults.get(id(outcome)) or faults.setdefault(id(outcome), _fault(outcome))
                results.append(self._refusal(outcome))
                continue
            replay = ',"idempotentReplay":true' if outcome.repeated else ""
            members = accepted_members(outcome, "202", str(outcome.id))
            results.append(f'{{"index":{self._answered},{members}{replay}}}'.encode("ascii"))
            self._answered += 1
        return results

    def _refusal(self, problem: Problem, *, last: bool = False) -> bytes:
        """The result of an item that failed. Only the first are described in full: a bad item can have two bytes."""
        metrics.SUBMITTED.labels(metrics.UNKNOWN, problem.kind.slug).inc()
        index, self._answered = self._answered, self._answered + 1
        self._failed += 1
        if self._described > DESCRIBED and not last:
            return b'{"index":%d,"status":%d}' % (index, problem.status)
        result = to_json({"index": index, "status": problem.status, "problem": problem.document()})
        self._described += len(result)
        return result


def _fault(error: BaseException) -> Problem:
    """The problem of an item that met a bug of ours; the log says where, without the error's text."""
    log.error("%s while accepting an item of a batch\n%s", type(error).__name__, frames(error))
    return Problem(INTERNAL, "this is an internal error of TaskFlux; its log says where it happened")


_REST: Final = "the rest was not read: send the items without an answer again, in another batch"


def _busy(problem: Problem, what: str) -> Problem:
    """The problem of a request that would hold too many bytes, reworded for a part of it."""
    detail = f"this process is at its limit for requests in flight: {what}"
    return Problem(BUSY, detail, headers=problem.headers, extra=problem.extra)


def _of_item(problem: Problem) -> Problem:
    return _busy(problem, "send this item again") if problem.kind is BUSY else problem


def _take_key(document: Any) -> str | None:
    """Take an item's idempotency key out of it, so that its digest is that of the same task sent alone."""
    key = document.pop("idempotencyKey", None) if isinstance(document, dict) else None
    if key is None or is_idempotency_key(key):
        return key
    raise not_valid(
        INVALID_TASK, [FieldError("idempotencyKey", "must be a text of 1 to 255 printable ASCII characters")]
    )
