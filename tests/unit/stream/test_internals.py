"""What a consumer takes of the answers that several brokers give at the same time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.protocol.fetch import FetchRequest

from taskflux.stream.internals import _Inspector
from tests.unit.stream.test_record_batches import CODECS, LIMIT, batch


@pytest.mark.parametrize(("apart", "most"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("codec", CODECS)
async def test_answers_of_all_nodes_share_one_limit_unless_each_partition_has_its_own(
    monkeypatch: pytest.MonkeyPatch, codec: int, apart: bool, most: int
) -> None:
    records = batch(codec, bytes(LIMIT - 100))

    async def answered(client: AIOKafkaClient, node_id: int, request: Any) -> Any:
        return SimpleNamespace(topics=[("tasks.email", [(node_id, 0, 1, 1, [], records)])])

    monkeypatch.setattr(AIOKafkaClient, "send", answered)
    client = _Inspector(lambda: [TopicPartition("tasks.email", node) for node in range(4)], LIMIT, apart, {})
    asked = FetchRequest(1, 1, 1, 0, [])
    answers = await asyncio.gather(*(client.send(node, asked) for node in range(4)))
    kept = [bool(partition[-1]) for answer in answers for _, (partition,) in answer.topics]
    assert sum(kept) == most
