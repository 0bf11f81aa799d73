"""SMS over MSG91's Flow API (v5), as a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx

from taskflux.providers import notify
from taskflux.providers.msg91_answers import classify
from taskflux.providers.msg91_settings import Msg91Settings
from taskflux.providers.provider import provider
from taskflux.providers.sms import Sms
from taskflux.tasks.errors import Ambiguous, JsonValue, Misconfigured, TaskError, Transient, Unavailable
from taskflux.telemetry import connections
from taskflux.telemetry.calls import call, http_attributes

__all__ = ["Msg91", "Msg91Settings", "connect"]

PATH: Final = "/api/v5/flow/"

_KEEP_ALIVE: Final = 2.0
"""Seconds that an idle connection is kept. A server that closes one just as we write leaves us not knowing whether it
took the message; two seconds stay below what any server is likely to allow."""


class Msg91:
    """Sends short messages. Made by `connect`. The API has no call that asks nothing of it, so there is no `check`."""

    def __init__(self, settings: Msg91Settings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http
        self._about = http_attributes("POST", settings.base_url, PATH)
        self._extensions = connections.told_by_http("msg91")

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """Hand one message over and return MSG91's request id. Taken is not delivered: that a webhook tells later.

        Args:
            sms: the message.
            crqid: our name for it, repeated in delivery reports; `[A-Za-z0-9_.-]`, at most 80. MSG91 does not use it
                to recognise a repeat.
            attempt: nothing to MSG91; the notification service recognises repeats by it.

        Raises:
            TaskError: what `msg91_answers.classify` makes of the answer, or of there being none.
        """
        request = self._http.build_request(
            "POST", PATH.lstrip("/"), json=self._flow(sms, crqid), extensions=self._extensions
        )
        # Its trace ends here: what ours is called is nothing to MSG91.
        with call("msg91", f"POST {PATH}", self._about) as span:
            response = await self._answer(request)
            span.note("http.response.status_code", response.status_code)
            outcome = classify(response.status_code, response.content, retry_after=response.headers.get("retry-after"))
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

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(f"the SMS service cannot be reached: {error or type(error).__name__}") from error
        except httpx.PoolTimeout as error:
            raise Transient("every connection to the SMS service was busy: see connections and rate") from error
        except httpx.RequestError as error:
            # Once a connection stands, bytes may have arrived, whichever side of the dialogue failed.
            raise Ambiguous(
                f"the message was sent, and the SMS service's answer was lost: {type(error).__name__}"
            ) from error


@provider("msg91", settings=Msg91Settings, through=notify.sms)
@asynccontextmanager
async def connect(settings: Msg91Settings) -> AsyncIterator[Msg91]:
    """A `Msg91` over a pool of HTTP connections.

    Raises:
        Misconfigured: there is no auth key.
    """
    auth_key = settings.auth_key.get_secret_value()
    if not auth_key:
        raise Misconfigured("auth_key is not set: name it in TASKFLUX_MSG91__AUTH_KEY")
    http = httpx.AsyncClient(
        base_url=settings.base_url,
        headers={"authkey": auth_key, "accept": "application/json"},
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
        limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=_KEEP_ALIVE),
    )
    async with http:
        yield Msg91(settings, http)
