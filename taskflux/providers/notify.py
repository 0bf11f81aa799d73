"""Mails and short messages through the notification service (`taskflux run notify`), which alone holds credentials.

Every request carries the caller's id, so the service suppresses repeats; its errors are raised here again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from taskflux.providers.answers import UNPACKED, Answer, ask
from taskflux.providers.email import Email
from taskflux.providers.provider import Call, NotifySettings, Sending
from taskflux.providers.sms import Sms
from taskflux.tasks.decision import LONGEST_DELAY
from taskflux.tasks.errors import Ambiguous, JsonValue, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.telemetry import tracing
from taskflux.telemetry.tracing import http_attributes

if TYPE_CHECKING:
    import httpx

TASK_ID: Final = "Taskflux-Task-Id"
ATTEMPT: Final = "Taskflux-Attempt"
CREATED_AT: Final = "Taskflux-Created-At"
"""Headers of a request: its id, its attempt, and when it was first made (the mail's Date)."""

ERROR_CLASSES: Final[Mapping[str, type[TaskError]]] = {
    error.__name__: error for error in (Transient, Permanent, Ambiguous, Unavailable, Misconfigured)
}

MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes of an answer that are read: the replies for 500 recipients, however escaped, take less."""

_SERVICE: Final = "the notification service"

_KEEP_ALIVE: Final = 20.0
"""Seconds that an idle connection is kept, less than the service keeps it."""


class NotifyClient:
    """A client of the notification service. Made by `mails` and `sms`."""

    def __init__(self, http: httpx.AsyncClient, read_timeout: float) -> None:
        self._http = http
        self._base_url = str(http.base_url)
        self._seconds = read_timeout

    async def deliver(
        self, channel: str, payload: Mapping[str, Any], identity: str, attempt: int, created_at: datetime | None = None
    ) -> Mapping[str, JsonValue]:
        """Deliver `payload` now, once for all requests with the same `identity`; the provider's result.

        Raises:
            TaskError: the service's error; Unavailable when the service cannot be reached, Ambiguous when its
                answer was lost.
        """
        headers = {"content-type": "application/json", TASK_ID: identity, ATTEMPT: str(attempt)}
        if created_at is not None:
            headers[CREATED_AT] = created_at.astimezone(UTC).isoformat()
        path = f"notifications/{channel}"
        with (
            Call("notify", f"POST /{path}", http_attributes("POST", self._base_url, path)) as span,
            Sending("the notification", _SERVICE, _lost()) as sending,
        ):
            answer = await self._deliver(path, json.dumps(payload).encode("ascii"), headers, sending)
            span.note("http.response.status_code", answer.status)
            outcome = classify(answer.status, answer.body)
            if isinstance(outcome, TaskError):
                raise outcome
        return outcome

    async def check(self, channel: str) -> None:
        """Ask the service whether its provider is available again.

        Raises:
            ProviderError: it is not.
        """
        with Sending("the check", _SERVICE, _lost(), unforeseen=Unavailable):  # it has no side effect
            answer = await self._post(f"notifications/{channel}/check", b"", {})
            if answer.status != 204:
                outcome = classify(answer.status, answer.body)
                if isinstance(outcome, Misconfigured):
                    raise outcome
                raise Unavailable(
                    outcome.reason if isinstance(outcome, TaskError) else f"{_SERVICE} answered HTTP {answer.status}"
                )

    async def _deliver(self, path: str, content: bytes, headers: Mapping[str, str], sending: Sending) -> Answer:
        import httpx

        try:
            return await self._post(path, content, headers, sending)
        except httpx.PoolTimeout as error:
            raise Transient(f"every connection to {_SERVICE} was busy") from error
        except (httpx.NetworkError, httpx.ProtocolError):
            if not sending.begun:
                raise
        # A request whose connection broke is sent once more: by its id, it gets the outcome of the first one.
        return await self._post(path, content, headers, sending)

    async def _post(
        self, path: str, content: bytes, headers: Mapping[str, str], sending: Sending | None = None
    ) -> Answer:
        # The service is ours, and continues the trace.
        request = self._http.build_request("POST", path, content=content, headers={**headers, **tracing.outgoing()})
        return await ask(self._http, request, "notify", seconds=self._seconds, most=MOST_BYTES, sending=sending)


def _lost() -> tuple[type[Exception], ...]:
    import httpx

    return httpx.TransportError, TimeoutError


class NotifyMails:
    """A `SendsMail` over the notification service."""

    def __init__(self, client: NotifyClient) -> None:
        self._client = client

    async def send(
        self,
        email: Email,
        *,
        message_id: str,
        date: datetime,
        progress: Mapping[str, JsonValue] | None = None,
        attempt: int = 1,
    ) -> Mapping[str, JsonValue]:
        """See `smtp.Mailer.send`."""
        payload = email.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if progress:
            payload["progress"] = dict(progress)
        return await self._client.deliver("email", payload, message_id, attempt, date)

    async def check(self) -> None:
        """See `smtp.Mailer.check`."""
        await self._client.check("email")


class NotifySms:
    """A `SendsSms` over the notification service."""

    def __init__(self, client: NotifyClient) -> None:
        self._client = client

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """See `msg91.Msg91.send`."""
        payload = sms.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        result = await self._client.deliver("sms", payload, crqid, attempt)
        request_id = result.get("requestId")
        return request_id if isinstance(request_id, str) else ""


@asynccontextmanager
async def mails(settings: NotifySettings) -> AsyncIterator[NotifyMails]:
    """Mails through the service that `settings` names."""
    async with _client(settings) as client:
        yield NotifyMails(client)


@asynccontextmanager
async def sms(settings: NotifySettings) -> AsyncIterator[NotifySms]:
    """Short messages through the service that `settings` names."""
    async with _client(settings) as client:
        yield NotifySms(client)


def classify(status: int, body: bytes) -> Mapping[str, JsonValue] | TaskError:
    """The result in an answer of the service, or the error that it means. Pure."""
    answer = document(body)
    result = answer.get("result")
    if status == 200 and isinstance(result, dict):
        return result
    error = ERROR_CLASSES.get(str(answer.get("errorClass")))
    if error is None:
        return _by_status(status)
    reason, progress = str(answer.get("reason") or answer.get("detail") or ""), answer.get("progress")
    noted = progress if isinstance(progress, dict) else None
    if error is Transient:
        return Transient(reason, retry_after=_seconds(answer.get("retryAfter")), progress=noted)
    return error(reason, progress=noted)


def _by_status(status: int) -> TaskError:
    """The error of an answer that is not the service's own, from something between it and us."""
    said = f"the notification service answered HTTP {status}"
    if status in (408, 429, 503):
        return Unavailable(said)
    if status in (400, 413, 415, 422):
        return Permanent(said)
    if 300 <= status < 500:
        return Misconfigured(f"{said}: see TASKFLUX_NOTIFY__URL")
    return Ambiguous(f"{said}: the outcome of the message is unknown")


def document(body: bytes) -> Mapping[str, Any]:
    """The JSON object in an answer; an empty one if there is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _seconds(value: object) -> float | None:
    return float(min(value, LONGEST_DELAY)) if isinstance(value, int | float) and value >= 0 else None


def _key(settings: NotifySettings) -> dict[str, str]:
    return {} if settings.key is None else {"authorization": f"Bearer {settings.key.get_secret_value()}"}


@asynccontextmanager
async def _client(settings: NotifySettings) -> AsyncIterator[NotifyClient]:
    import httpx  # lazily: most handlers send nothing through it

    http = httpx.AsyncClient(
        base_url=settings.url or "",
        headers={"accept": "application/json, application/problem+json", **UNPACKED, **_key(settings)},
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
        limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=_KEEP_ALIVE),
        trust_env=False,  # it is ours: there is no proxy in between
    )
    async with http:
        yield NotifyClient(http, settings.read_timeout)
