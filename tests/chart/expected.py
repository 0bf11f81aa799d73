"""The exact objects of each `ci/` file: kind, then names without the release's `tf-taskflux-`.

`.` is that alone, `*` a hash of the object's template; `/` begins a name without the release's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OBJECTS: Final[Mapping[str, str]] = {
    "default": """
        ConfigMap            . setup
        CronJob              prune
        Deployment           dlq-sink ingest notify process-email process-simulated process-sms relay
        Job                  setup
        NetworkPolicy        . dlq-sink ingest notify process-email process-simulated process-sms prune relay setup
                             test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest notify process-email process-simulated process-sms relay
        ScaledObject         dlq-sink ingest notify process-email process-simulated process-sms relay
        Service              ingest notify
        ServiceAccount       . setup
        TriggerAuthentication postgres
    """,
    "e2e": """
        ConfigMap            . setup
        CronJob              prune
        Deployment           dlq-sink ingest notify process-email process-simulated process-sms relay router
        Job                  setup
        NetworkPolicy        . dlq-sink ingest notify process-email process-simulated process-sms prune relay router
                             setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest notify process-email process-simulated process-sms relay router
        ScaledObject         dlq-sink ingest notify process-email process-simulated process-sms relay router
        Service              ingest notify
        ServiceAccount       . setup
        TriggerAuthentication kafka postgres
    """,
    "first": """
        ConfigMap            . setup
        CronJob              prune
        Deployment           dlq-sink ingest process-simulated relay
        Job                  setup
        NetworkPolicy        . dlq-sink ingest process-simulated prune relay setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest process-simulated relay
        ScaledObject         dlq-sink ingest process-simulated relay
        Service              ingest
        ServiceAccount       . setup
        TriggerAuthentication postgres
    """,
    "kafka-sasl-tls": """
        ConfigMap            . setup
        CronJob              prune
        Deployment           dlq-sink ingest notify process-email process-simulated relay
        Ingress              .
        Job                  setup
        NetworkPolicy        . dlq-sink ingest notify process-email process-simulated prune relay setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest notify process-email process-simulated relay
        ScaledObject         dlq-sink ingest notify process-email process-simulated relay
        Service              ingest notify
        ServiceAccount       . setup
        TriggerAuthentication kafka postgres
    """,
    "minimal": """
        ConfigMap            . setup
        Deployment           dlq-sink ingest process-simulated relay
        Job                  setup
        Pod                  test-schedule test-send
        Service              ingest
        ServiceAccount       . setup
    """,
    "operators": """
        ConfigMap            .
        CronJob              prune
        Deployment           dlq-sink ingest process-simulated relay
        Job                  setup-*
        KafkaTopic           /tasks.dlq /tasks.simulated
        KafkaUser            /taskflux
        NetworkPolicy        . dlq-sink ingest process-simulated prune relay setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest process-simulated relay
        ScaledObject         dlq-sink ingest process-simulated relay
        Service              ingest
        ServiceAccount       .
        TriggerAuthentication kafka postgres
    """,
    "own-handler": """
        ConfigMap            . setup
        CronJob              prune
        Deployment           count-words dlq-sink import-orders ingest make-report process-simulated relay
                             resize-image
        Job                  setup setup-make-report
        NetworkPolicy        . count-words dlq-sink import-orders ingest make-report process-simulated prune relay
                             resize-image setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink import-orders ingest make-report process-simulated relay resize-image
        ScaledObject         dlq-sink import-orders ingest make-report process-simulated relay resize-image
        Service              ingest
        ServiceAccount       . setup
        TriggerAuthentication postgres
    """,
    "production": """
        ConfigMap            . setup dashboard-handler dashboard-overview dashboard-stores
        CronJob              prune
        Deployment           dlq-sink ingest notify process-email process-simulated process-sms relay router
        HTTPRoute            .
        Job                  setup
        NetworkPolicy        . dlq-sink ingest notify process-email process-simulated process-sms prune relay router
                             setup test
        Pod                  test-schedule test-send
        PodDisruptionBudget  dlq-sink ingest notify process-email process-simulated process-sms relay router
        PodMonitor           .
        PrometheusRule       .
        ScaledObject         dlq-sink ingest notify process-email process-simulated process-sms relay router
        Service              ingest notify
        ServiceAccount       . setup
        TriggerAuthentication postgres
    """,
}
