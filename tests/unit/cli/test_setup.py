"""What the commands that prepare a deployment say."""

from __future__ import annotations

from taskflux.cli.setup import told
from taskflux.stream.client import KafkaUnavailable


def test_a_command_that_cannot_reach_kafka_says_why_and_what_to_do() -> None:
    error = KafkaUnavailable("Kafka did not answer: k1:9092 refused the login of ann", "check the password")
    assert told(error) == (
        "Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): Kafka did not answer: k1:9092 refused the login of ann:"
        " check the password"
    )
    assert told(KafkaUnavailable("a topic has partitions without a leader")).endswith(
        "): a topic has partitions without a leader"
    )
