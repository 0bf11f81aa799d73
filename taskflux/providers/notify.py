"""Mails and short messages through the notification service (`taskflux run notify`), which alone holds credentials.

Every request carries the caller's id, so the service suppresses repeats; its errors come back as what they were there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from taskflux.providers.email import Email
from taskflux.providers.provider import Call, NotifySettings, counting_connections
from taskflux.providers.sms import Sms
from taskflux.tasks.errors import Ambiguous, JsonValue, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.telemetry import tracing
from taskflux.telemetry.tracing import http_attributes

if TYPE_CHECKING:
    import httpx

TASK_ID: Final = "Taskflux-Task-Id"
ATTEMPT: Final = "Taskflux-Attempt"
CREATED_AT: Final = "Taskflux-Created-At"
"""What a request says of itself: whose it is, which try, and when it was first asked for (the mail's Date)."""

ERROR_CLASSES: Final[Mapping[str, type[TaskError]]] = {
    error.__name__: error for error in (Transient, Permanent, Ambiguous, Unavailable, Misconfigured)
}

_KEEP_ALIVE: Final = 20.0
"""Seconds that an idle connection is kept, below what the service keeps it."""


class NotifyClient:
    """Asks the notification service. Made by `mails` and `sms`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._base_url = str(http.base_url)
        self._extensions = counting_connections("notify")

    async def deliver(
        self, channel: str, document: Mapping[str, Any], identity: str, attempt: int, created_at: datetime | None = None
    ) -> Mapping[str, JsonValue]:
        """Have `document` delivered now, once for all requests with the same `identity`; the provider's result.

        Raises:
            TaskError: what it was there; Unavailable when the service cannot be reached, Ambiguous when its answer
                was lost.
        """
        headers = {"content-type": "application/json", TASK_ID: identity, ATTEMPT: str(attempt)}
        if created_at is not None:
            headers[CREATED_AT] = created_at.astimezone(UTC).isoformat()
        path = f"notifications/{channel}"
        with Call("notify", f"POST /{path}", http_attributes("POST", self._base_url, path)) as span:
            response = await self._post(path, json.dumps(document).encode("ascii"), headers)
            span.note("http.response.status_code", response.status_code)
            outcome = classify(response.status_code, response.content)
            if isinstance(outcome, TaskError):
                raise outcome
        return outcome

    async def check(self, channel: str) -> None:
        """Have the service look whether its provider is back.

        Raises:
            ProviderError: it is not.
        """
        response = await self._post(f"notifications/{channel}/check", b"", {})
        if response.status_code != 204:
            outcome = classify(response.status_code, response.content)
            if isinstance(outcome, Misconfigured):
                raise outcome
            raise Unavailable(outcome.reason if isinstance(outcome, TaskError) else "the notification service is odd")

    async def _post(self, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        import httpx

        headers = {**headers, **tracing.outgoing()}  # the service is ours, and goes on with the trace
        lost = ""
        # A request whose connection broke is asked once more: by its id it is answered what became of it.
        for _ in range(2):
            try:
                return await self._http.post(path, content=content, headers=headers, extensions=self._extensions)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not lost:
                    said = f"the notification service cannot be reached: {error or type(error).__name__}"
                    raise Unavailable(said) from error
            except httpx.PoolTimeout as error:
                if not lost:
                    raise Transient("every connection to the notification service was busy") from error
            except httpx.ReadTimeout as error:
                raise Ambiguous("the notification service did not answer in time") from error
            except httpx.RequestError as error:
                lost = type(error).__name__
        raise Ambiguous(f"the notification service's answer was lost: {lost}")


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
        document = email.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if progress:
            document["progress"] = dict(progress)
        return await self._client.deliver("email", document, message_id, attempt, date)

    async def check(self) -> None:
        """See `smtp.Mailer.check`."""
        await self._client.check("email")


class NotifySms:
    """A `SendsSms` over the notification service."""

    def __init__(self, client: NotifyClient) -> None:
        self._client = client

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """See `msg91.Msg91.send`."""
        document = sms.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        result = await self._client.deliver("sms", document, crqid, attempt)
        return str(result.get("requestId", ""))


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
    answer = _object(body)
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
    return Ambiguous(f"{said}: what became of the message is not known")


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


@asynccontextmanager
async def _client(settings: NotifySettings) -> AsyncIterator[NotifyClient]:
    import httpx  # lazily: most handlers send nothing through it

    http = httpx.AsyncClient(
        base_url=settings.url or "",
        headers={"accept": "application/json, application/problem+json"},
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
        limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=_KEEP_ALIVE),
        trust_env=False,  # it is a neighbour: no proxy stands between
    )
    async with http:
        yield NotifyClient(http)
