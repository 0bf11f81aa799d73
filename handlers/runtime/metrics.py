"""Every metric, declared once. Labels are bounded: never a task id, a recipient, or free text."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

SUBMITTED: Final = Counter("taskflux_submitted", "Submissions by what became of them.", ["type", "outcome"])
CLAIMED: Final = Counter("taskflux_claimed", "Tasks taken over from Kafka.", ["type"])
SKIPPED: Final = Counter(
    "taskflux_duplicates_suppressed",
    "Records whose task was not claimable at their version, or is not there.",
    ["type"],
)
ATTEMPTS: Final = Counter(
    "taskflux_attempts", "Attempts by outcome (the event that settled them).", ["type", "outcome"]
)
ERRORS: Final = Counter("taskflux_errors", "Failed attempts by error class.", ["type", "error_class"])
PROCESSING: Final = Histogram(
    "taskflux_processing_seconds", "Seconds that a handler's own work took.", ["type"], buckets=_LATENCY
)
WAITED: Final = Histogram(
    "taskflux_wait_seconds", "Seconds from when a task was due to its claim.", ["type"], buckets=_LATENCY
)
END_TO_END: Final = Histogram(
    "taskflux_end_to_end_seconds", "Seconds from acceptance to success.", ["type"], buckets=_LATENCY
)
IN_FLIGHT: Final = Gauge("taskflux_in_flight", "Tasks that this process has claimed and not settled.", ["type"])
REPEATS: Final = Counter(
    "taskflux_repeats",
    "Side effects that may have happened twice: a task ran again after an unknown outcome.",
    ["type"],
)
LATE_SETTLES: Final = Counter(
    "taskflux_late_settles",
    "Outcomes that were reported after the lease had run out, by whether they counted.",
    ["type", "counted"],
)
DEAD_LETTERS: Final = Counter("taskflux_dead_letters", "Dead letters stored, by error class.", ["error_class"])
REPLAYED: Final = Counter(
    "taskflux_dead_letters_replayed",
    "Dead letters sent again, by error class and by how: single, bulk, or mended into a new task.",
    ["error_class", "how"],
)
NOTIFICATIONS: Final = Counter(
    "taskflux_notifications",
    "Notifications asked for over HTTP, by what became of them: accepted, repeated (not sent again), or the error.",
    ["channel", "outcome"],
)
REPORTS: Final = Counter(
    "taskflux_delivery_reports",
    "Delivery reports by status, or by why they were not kept: repeated (it said no more than was known), unknown (no"
    " such task, or one replayed since), unmatched (no id of ours), malformed.",
    ["status"],
)
FIRST_REPORTS: Final = Counter(
    "taskflux_first_reports",
    "Tasks that got their first delivery report, by the state in which it found them. What succeeded"
    ' (taskflux_attempts_total{outcome="succeeded"}) less what was reported in the states succeeded and running was'
    " accepted and never reported, or not yet.",
    ["type", "state"],
)
ADOPTED: Final = Counter(
    "taskflux_adopted", "Records of other producers by outcome: adopted, repeated or poison.", ["type", "outcome"]
)
POISON: Final = Counter("taskflux_poison", "Records that were no task, by what was wrong.", ["error_class"])
CIRCUIT_OPEN: Final = Gauge("taskflux_circuit_open", "1 while nothing is published for the provider.", ["provider"])
RATE_WAIT: Final = Histogram(
    "taskflux_rate_limit_wait_seconds",
    "Seconds that attempts waited for their provider's rate limit.",
    ["provider"],
    buckets=_LATENCY,
)
PUBLISHED: Final = Counter("taskflux_published", "Records sent to Kafka, by outcome.", ["outcome"])
RELAY_LAG: Final = Gauge("taskflux_relay_lag_seconds", "How long the oldest due task has waited to be published.")
DEPTH: Final = Gauge("taskflux_tasks", "Tasks that wait or run.", ["type", "state"])
OLDEST: Final = Gauge("taskflux_oldest_seconds", "Age of the oldest task that is due and not published.", ["type"])
KAFKA_LAG: Final = Gauge("taskflux_lag", "Records that nobody has taken.", ["type"])
LEADER: Final = Gauge("taskflux_leader", "1 where the auditor and the lease sweep run.")
LEASES_SWEPT: Final = Counter(
    "taskflux_leases_swept", "Tasks whose worker was lost, by what became of them.", ["type", "state"]
)
REQUEUED: Final = Counter(
    "taskflux_requeued", "Queued tasks that Kafka no longer owed and that were published again.", ["type"]
)
REBALANCES: Final = Counter("taskflux_rebalances", "Assignments of partitions to this process.")
COMMITS_FAILED: Final = Counter("taskflux_commits_failed", "Offset commits that Kafka refused (harmless).", ["error"])
BATCH: Final = Histogram("taskflux_batch_size", "Rows that shared one statement.", ["statement"], buckets=_SIZES)
ACCELERATOR_ERRORS: Final = Counter("taskflux_accelerator_errors", "Times that Redis was given up for a while.")
BUILD: Final = Gauge("taskflux_build_info", "1, with the version.", ["version"])


def exposition() -> tuple[bytes, str]:
    """All metrics of this process in Prometheus's text format, and its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return generate_latest(), CONTENT_TYPE_LATEST
