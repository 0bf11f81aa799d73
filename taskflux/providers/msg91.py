"""SMS over MSG91's Flow API (v5), as a provider: sending, what answers mean, and what delivery reports say.

The API reports many errors with HTTP 200, so the body counts first. Codes and formats: https://docs.msg91.com/, and the
experience of other clients.

Delivery reports come as v2, a form whose field `data` is JSON, `[{"requestId", "report": [{"date", "number", "status",
"desc", "CRQID"}]}]`, or as v3, flat JSON, `{"date", "number", "requestId", "CRQID", "status", "desc"}`, or several of
them in an array.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs
from uuid import UUID

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator

from taskflux.endpoints import check_url
from taskflux.providers import notify
from taskflux.providers.answers import UNPACKED, Answer, ask
from taskflux.providers.provider import Call, Sending, provider
from taskflux.providers.sms import Sms
from taskflux.tasks.bounds import OutOfBounds, check
from taskflux.tasks.decision import LONGEST_DELAY
from taskflux.tasks.errors import (
    Ambiguous,
    InvalidPayload,
    JsonValue,
    Misconfigured,
    Permanent,
    TaskError,
    Transient,
    Unavailable,
)
from taskflux.tasks.model import DeliveryReport, DeliveryStatus
from taskflux.telemetry.tracing import http_attributes

PATH: Final = "/api/v5/flow/"

_KEEP_ALIVE: Final = 2.0
"""Seconds that an idle connection is kept. If a server closes one just as we write, nobody knows whether it accepted
the message; two seconds are below what any server is likely to allow."""

_MOST_BYTES: Final = 64 * 1024
"""Bytes of an answer that are read: MSG91's are a few hundred."""

MISCONFIGURED_CODES: Final = frozenset(
    {"106", "207", "201", "401", "403"}  # the auth key
    | {"208", "418"}  # our address is not allowed
    | {"203", "211"}  # sender id, template: see `own_faults`
    | {"301", "302", "303"}  # balance, account
)
PERMANENT_CODES: Final = frozenset({"101", "202", "310"})
"""Mobile number missing or wrong, text too long."""

SAME_REQUEST: Final = "311"
WRONG_SENDER: Final = "203"
WRONG_TEMPLATE: Final = "211"

_MONEY: Final = re.compile(r"balance|insufficient|credit", re.IGNORECASE)
_APPROVAL: Final = re.compile(r"not\s+(?:yet\s+)?approved|unapproved|pending", re.IGNORECASE)
_LONGEST_TEXT: Final = 300

_STATUS: Final = {
    "1": DeliveryStatus.DELIVERED,
    "2": DeliveryStatus.FAILED,
    "9": DeliveryStatus.NDNC,
    "16": DeliveryStatus.REJECTED,
    "25": DeliveryStatus.REJECTED,
    "17": DeliveryStatus.BLOCKED,
    **{status.value: status for status in DeliveryStatus},
}
"""By code, or by word if there is one in its place. Any other code is an intermediate state."""

_REFERENCE: Final = re.compile(
    r"(?P<task>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?:\.(?P<replay>[1-9][0-9]{0,8}))?"
)
_NUMBER: Final = re.compile(r"\+?\d{7,}")
MOST_REPORTS: Final = 10_000

_SECRET: Final = re.compile(r"[A-Za-z0-9._~-]{16,200}")


class Msg91Settings(BaseModel):
    """MSG91, which sends SMS."""

    model_config = ConfigDict(extra="forbid")

    base_url: Annotated[
        str, AfterValidator(check_url), Field(description="base URL of the API; the path is added to it")
    ] = "https://control.msg91.com"
    auth_key: Annotated[SecretStr, Field(description="the account's auth key")] = SecretStr("")
    template_id: Annotated[str, Field(description="the flow for tasks that name none")] = ""
    sender: Annotated[str | None, Field(description="sender id; unset: the template's")] = None
    route: Annotated[str | None, Field(description="route; unset: the account's")] = None
    short_url: Annotated[Literal["0", "1"], Field(description="1 shortens the URLs of a message")] = "0"
    connect_timeout: Annotated[float, Field(gt=0, description="seconds that a connection may take")] = 5.0
    read_timeout: Annotated[
        float,
        Field(gt=0, description="seconds that an answer may take; after that, it is unknown whether the SMS was sent"),
    ] = 30.0
    connections: Annotated[int, Field(ge=1, le=1000, description="maximum number of connections of one process")] = 32
    rate: Annotated[
        float | None, Field(gt=0, description="SMS per second, all processes together; unset: no limit")
    ] = None

    webhook_secret: Annotated[
        SecretStr | None,
        Field(description="ingest accepts delivery reports at /webhooks/msg91/<secret>; unset: it accepts none"),
    ] = None

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_is_part_of_a_path(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("webhook_secret needs 16 to 200 of A-Z a-z 0-9 . _ ~ -: it alone protects the path")
        return value

    @field_validator("auth_key")
    @classmethod
    def _auth_key_is_a_header(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value()
        if not key.isascii() or any(char.isspace() or not char.isprintable() for char in key):
            raise ValueError("auth_key has a space or another character that cannot stand in a header")
        return value


class Msg91:
    """Sends short messages. Made by `connect`. The API has no call without an effect, so there is no `check`."""

    def __init__(self, settings: Msg91Settings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http
        self._about = http_attributes("POST", settings.base_url, PATH)

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """Send one message and return MSG91's request id. Accepted is not delivered: a webhook reports that later.

        Args:
            sms: the message.
            crqid: our id of it, repeated in delivery reports; `[A-Za-z0-9_.-]`, at most 80. MSG91 does not use it
                to recognise a repeat.
            attempt: not used by MSG91; the notification service recognises repeats by it.

        Raises:
            TaskError: by the answer, see `classify`, or because there is none.
        """
        flow = _written(self._flow(sms, crqid))
        # The trace ends here: MSG91 gets no trace context.
        with (
            Call("msg91", f"POST {PATH}", self._about) as span,
            Sending("the message", "the SMS service", (httpx.TransportError, TimeoutError)) as sending,
        ):
            answer = await self._answer(flow, sending)
            span.note("http.response.status_code", answer.status)
            outcome = classify(
                answer.status,
                answer.body,
                retry_after=answer.headers.get("retry-after"),
                own=own_faults(sms, self._settings),
                quoted=_quotable(sms),
            )
            if isinstance(outcome, TaskError):
                raise outcome
        return outcome

    def _flow(self, sms: Sms, crqid: str) -> dict[str, JsonValue]:
        template_id = sms.template_id or self._settings.template_id
        if not template_id:
            raise Misconfigured(
                "the task names no templateId, and template_id is not set (TASKFLUX_MSG91__TEMPLATE_ID)"
            )
        optional = {"sender": self._settings.sender, "route": self._settings.route}
        return {
            "template_id": template_id,
            "short_url": self._settings.short_url,
            "CRQID": crqid,
            **{name: value for name, value in optional.items() if value},
            "recipients": [{"mobiles": sms.mobile, "name": sms.name, **sms.variables}],
        }

    async def _answer(self, flow: bytes, sending: Sending) -> Answer:
        request = self._http.build_request("POST", PATH.lstrip("/"), content=flow)
        try:
            seconds = self._settings.read_timeout
            return await ask(self._http, request, "msg91", seconds=seconds, most=_MOST_BYTES, sending=sending)
        except httpx.PoolTimeout as error:
            raise Transient("every connection to the SMS service was busy: see connections and rate") from error


def _written(flow: Mapping[str, JsonValue]) -> bytes:
    """The request's body.

    Raises:
        InvalidPayload: a variable has a value that JSON cannot represent.
    """
    try:
        return json.dumps(flow, allow_nan=False, separators=(",", ":")).encode("ascii")
    except ValueError as error:  # an infinite number, or one of too many digits
        raise InvalidPayload("a variable is a number that JSON cannot represent: send it as a string") from error


@provider("msg91", settings=Msg91Settings, through=notify.sms)
@asynccontextmanager
async def connect(settings: Msg91Settings) -> AsyncIterator[Msg91]:
    """A `Msg91` over a pool of HTTP connections.

    Raises:
        Misconfigured: there is no auth key.
    """
    if not settings.auth_key.get_secret_value():
        raise Misconfigured("auth_key is not set: set TASKFLUX_MSG91__AUTH_KEY")
    http = httpx.AsyncClient(
        base_url=settings.base_url,
        auth=partial(_authenticate, settings),
        headers={"accept": "application/json", "content-type": "application/json", **UNPACKED},
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
        limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=_KEEP_ALIVE),
    )
    async with http:
        yield Msg91(settings, http)


def _authenticate(settings: Msg91Settings, request: httpx.Request) -> httpx.Request:
    """By the key as it is now: it may have been renewed."""
    request.headers["authkey"] = settings.auth_key.get_secret_value()
    return request


def own_faults(sms: Sms, settings: Msg91Settings) -> Collection[str]:
    """Codes of `MISCONFIGURED_CODES` that are caused by this message's own fields, and not by the settings."""
    if sms.template_id is None:
        return ()
    # Without a sender in the settings, the template has its own.
    return (WRONG_TEMPLATE,) if settings.sender else (WRONG_TEMPLATE, WRONG_SENDER)


def _quotable(sms: Sms) -> Collection[str]:
    """What an answer may quote of a message."""
    return [each for each in (sms.template_id, sms.name, sms.mobile, *map(str, sms.variables.values())) if each]


def classify(
    status: int,
    body: bytes,
    *,
    retry_after: str | None = None,
    now: datetime | None = None,
    own: Collection[str] = (),
    quoted: Collection[str] = (),
) -> str | TaskError:
    """The request id of an accepted message, or the error that the answer means.

    Args:
        status: the HTTP status.
        body: the body as it came.
        retry_after: the header of that name.
        now: for a `retry_after` that is a date; the present by default.
        own: codes that are the task's own fault, see `own_faults`.
        quoted: texts of the task, which are ignored where the answer repeats them.
    """
    answer = _parsed(body)
    if answer is None:
        return _without_words(status, retry_after, now)
    if status < 300 and str(answer.get("type", "")).lower() == "success":
        return _request_id(answer.get("message"))
    if not _is_error(answer):
        return _without_words(status, retry_after, now)
    # An unknown error is permanent: sending again costs money.
    return _named(answer, status, own, quoted) or _by_status(status, retry_after, now) or Permanent(_said(answer))


def _named(answer: Mapping[str, Any], status: int, own: Collection[str], quoted: Collection[str]) -> TaskError | None:
    """The error of an answer whose code or words are known."""
    said = _said(answer)
    # The 401 form has the HTTP status in `code` and the error in `apiError`.
    code = str(answer.get("apiError") or answer.get("code") or "")
    if code in PERMANENT_CODES or code in own:
        return Permanent(said)
    if code in MISCONFIGURED_CODES or status in (401, 403):
        return Misconfigured(said)
    if code == SAME_REQUEST:
        # Not "try again in ten seconds": the earlier request may have been this task's own attempt, accepted
        # although its answer was lost. Sending again would then send twice; a held task gets a delivery report.
        return Ambiguous(f"{said} (the same request came less than ten seconds ago and may have been taken)")
    words = said
    for each in quoted:
        if _MONEY.search(each) or _APPROVAL.search(each):
            words = words.replace(each, "…")
    if _MONEY.search(words):
        return Misconfigured(said)
    if _APPROVAL.search(words):
        return Permanent(said) if WRONG_TEMPLATE in own else Misconfigured(said)
    return None


def _without_words(status: int, retry_after: str | None, now: datetime | None) -> TaskError:
    """The error of an answer that is not in MSG91's format, from a proxy on the way or a wrong address."""
    if 200 <= status < 300:
        return Ambiguous(f"the SMS service answered HTTP {status} without saying whether it accepted the message")
    known = _by_status(status, retry_after, now)
    if known is not None:
        return known
    if status in (400, 413, 422):
        return Permanent(f"the SMS service refused the message with HTTP {status}")
    return Misconfigured(f"the SMS service answered HTTP {status}: see base_url and auth_key")


def _by_status(status: int, retry_after: str | None, now: datetime | None) -> TaskError | None:
    """The error of a status that says more than the words beside it."""
    said = f"the SMS service answered HTTP {status}"
    if status == 504:
        return Ambiguous(f"{said}: the message was passed on, and its outcome is unknown")
    if status in (502, 503):
        return Unavailable(said)
    if status in (408, 429) or status >= 500:
        return Transient(said, retry_after=_seconds(retry_after, now))
    return None


def _parsed(body: bytes) -> Mapping[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _is_error(answer: Mapping[str, Any]) -> bool:
    kind = str(answer.get("type") or answer.get("status") or "").lower()
    return kind in ("error", "fail", "failed", "failure") or bool(answer.get("hasError"))


def _said(answer: Mapping[str, Any]) -> str:
    text = _text(answer.get("message") or answer.get("errors") or "no reason")
    code = answer.get("apiError") or answer.get("code")
    return f"the SMS service said: {text}" + (f" ({_text(code)})" if code else "")


def _request_id(value: Any) -> str:
    """An id of MSG91; empty if it is missing or the string null."""
    line = _line(value, 100)
    return "" if line.lower() == "null" else line


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line[:_LONGEST_TEXT]


def _seconds(retry_after: str | None, now: datetime | None) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date. Anything else is ignored; at most `LONGEST_DELAY`."""
    said = (retry_after or "").strip()
    if said.isascii() and said.isdigit():
        return min(float(said), LONGEST_DELAY)
    try:
        date = parsedate_to_datetime(said)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_DELAY)


class MalformedReports(Exception):
    """The body is in neither form."""


def read_reports(body: bytes, *, form: bool) -> tuple[list[DeliveryReport], int]:
    """The reports in a body with an id of ours, the one with the most weight of each task; and how many had none.

    Raises:
        MalformedReports: with a sentence that quotes nothing.
    """
    found: dict[tuple[UUID, int], DeliveryReport] = {}
    foreign = 0
    for count, entry in enumerate(_entries(_document(body, form=form))):
        if count == MOST_REPORTS:
            raise MalformedReports(f"there are more than {MOST_REPORTS:,} reports")
        report = _report(entry)
        if report is None:
            foreign += 1
            continue
        key = (report.task, report.replay)
        if key not in found or report.weight > found[key].weight:
            found[key] = report
    return list(found.values()), foreign


def _document(body: bytes, *, form: bool) -> Any:
    try:
        text = body.decode("utf-8")
        if form:
            [text] = parse_qs(text, strict_parsing=True, max_num_fields=20)["data"]
        check(text.encode())
        return json.loads(text)
    except KeyError:
        raise MalformedReports("the form has no field data") from None
    except OutOfBounds as error:
        raise MalformedReports(str(error)) from None
    except ValueError:
        raise MalformedReports("it is not JSON") from None


def _entries(document: Any) -> Iterator[Mapping[str, Any]]:
    """Each report, with the fields of its group."""
    for outer in document if isinstance(document, list) else [document]:
        if not isinstance(outer, dict):
            raise MalformedReports("a report is a JSON object")
        inner = outer.get("report")
        if inner is None:
            yield outer
            continue
        for entry in inner if isinstance(inner, list) else [inner]:
            if not isinstance(entry, dict):
                raise MalformedReports("a report is a JSON object")
            yield {**outer, **entry}


def _report(entry: Mapping[str, Any]) -> DeliveryReport | None:
    reference = _REFERENCE.fullmatch(_line(entry.get("CRQID"), 80).lower())
    if reference is None:
        return None
    code = _line(entry.get("status"), 20)
    return DeliveryReport(
        UUID(reference["task"]),
        int(reference["replay"] or 0),
        _STATUS.get(code.lower(), DeliveryStatus.ACCEPTED),
        code,
        # The text is the operator's, and may contain the number that it could not reach.
        _NUMBER.sub("…", _line(entry.get("desc"), 200)),
        _request_id(entry.get("requestId")),
        _line(entry.get("date"), 40),
    )


def _line(value: Any, longest: int) -> str:
    """One printable line: it is kept in PostgreSQL, which takes no NUL, and in a timeline, whose notes hold no `|`."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return line.replace("|", "/")[:longest]
