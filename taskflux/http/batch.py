"""`POST /tasks/batch`: a JSON array or NDJSON of tasks, taken while it arrives.

One answer for each item, in their order: a JSON array for an array, NDJSON for NDJSON::

    {"index": 0, "status": 202, "taskId": "…", "taskType": "email", "createdAt": "…"}
    {"index": 1, "status": 422, "problem": {…as POST /tasks would answer…}}

* An item stands for itself: a bad one is named, the others are accepted. An item is what `POST /tasks` takes, and
  may have `idempotencyKey` besides (the header, which could only mean all of them, is refused). A repeat of a key is
  answered like its first time, with `"idempotentReplay": true`.
* The answer is 202 as soon as one item was read. Where the array itself is broken (or ends too early) a last answer
  with status 400 says so, and what stood before is accepted. An array that does not even begin is a 400 as a whole.
* When PostgreSQL goes away midway, what was not surely accepted by then, and all that follows, is answered 503 item
  by item: send those again, with keys if none may be made twice.
* When the client goes away, what had arrived whole is accepted; nobody is told. Send the batch again with keys.
* Memory is bounded: so many items and bytes are in flight, then reading waits. Answers are held back until the
  request has ended (many clients read only then), up to `Limits.batch_hold_bytes`, some 50,000 items; the client of
  a longer batch must read while it sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from taskflux.http.answers import to_json
from taskflux.http.bodies import JSON_TYPES, NDJSON_TYPES, headers_of, media_type, stream_body, too_large
from taskflux.http.problems import BAD_REQUEST, MALFORMED_JSON, STORE_UNAVAILABLE, FieldError, Problem, store_problem
from taskflux.http.results import ARRAY, NDJSON, Results
from taskflux.http.services import Services
from taskflux.http.splitting import ArraySplitter, Item, LineSplitter, MalformedBatch, Splitter
from taskflux.http.submissions import Circumstances, invalid, is_idempotency_key, parse_json, read_submission
from taskflux.http.submit import accepted_members, key_reused, registered_type
from taskflux.store.errors import StoreError
from taskflux.tasks.submission import Accepted, KeyReused, Submission

CHUNK: Final = 250
"""Items that are parsed in one go, before other requests get their turn."""


class SubmitBatch:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._services.limits
        headers = headers_of(scope)
        form = NDJSON if media_type(headers, JSON_TYPES | NDJSON_TYPES) in NDJSON_TYPES else ARRAY
        if b"idempotency-key" in headers:
            raise Problem(BAD_REQUEST, "Idempotency-Key names one task: give each item an idempotencyKey of its own")
        splitter: Splitter = (LineSplitter if form is NDJSON else ArraySplitter)(limits.max_item_bytes)
        results = Results(send, form, limits.batch_hold_bytes)
        batch = Batch(self._services, headers.get(b"traceparent"), results)
        try:
            await batch.run(stream_body(receive), splitter)
        finally:
            batch.cancel()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Items that are being accepted together."""

    items: int
    size: int
    answers: asyncio.Task[list[bytes]]


class Batch:
    """One request on its way: at most so much in flight, answers in the order of the items."""

    def __init__(self, services: Services, traceparent: bytes | None, results: Results) -> None:
        self._services = services
        self._traceparent = traceparent
        self._results = results
        self._chunks: deque[_Chunk] = deque()
        self._count = 0
        self._trouble: Problem | None = None

    async def run(self, body: AsyncIterator[bytes], splitter: Splitter) -> None:
        """Take everything and answer it.

        Raises:
            Problem: 400, not even one item could be made out.
        """
        fault: str | None = None
        try:
            async for part in body:
                await self._take(splitter.feed(part))
            await self._take(splitter.end())
        except MalformedBatch as error:
            fault = str(error)
            if self._count == 0:
                raise Problem(MALFORMED_JSON, fault) from None
        except ClientDisconnect:
            await self._answer_all()
            return
        await self._results.release()
        await self._answer_all()
        if fault is not None:
            await self._results.write([self._refusal(self._count, Problem(MALFORMED_JSON, fault))])
        await self._results.end()

    def cancel(self) -> None:
        """Leave what is still in flight to itself."""
        for chunk in self._chunks:
            chunk.answers.cancel()

    async def _take(self, items: Iterator[Item]) -> None:
        """Begin to accept the items; when a fault ends them, first those that stand before it."""
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
        while self._chunks and self._chunks[0].answers.done():
            await self._answer_oldest()

    async def _begin(self, items: Sequence[Item]) -> None:
        limits = self._services.limits
        size = sum(len(item or b"") for item in items)
        while self._chunks and (
            sum(chunk.items for chunk in self._chunks) + len(items) > limits.batch_items_in_flight
            or sum(chunk.size for chunk in self._chunks) + size > limits.batch_bytes_in_flight
        ):
            await self._answer_oldest()
        answers = asyncio.create_task(self._accept(self._count, items))
        self._chunks.append(_Chunk(len(items), size, answers))
        self._count += len(items)

    async def _answer_all(self) -> None:
        while self._chunks:
            await self._answer_oldest()

    async def _answer_oldest(self) -> None:
        answers = await self._chunks[0].answers
        self._chunks.popleft()
        await self._results.write(answers)

    async def _accept(self, first: int, items: Sequence[Item]) -> list[bytes]:
        """The answers of these items, the first of which has the index `first`."""
        prepared = [await self._prepare(item) for item in items]
        submissions = [each for each in prepared if isinstance(each, Submission)]
        outcomes = iter(await asyncio.gather(*map(self._submit, submissions)))
        decided = [each if isinstance(each, Problem) else next(outcomes) for each in prepared]
        return [self._answer(index, outcome) for index, outcome in enumerate(decided, first)]

    async def _prepare(self, item: Item) -> Submission | Problem:
        services = self._services
        try:
            if item is None:
                raise too_large("the item", services.limits.max_item_bytes)
            document = parse_json(item)
            key = _take_key(document)
            registered = await registered_type(document, services.registry)
            circumstances = Circumstances(services.traceparent(self._traceparent), services.now(), key)
            return read_submission(document, registered, circumstances)
        except StoreError as error:
            return store_problem(error)
        except Problem as problem:
            return problem

    async def _submit(self, submission: Submission) -> Accepted | Problem:
        if self._trouble is not None:
            return self._trouble
        try:
            outcome = await self._services.intake.accept(submission)
        except StoreError as error:
            problem = store_problem(error)
            if problem.kind is STORE_UNAVAILABLE:
                self._trouble = problem  # every further item would wait as long for the same answer
            return problem
        return key_reused("idempotencyKey") if isinstance(outcome, KeyReused) else outcome

    def _answer(self, index: int, outcome: Accepted | Problem) -> bytes:
        if isinstance(outcome, Problem):
            return self._refusal(index, outcome)
        self._services.hooks.on_accepted(outcome.type, outcome.repeated)
        replay = ',"idempotentReplay":true' if outcome.repeated else ""
        return f'{{"index":{index},{accepted_members(outcome, "202")}{replay}}}'.encode("ascii")

    def _refusal(self, index: int, problem: Problem) -> bytes:
        self._services.hooks.on_refused(problem.kind.slug)
        return to_json({"index": index, "status": problem.status, "problem": problem.document()})


def _take_key(document: Any) -> str | None:
    """Take an item's idempotency key out of it, so that its digest is that of the same task sent alone."""
    key = document.pop("idempotencyKey", None) if isinstance(document, dict) else None
    if key is None or is_idempotency_key(key):
        return key
    raise invalid([FieldError("idempotencyKey", "must be a text of 1 to 255 printable ASCII characters")])
