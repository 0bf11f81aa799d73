from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.local.servers import ValkeyServer
from taskflux.store.accelerator import Accelerator
from taskflux.store.settings import RedisSettings
from tests.integration.system.stack import Stack


async def test_a_succeeded_task_is_answered_from_redis_and_any_other_from_postgres(
    stack: Stack, valkey: ValkeyServer
) -> None:
    accelerator = Accelerator(RedisSettings.model_validate({"url": valkey.url}))
    await accelerator.open()
    done = await stack.submit("scripted")
    shown = await stack.until(done, "succeeded")
    held = await stack.submit("held", ["ambiguous"])
    await stack.until(held, "uncertain")
    assert await accelerator.cached("default", held) is None
    kept = await accelerator.cached("default", done)
    assert kept is not None
    assert (await stack.client.get(f"/tasks/{done}")).content == kept
    assert shown["taskId"] == str(done)
    await accelerator.close()


async def test_without_redis_nothing_is_cached_and_nothing_fails() -> None:
    accelerator = Accelerator(RedisSettings.model_validate({"url": "redis://127.0.0.1:1/0"}))
    await accelerator.open()
    task: UUID = uuid7()
    await accelerator.cache("default", task, b"{}")
    assert await accelerator.cached("default", task) is None
    await accelerator.close()
