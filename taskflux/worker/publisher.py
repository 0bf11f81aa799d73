"""Promise, produce, confirm: the one rule of publishing, for ingest and relay alike."""

from __future__ import annotations

from collections.abc import Sequence

from taskflux.store.publishing import Confirmation, PendingDeadLetter, PendingPublish, Publishing
from taskflux.stream.envelope import DeadTask, Envelope, OutRecord, encode
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.stream.topics import dead_letter_topic, task_topic
from taskflux.telemetry import metrics, tracing


class Publisher:
    """Sends records for tasks that the caller has promised to publish, and confirms them.

    A record that Kafka does not accept in time stays in the outbox: after its grace, a relay publishes it.
    """

    def __init__(self, producer: Producer, publishing: Publishing, topic_prefix: str) -> None:
        self._producer = producer
        self._publishing = publishing
        self._prefix = topic_prefix
        metrics.PUBLISHED.zeros()
        metrics.PRODUCE_SECONDS.zeros()

    @property
    def healthy(self) -> bool:
        """Whether publishing is worth a try."""
        return self._producer.healthy

    async def publish(self, tasks: Sequence[PendingPublish], *, probe: bool = False) -> int:
        """Send and confirm; the number that Kafka accepted.

        Raises:
            StoreError: Kafka has the records, but PostgreSQL does not know it.
        """
        outcomes = await self._send([(task_topic(self._prefix, task.type), task) for task in tasks], probe)
        confirmed = [
            Confirmation(task.id, task.version, outcome.log_id, outcome.partition, outcome.offset)
            for task, outcome in zip(tasks, outcomes, strict=True)
            if isinstance(outcome, Published)
        ]
        await self._publishing.confirm(confirmed)
        return len(confirmed)

    async def publish_dead(self, dead: Sequence[PendingDeadLetter]) -> int:
        """Send dead letters to their topic and confirm them; the number that Kafka accepted."""
        topic = dead_letter_topic(self._prefix)
        outcomes = await self._send([(topic, letter) for letter in dead])
        done = [letter for letter, outcome in zip(dead, outcomes, strict=True) if isinstance(outcome, Published)]
        if done:
            await self._publishing.confirm_dead(done)
        return len(done)

    async def _send(
        self, addressed: Sequence[tuple[str, PendingPublish | PendingDeadLetter]], probe: bool = False
    ) -> Sequence[Published | NotPublished]:
        """Send the records of these to Kafka, each to its topic, and return their outcomes."""
        spans: dict[int, tracing.Span] = {}  # those of the recorded ones, by their places
        records = []
        for place, (topic, due) in enumerate(addressed):
            trace = due.traceparent
            if tracing.on and tracing.sampled(trace):
                spans[place] = tracing.message(tracing.messaging("send", topic, "PRODUCER"), due.id, trace)
                trace = spans[place].traceparent
            if isinstance(due, PendingPublish):
                encoded = encode(Envelope(due.id, due.type, due.version, trace, probe), due.key)
            else:
                encoded = encode(DeadTask(due.id, due.type, due.version, due.error_class, due.attempts, trace))
            records.append(OutRecord(topic, *encoded))
        try:
            outcomes = await self._producer.publish(records)
        except BaseException as error:
            for span in spans.values():
                span.failed(tracing.error_class(error))
                span.end()
            raise
        for place, span in spans.items():
            match outcomes[place]:
                case Published(partition=partition, offset=offset):
                    span.note("messaging.destination.partition.id", str(partition))
                    span.note("messaging.kafka.offset", offset)
                case NotPublished(error=said):
                    span.failed(said)
            span.end()
        failed = [outcome for outcome in outcomes if isinstance(outcome, NotPublished)]
        metrics.PUBLISHED.labels("published").inc(len(outcomes) - len(failed))
        for each in failed:
            metrics.PUBLISHED.labels(each.error).inc()
        return outcomes
