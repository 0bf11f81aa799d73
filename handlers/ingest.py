"""ingest: accepts tasks over HTTP, makes them durable, and publishes those that are due now."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from taskflux.http.access import access_for
from taskflux.http.app import Exposition, create_app, own_metrics
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.problems import COMMON
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.server import serve_process
from taskflux.http.submissions import Limits, Submissions
from taskflux.http.task_types import REFRESH_EVERY, TypeRegistry
from taskflux.http.tasks import TaskRoutes
from taskflux.providers.msg91 import Msg91Settings
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.keys import ApiKeys
from taskflux.store.notifications import Receipts
from taskflux.store.publishing import Circuits, Publishing
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.stream.producer import Producer
from taskflux.telemetry import metrics
from taskflux.worker.circuits import CircuitWatch
from taskflux.worker.intake import Intake
from taskflux.worker.process import Process, service
from taskflux.worker.publisher import Publisher
from taskflux.worker.settings import HttpSettings, load_provider

GRACE = 10.0
"""Seconds that requests in flight may take after the order to drain."""


@service("ingest", own_http=True)
async def ingest(process: Process) -> None:
    """Serve the API until the process drains; what it promised to publish by then is published."""
    await serve_api(process)


async def serve_api(
    process: Process,
    exposition: Exposition = own_metrics,
    inbox: str | None = None,
    *,
    refresh_every: float = REFRESH_EVERY,
) -> None:
    """What `ingest` does, with `exposition` at `/metrics`, and a link to the local `inbox` at `/`.

    The task types are read each `refresh_every` seconds.
    """
    settings = process.settings
    metrics.SUBMITTED.zeros(metrics.UNKNOWN, [kind.slug for kind in COMMON])
    metrics.REPLAYED.zeros("Permanent", ("single", "mended"))
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=4, name=process.label)
        await database.open()
        stack.push_async_callback(database.close)
        producer = Producer(settings.kafka)
        await producer.start()
        stack.push_async_callback(producer.stop)
        watch = CircuitWatch(Circuits(database))
        tasks = Tasks(database)
        accelerator = Accelerator(settings.redis)
        await accelerator.open()
        stack.push_async_callback(accelerator.close)
        cache = accelerator if settings.redis.url is not None else None
        webhook = _msg91_webhook(database, cache)
        counters = (metrics.SUBMITTED, metrics.FIRST_REPORTS) if webhook else (metrics.SUBMITTED,)
        registry = TypeRegistry(TaskTypes(database), counters=counters)
        publisher = Publisher(producer, Publishing(database, settings.relay.grace), settings.kafka.topic_prefix)
        intake = Intake(tasks, publisher, watch, settings.relay.grace)
        stack.push_async_callback(intake.drain)
        await stack.enter_async_context(process.background(registry.run(refresh_every)))
        await stack.enter_async_context(process.background(watch.keep_fresh()))
        access = access_for(settings.auth, ApiKeys(database))
        await stack.enter_async_context(process.background(access.keep_fresh()))
        submissions = Submissions(intake, registry, _limits(settings.http))
        prefix = settings.kafka.topic_prefix
        app = create_app(
            submissions,
            TaskRoutes(tasks, cache, partial(_open_circuit, registry, watch)),
            DeadLetterRoutes(DeadLetters(database), submissions, prefix),
            webhook,
            started=lambda: process.health.started,
            exposition=exposition if settings.http.management_port is None else None,
            inbox=inbox,
            access=access,
        )
        await serve_process(app, process, GRACE)


def _open_circuit(registry: TypeRegistry, watch: CircuitWatch, task_type: str) -> str | None:
    """The provider of this type, if its circuit is open."""
    registered = registry.known(task_type)
    provider = registered.type.provider if registered is not None else None
    return provider if watch.open(provider) else None


def _limits(http: HttpSettings) -> Limits:
    return Limits(http.max_body_bytes, http.max_body_bytes, http.bytes_in_flight)


def _msg91_webhook(database: Database, cache: Accelerator | None) -> Msg91Webhook | None:
    """Accepts delivery reports if a secret is set."""
    settings = load_provider("msg91", Msg91Settings)
    if settings.webhook_secret is None:
        return None

    def secret() -> str:
        """As it is now: it may have been renewed."""
        return settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""

    return Msg91Webhook(secret, Receipts(database), cache)
