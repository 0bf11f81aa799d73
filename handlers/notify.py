"""notify: delivers mails and short messages at once, for whoever asks over HTTP. It alone needs their credentials."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from taskflux.http.notifications import Notify, create_notify_app
from taskflux.http.openapi.document import documentation_routes, notify_json
from taskflux.http.probes import probe_routes
from taskflux.http.server import CannotListen, serve
from taskflux.providers import msg91, smtp
from taskflux.providers.email import Email
from taskflux.providers.provider import Provider
from taskflux.providers.sms import Sms
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.notifications import Notifications
from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry import metrics
from taskflux.worker.circuits import Limiter
from taskflux.worker.notifier import Notifier, Order, Result
from taskflux.worker.process import Process, service
from taskflux.worker.settings import WrongSettings, load_provider


@service("notify", own_http=True, needs=("postgres",))
async def notify(process: Process) -> None:
    """Serve until the process drains; what has been begun by then may end.

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
        if isinstance(mails, Misconfigured) and isinstance(texts, Misconfigured):
            raise WrongSettings(f"there is nobody to deliver through.\nsmtp: {mails.reason}\nmsg91: {texts.reason}")
        store = Notifications(database)
        mail, text = _sender(mails, _send_mail), _sender(texts, _send_sms)
        limit = settings.http.max_body_bytes
        app = create_notify_app(
            {
                "email": Notify(Email, Notifier("email", mail, _limiter(mails), store), limit),
                "sms": Notify(Sms, Notifier("sms", text, _limiter(texts), store), limit),
            },
            {"email": _checker(mails)},
            [
                *probe_routes(lambda: process.health.started),
                *documentation_routes(notify_json),
            ],
        )
        try:
            await serve(
                app,
                settings.http.host,
                settings.http.port,
                draining=process.draining,
                grace=settings.worker.drain_seconds,
                linger=settings.http.linger_seconds,
                hurry=process.hurry,
                listening=lambda port: process.started(),
            )
        except CannotListen as error:
            raise WrongSettings(str(error)) from error


class _Opened:
    """A provider's client and its share of the rate limit."""

    def __init__(self, client: Any, limiter: Limiter | None) -> None:
        self.client = client
        self.limiter = limiter


async def _open(provider: Provider[Any], accelerator: Accelerator, stack: AsyncExitStack) -> _Opened | Misconfigured:
    """A provider that is not set is one that answers `Misconfigured`: the other still serves."""
    section = load_provider(provider.name, provider.settings)
    try:
        client = await stack.enter_async_context(provider.connect(section))
    except Misconfigured as error:
        return error
    metrics.show_provider(provider.name)
    metrics.RATE_WAIT.zeros(provider.name)
    rate = getattr(section, "rate", None)
    return _Opened(client, None if rate is None else Limiter(provider.name, rate, accelerator))


def _limiter(opened: _Opened | Misconfigured) -> Limiter | None:
    return opened.limiter if isinstance(opened, _Opened) else None


def _sender(
    opened: _Opened | Misconfigured, send: Callable[[Any, Order[Any]], Awaitable[Result]]
) -> Callable[[Order[Any]], Awaitable[Result]]:
    async def sending(order: Order[Any]) -> Result:
        if isinstance(opened, Misconfigured):
            raise Misconfigured(opened.reason)
        return await send(opened.client, order)

    return sending


def _checker(opened: _Opened | Misconfigured) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        if isinstance(opened, Misconfigured):
            raise Misconfigured(opened.reason)
        await opened.client.check()

    return check


async def _send_mail(mailer: smtp.Mailer, order: Order[Email]) -> Result:
    return await mailer.send(order.payload, message_id=order.name, date=order.date, progress=order.progress)


async def _send_sms(client: msg91.Msg91, order: Order[Sms]) -> Result:
    return {"requestId": await client.send(order.payload, crqid=order.name), "status": "accepted"}
