"""`POST /webhooks/msg91/{secret}`: MSG91's delivery reports.

They are not signed, so the path contains a secret: with a wrong one, or without one in the settings, the answer is 404.
A report is matched by the CRQID that was sent with the message, which is the task's id; a report without it is only
counted (finding a task by MSG91's request id would take an index over all results). The same report may arrive any
number of times, and in any order.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.bodies import beside_loop, headers_of, held_by, json_answer, read_body
from taskflux.http.problems import MALFORMED_JSON, NOT_FOUND, UNSUPPORTED_MEDIA_TYPE, Problem
from taskflux.providers.msg91 import MalformedReports, read_reports
from taskflux.store.accelerator import Accelerator
from taskflux.store.notifications import Receipts, Recorded
from taskflux.tasks.bounds import LARGE, MAX_VALUES, VALUE_BYTES
from taskflux.tasks.model import DeliveryReport
from taskflux.tasks.states import State
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

MAX_BYTES: Final = 2 * 1024 * 1024
BATCH: Final = 500
FORM: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"


class Msg91Webhook:
    """The endpoint. `cache` is None where there is no Redis."""

    def __init__(self, secret: Callable[[], str], receipts: Receipts, cache: Accelerator | None) -> None:
        self._secret = secret
        self._receipts = receipts
        self._cache = cache
        metrics.REPORTS.zeros()

    async def record(self, request: Request) -> Response:
        """Answer 200 with how many reports found their task."""
        given = request.path_params["secret"].encode("utf-8", "replace")
        if not hmac.compare_digest(given, self._secret().encode()):
            raise Problem(NOT_FOUND, "nothing is served here")
        headers = headers_of(request.scope)
        essence = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if essence not in (FORM, JSON_TYPE):
            accepted = f"{JSON_TYPE} or {FORM}"
            raise Problem(UNSUPPORTED_MEDIA_TYPE, f"send reports as {accepted}", headers={"Accept": accepted})
        held = held_by(request.scope)
        body = await read_body(headers, request.receive, MAX_BYTES, held)
        held.take(_weight(body))
        try:
            if len(body) < LARGE:
                reports, foreign = read_reports(body, form=essence == FORM)
            else:
                reports, foreign = await beside_loop(lambda: read_reports(body, form=essence == FORM))
        except MalformedReports as error:
            metrics.REPORTS.labels("malformed").inc()
            raise Problem(MALFORMED_JSON, f"these are not delivery reports: {error}") from None
        matched = await self._keep(reports)
        metrics.REPORTS.labels("unmatched").inc(foreign)
        return json_answer({"reports": len(reports) + foreign, "matched": matched})

    async def _keep(self, reports: Sequence[DeliveryReport]) -> int:
        matched = 0
        for group in _one_of_each_task(reports):
            for start in range(0, len(group), BATCH):
                batch = group[start : start + BATCH]
                recorded = {each.task: each for each in await self._receipts.record(batch)}
                matched += len(recorded)
                for report in batch:
                    await self._note(report, recorded.get(report.task))
        return matched

    async def _note(self, report: DeliveryReport, recorded: Recorded | None) -> None:
        if recorded is None:
            metrics.REPORTS.labels("unknown").inc()
            return
        metrics.REPORTS.labels(report.status.value if recorded.kept else "repeated").inc()
        if recorded.first:
            metrics.FIRST_REPORTS.labels(recorded.type, recorded.before.value).inc()
        if recorded.kept and self._cache:
            await self._cache.forget(recorded.tenant, recorded.task)
        if recorded.kept and recorded.before is State.UNCERTAIN:
            log.info("a delivery report has resolved a task", extra={"task_id": str(recorded.task)})


def _weight(body: bytes) -> int:
    """Upper limit of the memory for the reports in a body, in bytes: the separators of a form are percent-encoded."""
    text = body.lower()
    marks = sum(map(text.count, (b"[", b"{", b",", b"%5b", b"%7b", b"%2c")))
    return VALUE_BYTES * min(1 + marks, MAX_VALUES)  # a body with more values is refused


def _one_of_each_task(reports: Sequence[DeliveryReport]) -> list[list[DeliveryReport]]:
    """Groups that contain each task once: reports of different replays of a task are written one after the other."""
    groups: list[list[DeliveryReport]] = []
    seen: dict[UUID, int] = {}
    for report in reports:
        place = seen.get(report.task, 0)
        seen[report.task] = place + 1
        if place == len(groups):
            groups.append([])
        groups[place].append(report)
    return groups
