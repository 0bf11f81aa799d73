"""What the notification service does when it has to wait, or cannot store an outcome."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from taskflux.http.requests import Client
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.errors import StoreUnavailable
from taskflux.store.notifications import Begun, Notifications, NotificationState, Repeated
from taskflux.store.settings import RedisSettings
from taskflux.tasks.errors import Ambiguous, Transient
from taskflux.worker.circuits import Limiter
from taskflux.worker.notifier import Delivered, Notification, Notifier, Order, Result


class Channel:
    """Delivers everything; before it does, it may disconnect the store."""

    def __init__(self, database: Database, *, loses_store: bool = False) -> None:
        self.orders: list[Order[str]] = []
        self._database = database if loses_store else None

    async def send(self, order: Order[str]) -> Result:
        self.orders.append(order)
        if self._database is not None:
            await self._database.close()
        return {"sent": order.payload}


async def test_requests_beyond_the_rate_limit_are_to_be_sent_again_later(database: Database) -> None:
    channel, store = Channel(database), Notifications(database)
    limiter = Limiter("slow", 0.01, Accelerator(RedisSettings()))
    notifier = Notifier("sms", channel.send, limiter, store, longest_turn=0.05)
    assert await notifier.deliver(Notification("a", "1")) == Delivered({"sent": "a"})
    with pytest.raises(Transient) as refusal:
        await notifier.deliver(Notification("b", "2"))
    assert refusal.value.retry_after == 0.05
    assert [order.payload for order in channel.orders] == ["a"]
    assert isinstance(await store.begin("sms:2", 1), Begun)  # it was not begun


async def test_a_caller_that_disconnects_before_its_turn_starts_no_delivery(database: Database) -> None:
    channel, store, client = Channel(database), Notifications(database), Client()
    limiter = Limiter("slow", 0.01, Accelerator(RedisSettings()))
    notifier = Notifier("sms", channel.send, limiter, store)
    await notifier.deliver(Notification("a", "1"))
    waiting = asyncio.create_task(notifier.deliver(Notification("b", "2"), client.until_late()))
    await asyncio.sleep(0)
    client.leave()
    with pytest.raises(ClientDisconnect):
        await waiting
    assert [order.payload for order in channel.orders] == ["a"]
    assert isinstance(await store.begin("sms:2", 1), Begun)


async def test_an_outcome_that_cannot_be_kept_is_answered_all_the_same_and_a_repeat_finds_it_unknown(
    database: Database,
) -> None:
    channel = Channel(database, loses_store=True)
    notifier = Notifier("sms", channel.send, None, Notifications(database), note_patience=0.0)
    assert (await notifier.deliver(Notification("a", "1"))).result == {"sent": "a"}
    with pytest.raises(StoreUnavailable):
        await notifier.deliver(Notification("a", "1"))
    await database.open()
    with pytest.raises(Ambiguous):
        await notifier.deliver(Notification("a", "1"))
    assert len(channel.orders) == 1


async def test_an_attempt_that_was_overtaken_does_not_overwrite_the_one_after_it(database: Database) -> None:
    store = Notifications(database)
    first = await store.begin("sms:1", 1)
    second = await store.begin("sms:1", 2)
    assert isinstance(first, Begun)
    assert isinstance(second, Begun)
    assert not await store.end("sms:1", first.version, NotificationState.FAILED)
    assert await store.end("sms:1", second.version, NotificationState.SENT, outcome={"requestId": "r"})
    assert await store.begin("sms:1", 3) == Repeated({"requestId": "r"})
