"""Promise, produce, confirm: the one rule of publishing, for ingest and relay alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from taskflux.store.group_commit import GroupCommit
from taskflux.store.publishing import Confirmation, DeadDue, Due, Publishing
from taskflux.stream.envelope import DeadTask, Envelope, OutRecord, encode, encode_dead
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.stream.topics import dead_letter_topic, task_topic
from taskflux.telemetry import message_spans, metrics

CONFIRM_BATCH: Final = 1000


class Publisher:
    """Sends records for tasks that the caller has promised to publish, and confirms them.

    What Kafka does not take in time stays due: its grace runs out and a relay takes it.
    """

    def __init__(self, producer: Producer, publishing: Publishing, topic_prefix: str) -> None:
        self._producer = producer
        self._publishing = publishing
        self._prefix = topic_prefix
        metrics.PUBLISHED.zeros()
        metrics.PRODUCE_SECONDS.zeros()
        self._confirm: GroupCommit[Confirmation, None] = GroupCommit(
            publishing.confirm,
            max_items=CONFIRM_BATCH,
            # Unconfirmed, a record is published again after its grace; its version makes the second one harmless.
            patience=publishing.grace,
            statement="confirm",
        )

    @property
    def healthy(self) -> bool:
        """Whether publishing is worth a try."""
        return self._producer.healthy

    async def publish(self, tasks: Sequence[Due], *, probe: bool = False) -> int:
        """Send and confirm; how many Kafka took.

        Raises:
            StoreError: Kafka has the records, but PostgreSQL does not know it.
        """
        addressed = [(task_topic(self._prefix, task.type), task) for task in tasks]
        spans = message_spans.Sends(addressed)
        records = [
            OutRecord(
                topic,
                *encode(Envelope(task.id, task.type, task.version, spans.traceparent(task), probe), task.key),
            )
            for topic, task in addressed
        ]
        with spans:
            outcomes = await self._producer.publish(records)
            spans.end(tasks, outcomes)
        confirmed = [
            Confirmation(task.id, task.version, outcome.log_id, outcome.partition, outcome.offset)
            for task, outcome in zip(tasks, outcomes, strict=True)
            if isinstance(outcome, Published)
        ]
        _count(outcomes)
        await asyncio.gather(*[self._confirm.submit(each, each.id) for each in confirmed])
        return len(confirmed)

    async def publish_dead(self, letters: Sequence[DeadDue]) -> int:
        """Send dead letters to their topic and confirm them; how many Kafka took."""
        topic = dead_letter_topic(self._prefix)
        spans = message_spans.Sends([(topic, each) for each in letters])
        records = [
            OutRecord(
                topic,
                *encode_dead(
                    DeadTask(each.id, each.type, each.version, each.error_class, each.attempts, spans.traceparent(each))
                ),
            )
            for each in letters
        ]
        with spans:
            outcomes = await self._producer.publish(records)
            spans.end(letters, outcomes)
        _count(outcomes)
        done = [letter for letter, outcome in zip(letters, outcomes, strict=True) if isinstance(outcome, Published)]
        if done:
            await self._publishing.confirm_dead(done)
        return len(done)


def _count(outcomes: Sequence[Published | NotPublished]) -> None:
    failed = [outcome for outcome in outcomes if isinstance(outcome, NotPublished)]
    metrics.PUBLISHED.labels("published").inc(len(outcomes) - len(failed))
    for outcome in failed:
        metrics.PUBLISHED.labels(outcome.error).inc()
