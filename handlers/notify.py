"""notify: delivers mails and short messages at once, as requested over HTTP. It alone needs their credentials."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from taskflux.http.access import access_for
from taskflux.http.app import own_metrics
from taskflux.http.notifications import Notify, create_notify_app
from taskflux.http.server import serve_process
from taskflux.providers import msg91, smtp
from taskflux.providers.email import Email
from taskflux.providers.provider import Provider
from taskflux.providers.sms import Sms
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.keys import ApiKeys
from taskflux.store.notifications import Notifications
from taskflux.tasks.access import Principal, Scope
from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry import metrics
from taskflux.worker.circuits import Limiter
from taskflux.worker.notifier import Notifier, Order, Result
from taskflux.worker.process import Process, service
from taskflux.worker.settings import WrongSettings, load_provider

_HANDLERS: Final = Principal("handlers", scopes=frozenset({Scope.SUBMIT}))
"""Who sends TASKFLUX_NOTIFY__KEY."""


@service("notify", own_http=True, needs=("postgres",))
async def notify(process: Process) -> None:
    """Serve until the process drains; what has been started by then may finish.

    Raises:
        WrongSettings: neither of the two providers is set.
    """
    settings = process.settings
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=4, name=process.label)
        await database.open()
        stack.push_async_callback(database.close)
        accelerator = Accelerator(settings.redis)
        await accelerator.open()
        stack.push_async_callback(accelerator.close)
        mails = await _open(smtp.connect, accelerator, stack)
        texts = await _open(msg91.connect, accelerator, stack)
        if mails.missing and texts.missing:
            why = f"smtp: {mails.missing.reason}\nmsg91: {texts.missing.reason}"
            raise WrongSettings(f"neither provider is configured.\n{why}")
        store, limit = Notifications(database), settings.http.max_body_bytes

        callers = {} if settings.notify.key is None else {settings.notify.key.get_secret_value(): _HANDLERS}
        access = access_for(settings.auth, ApiKeys(database), callers)
        await stack.enter_async_context(process.background(access.keep_fresh()))

        async def send_mail(order: Order[Email]) -> Result:
            mailer: smtp.Mailer = mails.client()
            return await mailer.send(order.payload, message_id=order.name, date=order.date, progress=order.progress)

        async def send_text(order: Order[Sms]) -> Result:
            client: msg91.Msg91 = texts.client()
            return {"requestId": await client.send(order.payload, crqid=order.name), "status": "accepted"}

        async def check_mail() -> None:
            await mails.client().check()

        app = create_notify_app(
            Notify(Email, Notifier("email", send_mail, mails.limiter, store), limit),
            Notify(Sms, Notifier("sms", send_text, texts.limiter, store), limit),
            check_mail,
            started=lambda: process.health.started,
            bytes_in_flight=settings.http.bytes_in_flight,
            exposition=own_metrics if settings.http.management_port is None else None,
            access=access,
        )
        await serve_process(app, process, settings.worker.drain_seconds)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A provider's client and its share of the rate limit; or why there is none."""

    opened: Any = None
    limiter: Limiter | None = None
    missing: Misconfigured | None = None

    def client(self) -> Any:
        """Raises Misconfigured if the provider is not set: the other one still serves."""
        if self.missing is not None:
            raise Misconfigured(self.missing.reason)
        return self.opened


async def _open(provider: Provider[Any], accelerator: Accelerator, stack: AsyncExitStack) -> _Opened:
    section = load_provider(provider.name, provider.settings)
    try:
        client = await stack.enter_async_context(provider.connect(section))
    except Misconfigured as error:
        return _Opened(missing=error)
    metrics.show_provider(provider.name)
    metrics.RATE_WAIT.zeros(provider.name)
    rate = getattr(section, "rate", None)
    return _Opened(client, None if rate is None else Limiter(provider.name, rate, accelerator))
