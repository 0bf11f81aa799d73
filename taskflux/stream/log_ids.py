"""Topic ids, remembered for a moment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from uuid import UUID

from aiokafka.client import AIOKafkaClient

from taskflux.stream.metadata import topic_metadata

MAX_AGE = 1.0
"""Seconds. An id that is older than the log it is noted for is harmless: the auditor sends the task again."""


class LogIds:
    """The ids of the topics that a producer sends to, asked over its own connection.

    Take an id before sending, never after: then a record that lands in a recreated topic is never noted as part of
    a log that came later still.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[UUID, float]] = {}

    async def get(self, client: AIOKafkaClient, topics: Iterable[str]) -> dict[str, UUID]:
        """The ids of those of `topics` that exist. Raises KafkaError, KafkaUnavailable."""
        wanted = set(topics)
        oldest = time.monotonic() - MAX_AGE
        stale = {topic for topic in wanted if self._known.get(topic, (None, 0.0))[1] < oldest}
        if stale:
            await self._refresh(client, stale)
        return {topic: self._known[topic][0] for topic in wanted if topic in self._known}

    def forget(self) -> None:
        """Ask again next time: something has failed."""
        self._known.clear()

    async def _refresh(self, client: AIOKafkaClient, topics: set[str]) -> None:
        found = await topic_metadata(client, topics)
        now = time.monotonic()
        for topic in topics:
            before = self._known.pop(topic, None)
            if topic in found:
                self._known[topic] = (found[topic].log_id, now)
                if before is not None and before[0] != found[topic].log_id:
                    client.force_metadata_update()  # the new topic may have other partitions and leaders
