"""Kafka: topics and their configuration, replicas, offsets, what the broker permits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.cluster import Config, KafkaCheckup, TopicReplicas
from taskflux.stream.positions import Positions, TopicPositions
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import dead_letter_group, dead_letter_topic, task_group, task_topic
from taskflux.worker.settings import Settings

KAFKA = Subject("Kafka")

EMBEDDED_RETENTION: Final = KAFKA.ok("offset retention", "the embedded broker keeps records and offsets until it ends")
OFFSETS_RETENTION: Final = "offsets.retention.minutes"
REBALANCE_DELAY: Final = "group.initial.rebalance.delay.ms"
MOST_DELAY: Final = 500
NEVER: Final = 2**63 - 1
"""The default of flush.messages and flush.ms."""
CHECK: Final = "check TASKFLUX_KAFKA__BOOTSTRAP_SERVERS and SECURITY_PROTOCOL, and read the brokers' logs"
SINK_LOOKS_AGAIN: Final = 2.0
"""Seconds after which a dead-letter sink that works has committed something."""


async def examine(settings: Settings, types: Sequence[str] | None) -> list[Finding]:
    """All that can be asked; `types` are the registered ones, None where they are not known."""
    kafka = settings.kafka
    try:
        checkup = KafkaCheckup(kafka)
    except OSError as error:  # ssl.SSLError is one
        do = "check TASKFLUX_KAFKA__TLS_CA_FILE, _CERT_FILE and _KEY_FILE"
        return [KAFKA.problem("TLS files", f"they cannot be read: {error}", do)]
    positions = Positions(kafka)
    try:
        return await _examine(checkup, positions, kafka, types)
    except KafkaUnavailable as error:
        return [KAFKA.problem("reachable", str(error), f"{error.fix or CHECK}; tasks are accepted and wait meanwhile")]
    finally:
        await positions.close()
        await checkup.close()


async def _examine(
    checkup: KafkaCheckup, positions: Positions, kafka: KafkaSettings, types: Sequence[str] | None
) -> list[Finding]:
    prefix = kafka.topic_prefix
    brokers = await checkup.brokers()
    findings = [KAFKA.ok("reachable", f"{brokers} broker{'' if brokers == 1 else 's'}")]
    groups = {task_topic(prefix, name): task_group(prefix, name) for name in types or []}
    groups[dead_letter_topic(prefix)] = dead_letter_group(prefix)
    replicas = await checkup.replicas(groups)
    configs = await checkup.topic_configs(replicas)
    broker = await checkup.broker_config()
    findings += judge_topics(groups, replicas, kafka)
    findings += judge_replicas(replicas, configs, brokers)
    findings += judge_configs(configs, kafka)
    findings += judge_costs(configs, broker)
    findings.append(EMBEDDED_RETENTION if kafka.tansu else judge_retention(configs, broker))
    findings.append(judge_idempotence(await checkup.idempotence_refused(), kafka))
    seen = await positions.read_all({topic: group for topic, group in groups.items() if topic in replicas})
    findings += judge_offsets({topic: at for topic, at in seen.items() if topic != dead_letter_topic(prefix)})
    findings += await _sink(positions, prefix, seen.get(dead_letter_topic(prefix)))
    return findings


async def _sink(positions: Positions, prefix: str, before: TopicPositions | None) -> list[Finding]:
    if before is None:
        return []
    after: TopicPositions | None = before
    if before.lag:
        await asyncio.sleep(SINK_LOOKS_AGAIN)
        after = await positions.read(dead_letter_group(prefix), dead_letter_topic(prefix))
    return [judge_sink(before, after)]


def judge_topics(
    groups: Mapping[str, str], found: Mapping[str, TopicReplicas], kafka: KafkaSettings
) -> Iterator[Finding]:
    """Every type has its topic, with as many partitions as handlers shall scale to."""
    missing = [topic for topic in groups if topic not in found]
    few = {topic: at.partitions for topic, at in found.items() if at.partitions < kafka.partitions}
    if missing:
        yield KAFKA.problem("topics", f"missing: {', '.join(sorted(missing))}", "run `taskflux topics`")
    else:
        yield KAFKA.ok("topics", f"all {len(groups)} are there")
    if few:
        told = ", ".join(f"{topic} has {partitions}" for topic, partitions in sorted(few.items()))
        yield KAFKA.warning(
            "partitions",
            f"{told}; TASKFLUX_KAFKA__PARTITIONS is {kafka.partitions}: more replicas than partitions stand idle",
            "add partitions with Kafka's own tools (kafka-topics --alter), or lower the handlers' maximum of replicas",
        )
    else:
        yield KAFKA.ok("partitions", f"each topic has {kafka.partitions} or more")


def judge_replicas(
    found: Mapping[str, TopicReplicas], configs: Mapping[str, Config], brokers: int
) -> Iterator[Finding]:
    """A record that one broker can lose is found again by the auditor, but later."""
    single = sorted(topic for topic, at in found.items() if at.replicas < 2)
    if single and brokers > 1:
        yield KAFKA.warning(
            "replication",
            f"one replica only: {', '.join(single)}",
            "raise the replication factor to 3 (kafka-reassign-partitions): one broker's loss stops these topics",
        )
    else:
        yield KAFKA.ok("replication", "a single broker" if brokers == 1 else "every topic has two replicas or more")
    starved, behind = [], []
    for topic, at in sorted(found.items()):
        least = int(configs.get(topic, {}).get("min.insync.replicas", "1"))
        if at.in_sync < least:
            starved.append(topic)
        elif at.in_sync < at.replicas or (brokers > 1 and least > at.replicas - 1 and at.replicas > 1):
            behind.append(topic)
    if starved:
        yield KAFKA.problem(
            "in-sync replicas",
            f"fewer than min.insync.replicas: {', '.join(starved)} take no records",
            "bring the missing brokers back; tasks wait in PostgreSQL meanwhile",
        )
    elif behind:
        yield KAFKA.warning(
            "in-sync replicas",
            f"one more broker lost stops publishing to {', '.join(behind)}",
            "bring the missing replicas back, and keep min.insync.replicas below the replication factor",
        )
    else:
        yield KAFKA.ok("in-sync replicas", "enough, with one to spare where there are several")


def judge_configs(configs: Mapping[str, Config], kafka: KafkaSettings) -> Iterator[Finding]:
    """Compaction and record sizes."""
    compacted = sorted(topic for topic, config in configs.items() if "compact" in config.get("cleanup.policy", ""))
    if compacted:
        yield KAFKA.problem(
            "cleanup.policy",
            f"{', '.join(compacted)} is compacted: records that share a key would be lost before they are taken",
            "kafka-configs --alter --entity-type topics --entity-name … --add-config cleanup.policy=delete",
        )
    elif configs:
        yield KAFKA.ok("cleanup.policy", "no topic is compacted")
    dead = dead_letter_topic(kafka.topic_prefix)
    small = []
    for topic, config in sorted(configs.items()):
        wanted = kafka.dead_letter_max_bytes if topic == dead else kafka.batch_bytes
        if int(config.get("max.message.bytes", wanted)) < wanted:
            small.append(f"{topic} takes {int(config['max.message.bytes']):,} bytes, we send up to {wanted:,}")
    if small:
        yield KAFKA.problem(
            "message size",
            "; ".join(small),
            "raise max.message.bytes of the topic, or lower TASKFLUX_KAFKA__BATCH_BYTES or"
            " TASKFLUX_KAFKA__DEAD_LETTER_MAX_BYTES: a poison record that does not fit holds its partition up",
        )
    elif configs:
        yield KAFKA.ok("message size", "the topics take what we send")
    if not configs:
        yield KAFKA.warning(
            "topic settings",
            "the broker does not tell us (DescribeConfigs: not known to it, or not allowed to us)",
            "look yourself: cleanup.policy=delete, retention.ms below offsets.retention.minutes, max.message.bytes",
        )


def judge_costs(configs: Mapping[str, Config], broker: Config | None) -> Iterator[Finding]:
    """Settings of topics and brokers that make each record, or each start of a handler, cost more."""
    flushed = [
        topic
        for topic, config in sorted(configs.items())
        if int(config.get("flush.messages", NEVER)) < NEVER or int(config.get("flush.ms", NEVER)) < NEVER
    ]
    if flushed:
        yield KAFKA.warning(
            "flush",
            f"{', '.join(flushed)} force records to the disk (flush.messages, flush.ms)",
            "unset them: a record is safe by its replicas, and a task by PostgreSQL",
        )
    packed = [t for t, config in sorted(configs.items()) if config.get("compression.type", "producer") != "producer"]
    if packed:
        yield KAFKA.warning(
            "compression",
            f"{', '.join(packed)} have a compression.type of their own: the broker packs each batch again",
            "set compression.type=producer: our records are a few bytes",
        )
    delay = int((broker or {}).get(REBALANCE_DELAY, "0"))
    if delay > MOST_DELAY:
        yield KAFKA.warning(
            "first rebalance",
            f"{REBALANCE_DELAY} is {delay} ms: so long, a pod that starts from zero reads outside its group, up to 500"
            " records, and pods that start together wait",
            f"set {REBALANCE_DELAY}=0 on the brokers",
        )
    if not flushed and not packed and delay <= MOST_DELAY:
        yield KAFKA.ok("costs", "no topic flushes or packs each batch, and groups begin at once")


def judge_retention(configs: Mapping[str, Config], broker: Config | None) -> Finding:
    """An empty group's offsets must outlive the records, or a handler long at zero reads the whole topic again."""
    minutes = (broker or {}).get(OFFSETS_RETENTION)
    if minutes is None or not configs:
        return KAFKA.warning(
            "offset retention",
            "it could not be compared with the topics' retention: the broker does not tell us",
            f"see that {OFFSETS_RETENTION} of the brokers is longer than retention.ms of the topics",
        )
    kept = int(minutes) * 60_000
    longer = [topic for topic, config in sorted(configs.items()) if not 0 <= _retention(config) < kept]
    if longer:
        return KAFKA.warning(
            "offset retention",
            f"{', '.join(longer)} keep records as long as offsets ({kept / 86_400_000:.1f} days) or longer: a handler"
            " that stood at zero for so long reads them all again (versions make each harmless, not the reading)",
            f"raise {OFFSETS_RETENTION} of the brokers, or lower retention.ms of the topics",
        )
    return KAFKA.ok("offset retention", f"offsets are kept for {kept / 86_400_000:.1f} days, records shorter")


def _retention(config: Config) -> int:
    return int(config.get("retention.ms", "-1"))


def judge_idempotence(refused: str | None, kafka: KafkaSettings) -> Finding:
    """Whether the producer we ask for is had."""
    if refused and kafka.idempotent:
        return KAFKA.problem(
            "idempotent producer",
            f"it is refused: {refused}",
            "grant IdempotentWrite on the cluster (or Write on a topic, from Kafka 3.0 on), or set"
            " TASKFLUX_KAFKA__IDEMPOTENT=false",
        )
    if not kafka.idempotent and not refused:
        return KAFKA.warning(
            "idempotent producer",
            "TASKFLUX_KAFKA__IDEMPOTENT is false, though the cluster has one",
            "set it to true: fewer records twice, which versions suppress but somebody reads",
        )
    return KAFKA.ok(
        "idempotent producer", "the cluster has none, and we ask for none" if refused else "it is permitted"
    )


def judge_offsets(seen: Mapping[str, TopicPositions]) -> Iterator[Finding]:
    """KEDA takes a partition without a commit for a lag as long as its log."""
    bare = {}
    for topic, positions in sorted(seen.items()):
        commits = [at.committed for at in positions.partitions.values()]
        without = [number for number, at in positions.partitions.items() if at.committed is None]
        if without and (any(commit is not None for commit in commits) or positions.lag):
            bare[topic] = without
    if bare:
        told = "; ".join(f"{topic}: {len(numbers)} partitions" for topic, numbers in bare.items())
        yield KAFKA.warning(
            "group offsets",
            f"without a commit: {told}. KEDA takes their whole log for lag",
            "run `taskflux topics`: it commits where such a group begins. If its offsets were lost while it stood at"
            f" zero, see {OFFSETS_RETENTION}",
        )
    else:
        yield KAFKA.ok("group offsets", "every group that has begun has a commit for each partition")
    waiting = {topic: positions.lag for topic, positions in sorted(seen.items()) if positions.lag}
    told = ", ".join(f"{topic} {lag:,}" for topic, lag in waiting.items()) or "none"
    yield KAFKA.ok("lag", f"records that nobody has taken: {told}")


def judge_sink(before: TopicPositions, after: TopicPositions | None) -> Finding:
    """Dead letters that stay in Kafka are seen by nobody, and expire."""
    if not before.lag or after is None or not after.lag:
        return KAFKA.ok("dead-letter sink", "it has taken every dead letter")
    moved = any(at.next > before.partitions[number].next for number, at in after.partitions.items())
    if moved:
        return KAFKA.ok("dead-letter sink", f"it works through {after.lag:,} dead letters")
    return KAFKA.problem(
        "dead-letter sink",
        f"{after.lag:,} dead letters wait in Kafka, and nobody takes them",
        "run `taskflux run dlq-sink`, one at least, or read its log: what stays there expires with its topic",
    )
