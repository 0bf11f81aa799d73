from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from aiokafka.errors import KafkaError, NotLeaderForPartitionError, RequestTimedOutError

from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.cluster import LEADERLESS, Clients, Cluster
from taskflux.stream.positions import Positions
from taskflux.stream.settings import KafkaSettings


class Refusing:
    """A request that Kafka refuses so many times."""

    def __init__(self, error: type[KafkaError], times: int) -> None:
        self.error = error
        self.times = times
        self.put = 0

    async def __call__(self, clients: Clients) -> str:
        self.put += 1
        if self.put <= self.times:
            raise self.error
        return "an answer"


@pytest.mark.parametrize(("error", "times"), [(NotLeaderForPartitionError, 4), (RequestTimedOutError, 1)])
async def test_a_request_is_retried_where_that_may_help(
    settings: KafkaSettings, error: type[KafkaError], times: int
) -> None:
    cluster = Cluster(settings)
    assert await cluster.ask(Refusing(error, times)) == "an answer"
    await cluster.close()


@pytest.mark.parametrize(
    ("error", "tries"), [(NotLeaderForPartitionError, len(LEADERLESS) + 1), (RequestTimedOutError, 2)]
)
async def test_a_lasting_error_is_raised_after_some_tries(
    settings: KafkaSettings, error: type[KafkaError], tries: int
) -> None:
    question, cluster = Refusing(error, 100), Cluster(settings)
    with pytest.raises(KafkaUnavailable, match=error.__name__.removesuffix("Error")):
        await cluster.ask(question)
    assert question.put == tries
    await cluster.close()


async def test_a_request_whose_connections_another_failure_closed_is_retried(
    settings: KafkaSettings,
) -> None:
    cluster = Cluster(settings)
    connected, failed = asyncio.Event(), asyncio.Event()
    put = 0

    async def reading(clients: Clients) -> str:
        nonlocal put
        put += 1
        reader = await clients.reader()
        connected.set()
        await failed.wait()
        if put == 1:
            await reader.getmany(timeout_ms=0)
        return "an answer"

    answer = asyncio.create_task(cluster.ask(reading))
    await connected.wait()
    with pytest.raises(KafkaUnavailable):
        await cluster.ask(Refusing(RequestTimedOutError, 100))
    failed.set()
    assert (await answer, put) == ("an answer", 2)
    await cluster.close()


async def test_a_request_that_is_cancelled_while_it_connects_leaves_no_connection(settings: KafkaSettings) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        for tenth in range(0, 200, 4):
            positions = Positions(settings)
            asking = asyncio.create_task(positions.lag("group", f"{settings.topic_prefix}none"))
            await asyncio.wait([asking], timeout=tenth / 10_000)
            asking.cancel()
            await asyncio.wait([asking])
            await positions.close()
        await asyncio.sleep(0)
        gc.collect()
    assert [str(each.message) for each in found] == []
