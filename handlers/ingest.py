"""ingest: takes tasks over HTTP, makes them durable, and publishes what is due at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from starlette.routing import Route

from taskflux.http.app import create_app
from taskflux.http.receipts import Msg91Webhook, ReportHooks
from taskflux.http.registry import TypeRegistry
from taskflux.http.requests import of_request
from taskflux.http.server import CannotListen, serve
from taskflux.http.services import DeadLetterDesk, Hooks, Limits, Services, TaskDesk
from taskflux.providers.msg91 import Msg91Settings
from taskflux.store.accelerator import Accelerator
from taskflux.store.circuits import Circuits
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetterReplays, DeadLetterShelf
from taskflux.store.publishing import Publishing
from taskflux.store.task_types import TaskTypes
from taskflux.store.tasks import Decisions, Listing, Receipts, Tasks
from taskflux.stream.producer import Producer
from taskflux.telemetry import labels, metrics, store_metrics, zeros
from taskflux.telemetry.exposition import chosen, shown
from taskflux.worker.circuits import CircuitWatch
from taskflux.worker.intake import Intake
from taskflux.worker.process import Process, service
from taskflux.worker.publisher import Publisher
from taskflux.worker.settings import WrongSettings, load_provider

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that requests in flight may take after the order to drain."""


@service("ingest", own_http=True)
async def ingest(process: Process) -> None:
    """Serve the API until the process drains; what it promised to publish by then is published."""
    settings = process.settings
    zeros.of_ingest()
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=4, name=process.label, watch=store_metrics.DATABASE)
        await database.open()
        stack.push_async_callback(database.close)
        producer = Producer(settings.kafka, metrics.PRODUCE_SECONDS.labels().observe)
        await producer.start()
        stack.push_async_callback(producer.stop)
        watch = CircuitWatch(Circuits(database))
        tasks = Tasks(database)
        accelerator = store_metrics.accelerator(settings.redis)
        await accelerator.open()
        stack.push_async_callback(accelerator.close)
        webhook = _msg91_webhook(database, accelerator)
        registry = TypeRegistry(TaskTypes(database), on_types=partial(_known, reported=webhook is not None))
        publisher = Publisher(producer, Publishing(database, settings.relay.grace), settings.kafka.topic_prefix)
        intake = Intake(tasks, publisher, watch, lambda name: provider_of(registry, name), settings.relay.grace)
        stack.push_async_callback(intake.drain)
        await stack.enter_async_context(process.background(registry.run()))
        await stack.enter_async_context(process.background(watch.keep_fresh()))
        limit = settings.http.max_body_bytes
        exposed = partial(exposition, process.name, settings.http.peers)
        services = Services(
            intake=intake,
            reader=tasks,
            cache=accelerator,
            registry=registry,
            metrics=exposed,
            started=lambda: process.health.started,
            limits=Limits(max_body_bytes=limit, max_item_bytes=limit),
            hooks=Counted(),
            traceparent=of_request,
            tasks=TaskDesk(Listing(database), Decisions(database)),
            status=await _status(process, stack, exposed) if settings.http.peers else (),
            msg91_webhook=webhook,
            dead_letters=DeadLetterDesk(
                DeadLetterShelf(database),
                DeadLetterReplays(database),
                settings.kafka.topic_prefix,
                lambda error_class, how: metrics.REPLAYED.labels(labels.error_class(error_class), how).inc(),
            ),
        )
        try:
            await serve(
                create_app(services),
                settings.http.host,
                settings.http.port,
                draining=process.draining,
                grace=GRACE,
                linger=settings.http.linger_seconds,
                hurry=process.hurry,
                listening=lambda port: process.started(),
            )
        except CannotListen as error:
            raise WrongSettings(str(error)) from error


def provider_of(registry: TypeRegistry, name: str) -> str | None:
    """The provider whose circuit governs a type, if it has one."""
    registered = registry.get(name)
    return registered.type.provider if registered else None


def _known(task_types: Collection[str], reported: bool) -> None:
    """These types are registered; `reported`: a webhook takes reports of what became of their tasks."""
    zeros.of_submitted(task_types)
    if reported:
        zeros.of_first_reports(task_types)


def _msg91_webhook(database: Database, accelerator: Accelerator) -> Msg91Webhook | None:
    """Takes delivery reports where a secret is set."""
    secret = load_provider("msg91", Msg91Settings).webhook_secret
    if secret is None:
        return None
    zeros.of_reports()
    return Msg91Webhook(secret.get_secret_value(), Receipts(database), accelerator, CountedReports())


async def exposition(name: str, peers: Mapping[str, str], accept: str = "") -> tuple[bytes, str]:
    """This process's metrics, and where it has peers to speak for, theirs with them; and their content type."""
    body, content_type = await asyncio.to_thread(shown, accept)
    if peers:
        from taskflux.local.peers import fetch_and_merge  # lazily: only `taskflux dev` names peers

        body = (await fetch_and_merge(name, body.decode(), peers, chosen(accept))).encode()
    return body, content_type


async def _status(
    process: Process, stack: AsyncExitStack, exposed: Callable[[], Awaitable[tuple[bytes, str]]]
) -> Sequence[Route]:
    """The page of a TaskFlux whose metrics are all here: under `taskflux dev`, which has its own reader of PromQL."""
    try:
        from taskflux.http.status.overview import Overview
        from taskflux.http.status.routes import status_routes
    except ModuleNotFoundError as missing:
        extra = {"needs": missing.name}
        log.warning("no page at /status: pip install 'taskflux[local]' brings what it needs", extra=extra)
        return ()

    async def text() -> str:
        return (await exposed())[0].decode()

    overview = Overview(text)
    await stack.enter_async_context(process.background(overview.keep_looking()))
    return status_routes(overview)


class Counted(Hooks):
    """Submissions as metrics."""

    def on_accepted(self, task_type: str, repeated: bool) -> None:
        metrics.SUBMITTED.labels(task_type, "repeated" if repeated else "accepted").inc()

    def on_refused(self, slug: str) -> None:
        metrics.SUBMITTED.labels(labels.UNKNOWN, slug).inc()


class CountedReports(ReportHooks):
    """Delivery reports as metrics."""

    def on_report(self, status: str) -> None:
        metrics.REPORTS.labels(status).inc()

    def on_first(self, task_type: str, before: str) -> None:
        metrics.FIRST_REPORTS.labels(task_type, before).inc()
