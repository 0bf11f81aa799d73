"""Promise, produce, confirm: the one rule of publishing, for ingest and relay alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taskflux.store.publishing import Confirmation, DeadDue, Due, Publishing
from taskflux.stream.envelope import DeadTask, Envelope, OutRecord, encode, encode_dead
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.stream.topics import dead_letter_topic, task_topic
from taskflux.telemetry import metrics, tracing


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
        spans = _begin(addressed) if tracing.on else {}
        traces = [spans.get(place, task).traceparent for place, task in enumerate(tasks)]
        records = [
            OutRecord(topic, *encode(Envelope(task.id, task.type, task.version, trace, probe), task.key))
            for (topic, task), trace in zip(addressed, traces, strict=True)
        ]
        outcomes = await self._send(records, spans)
        confirmed = [
            Confirmation(task.id, task.version, outcome.log_id, outcome.partition, outcome.offset)
            for task, outcome in zip(tasks, outcomes, strict=True)
            if isinstance(outcome, Published)
        ]
        await self._publishing.confirm(confirmed)
        return len(confirmed)

    async def publish_dead(self, letters: Sequence[DeadDue]) -> int:
        """Send dead letters to their topic and confirm them; how many Kafka took."""
        topic = dead_letter_topic(self._prefix)
        spans = _begin([(topic, each) for each in letters]) if tracing.on else {}
        dead = [
            DeadTask(
                each.id, each.type, each.version, each.error_class, each.attempts, spans.get(place, each).traceparent
            )
            for place, each in enumerate(letters)
        ]
        outcomes = await self._send([OutRecord(topic, *encode_dead(each)) for each in dead], spans)
        done = [letter for letter, outcome in zip(letters, outcomes, strict=True) if isinstance(outcome, Published)]
        if done:
            await self._publishing.confirm_dead(done)
        return len(done)

    async def _send(
        self, records: Sequence[OutRecord], spans: Mapping[int, tracing.Span]
    ) -> Sequence[Published | NotPublished]:
        """Hand records to Kafka; `spans` are those of the recorded ones, by their places."""
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


def _begin(messages: Iterable[tuple[str, Due | DeadDue]]) -> dict[int, tracing.Span]:
    """The spans of the recorded ones among messages that are sent together, by their places; each with its topic."""
    return {
        place: tracing.message(tracing.messaging("send", topic, "PRODUCER"), each.id, each.traceparent)
        for place, (topic, each) in enumerate(messages)
        if tracing.sampled(each.traceparent)
    }
