"""Every metric, declared once: its name, its labels with the values they may take, and what it tells.

One process has one registry, and shows what it has seen itself; what stands in PostgreSQL and Kafka is measured by the
relay that leads (see `measuring`), which is there when every handler is at zero. `docs/observability.md` shows this
file as a table. What labels may hold is bounded, and said in `labels`.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import disable_created_metrics

from taskflux.store.queries import names as statement_names
from taskflux.tasks.delivery import DeliveryStatus
from taskflux.tasks.states import State
from taskflux.telemetry import labels
from taskflux.telemetry.instruments import DECLARED, Label, counter, gauge, histogram, snapshot

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, of use to nobody who scrapes

_WAITS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_CALLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

__all__ = ["DECLARED"]

# Ingest ---------------------------------------------------------------------------------------------------------------

SUBMITTED: Final = counter(
    "taskflux_submitted",
    "Submissions by what became of them: accepted, repeated (an idempotency key seen before), or the problem they were"
    " refused with; refused ones have the type `unknown`.",
    Label("type", said=f"a registered task type, or {labels.UNKNOWN}"),
    Label("outcome", ("accepted", "repeated"), "or the last part of a problem's type"),
    by="ingest",
)
REPORTS: Final = counter(
    "taskflux_delivery_reports",
    "Delivery reports by status, or by why they were not kept: repeated (it said no more than was known), unknown (no"
    " such task, or one replayed since), unmatched (no id of ours), malformed.",
    Label("status", (*(each.value for each in DeliveryStatus), "repeated", "unknown", "unmatched", "malformed")),
    by="ingest",
)
FIRST_REPORTS: Final = counter(
    "taskflux_first_reports",
    "Tasks that got their first delivery report, by the state in which it found them. What succeeded"
    ' (`taskflux_attempts_total{outcome="succeeded"}`) less what was reported in the states succeeded and running was'
    " accepted and never reported, or not yet.",
    labels.TYPE,
    Label("state", tuple(each.value for each in State)),
    by="ingest",
)
HTTP_REQUESTS: Final = counter(
    "taskflux_http_requests",
    "HTTP requests that were answered, probes aside; `aborted`: the caller or the end of the process was faster.",
    Label("method", (*labels.METHODS, labels.OTHER)),
    Label("route", said="the template of a route, or `(no route)`"),
    Label("status", said="a status code, or `aborted`"),
    by="ingest, notify",
)
HTTP_SECONDS: Final = histogram(
    "taskflux_http_request_seconds",
    "Seconds until an HTTP request was answered, probes aside.",
    Label("method", (*labels.METHODS, labels.OTHER)),
    Label("route", said="the template of a route, or `(no route)`"),
    buckets=_CALLS,
    exemplars=True,
    by="ingest, notify",
)
HTTP_IN_PROGRESS: Final = gauge(
    "taskflux_http_in_progress", "HTTP requests that wait for their answer, probes aside.", by="ingest, notify"
)
NOTIFICATIONS: Final = counter(
    "taskflux_notifications",
    "Notifications asked for over HTTP, by what became of them: accepted, repeated (not sent again), or the error.",
    Label("channel", ("email", "sms")),
    Label("outcome", ("accepted", "repeated", *labels.TASK_ERRORS)),
    by="notify",
)

# Handlers -------------------------------------------------------------------------------------------------------------

CLAIMED: Final = counter(
    "taskflux_claimed",
    "Tasks taken over from Kafka; dead letters, of the type `dlq`.",
    labels.TAKEN,
    by="process-*, dlq-sink",
)
SKIPPED: Final = counter(
    "taskflux_duplicates_suppressed",
    "Records whose task was not claimable at their version, or is not there.",
    labels.TYPE,
    by="process-*",
)
ATTEMPTS: Final = counter(
    "taskflux_attempts",
    "Attempts by outcome (the event that settled them; handed-back ones spent no attempt); `expired`: ended by the"
    " relay's leader while they waited.",
    labels.TYPE,
    Label("outcome", (*(each.value for each in labels.SETTLES), "expired")),
    by="process-*, relay",
)
ERRORS: Final = counter("taskflux_errors", "Failed attempts by error class.", labels.TYPE, labels.ERROR, by="process-*")
PROCESSING: Final = histogram(
    "taskflux_processing_seconds",
    "Seconds that a handler's own work took.",
    labels.TYPE,
    buckets=_WAITS,
    exemplars=True,
    by="process-*",
)
WAITED: Final = histogram(
    "taskflux_wait_seconds",
    "Seconds from when a task was due to its claim.",
    labels.TYPE,
    buckets=_WAITS,
    by="process-*",
)
END_TO_END: Final = histogram(
    "taskflux_end_to_end_seconds",
    "Seconds from acceptance to success.",
    labels.TYPE,
    buckets=_WAITS,
    exemplars=True,
    by="process-*",
)
IN_FLIGHT: Final = gauge(
    "taskflux_in_flight", "Tasks that this process has claimed and not settled.", labels.TYPE, by="process-*"
)
CONCURRENCY: Final = gauge(
    "taskflux_concurrency",
    "Attempts that may run at once: nothing where nobody is.",
    labels.TAKEN,
    by="process-*, dlq-sink",
)
REPEATS: Final = counter(
    "taskflux_repeats",
    "Side effects that may have happened twice: a task ran again after an unknown outcome.",
    labels.TYPE,
    by="process-*, relay",
)
LATE_SETTLES: Final = counter(
    "taskflux_late_settles",
    "Outcomes that were reported after the lease had run out, by whether they counted.",
    labels.TYPE,
    Label("counted", ("true", "false")),
    by="process-*",
)
ADOPTED: Final = counter(
    "taskflux_adopted",
    "Records of other producers by what they became: tasks, tasks that were there, or dead letters.",
    labels.TYPE,
    Label("outcome", ("adopted", "repeated", "poison")),
    by="process-*, router",
)
POISON: Final = counter(
    "taskflux_poison",
    "Records that were no task, by what was wrong.",
    Label("error_class", (*labels.RECORD_ERRORS, labels.OTHER)),
    by="process-*, router",
)
REBALANCES: Final = counter(
    "taskflux_rebalances", "Assignments of partitions to this process.", by="process-*, router, dlq-sink"
)
COMMITS_FAILED: Final = counter(
    "taskflux_commits_failed",
    "Offset commits that Kafka refused (harmless: the records come again and are skipped).",
    Label("error", ("Timeout",), labels.KAFKA_ERROR),
    by="process-*, router, dlq-sink",
)
DEAD_LETTERS: Final = counter("taskflux_dead_letters", "Dead letters stored.", labels.ERROR, by="dlq-sink")
REPLAYED: Final = counter(
    "taskflux_dead_letters_replayed",
    "Dead letters sent again, by how: single, bulk, or mended into a new task.",
    labels.ERROR,
    Label("how", ("single", "bulk", "mended")),
    by="ingest, relay",
)

# Providers ------------------------------------------------------------------------------------------------------------

PROVIDER_REQUESTS: Final = counter(
    "taskflux_provider_requests",
    "Calls to a provider by how they ended; one of your own is counted where its client says so (`Provider.call`).",
    labels.PROVIDER,
    Label("outcome", labels.CALLED),
    by="process-*, notify",
)
PROVIDER_SECONDS: Final = histogram(
    "taskflux_provider_request_seconds",
    "Seconds that a call to a provider took, the wait for a free connection included.",
    labels.PROVIDER,
    buckets=_CALLS,
    exemplars=True,
    by="process-*, notify",
)
PROVIDER_CONNECTIONS: Final = gauge(
    "taskflux_provider_connections",
    "Connections to the SMTP server in use, and those that could be: fewer while the server asks for fewer.",
    Label("provider", ("smtp",)),
    Label("state", ("used", "free")),
    by="process-*, notify",
)
RATE_WAIT: Final = histogram(
    "taskflux_rate_limit_wait_seconds",
    "Seconds that attempts waited for their provider's rate limit.",
    Label("provider", said="a provider, or the type of a handler without one"),
    buckets=_CALLS,
    by="process-*, notify",
)

# Publishing -----------------------------------------------------------------------------------------------------------

PUBLISHED: Final = counter(
    "taskflux_published",
    "Records sent to Kafka, by outcome.",
    Label("outcome", ("published", "Timeout", "KafkaUnavailable", "UnknownTopic", "TooLarge"), labels.KAFKA_ERROR),
    by="ingest, relay, router",
)
RELAY_LAG: Final = gauge(
    "taskflux_relay_lag_seconds", "How long the oldest due task has waited to be published.", by="relay"
)
LEADER: Final = gauge("taskflux_leader", "1 where the auditor, the lease sweep and the measuring run.", by="relay")
LEASES_SWEPT: Final = counter(
    "taskflux_leases_swept",
    "Tasks whose worker was lost, by what became of them.",
    labels.TYPE,
    Label("state", (State.SCHEDULED.value, State.UNCERTAIN.value)),
    by="relay",
)
REQUEUED: Final = counter(
    "taskflux_requeued",
    "Queued tasks that Kafka no longer owed and that were published again.",
    labels.TYPE,
    by="relay",
)

# What the leader measures ---------------------------------------------------------------------------------------------

DEPTH: Final = snapshot(
    "taskflux_tasks",
    "Tasks by what they wait for: scheduled (due later), due (to be published), running, dead-due (their dead letter is"
    " to be published). Published ones that nobody has taken are `taskflux_lag`.",
    labels.TYPE,
    Label("state", labels.WAITING_STATES),
)
PARKED: Final = snapshot(
    "taskflux_parked",
    "Tasks that nothing happens to unless a person decides.",
    labels.TYPE,
    Label("state", labels.PARKED_STATES),
)
OLDEST: Final = snapshot(
    "taskflux_oldest_seconds",
    "How long the oldest task waits that is due and that nobody has taken; one that is published, since its record was"
    " written. 0 where none waits.",
    labels.TYPE,
)
KAFKA_LAG: Final = snapshot(
    "taskflux_lag",
    "Records in Kafka that the group has not taken: what KEDA scales by. The dead letters' topic has the type `dlq`,"
    " the router's `router`.",
    labels.QUEUE,
    Label("topic", said="that type's"),
    Label("group", said="that type's"),
)
PARTITIONS: Final = snapshot(
    "taskflux_partitions", "Partitions of a type's topic: more workers than that have nothing to do.", labels.QUEUE
)
WORKERS: Final = snapshot("taskflux_workers", "Workers with a live lease; 0 for a type at zero.", labels.TYPE)
OPEN_LETTERS: Final = snapshot(
    "taskflux_dead_letters_open", "Dead letters that nobody has replayed or discarded.", labels.ERROR
)
CIRCUIT_OPEN: Final = snapshot(
    "taskflux_circuit_open", "1 while nothing is published for the provider but probes, else 0.", labels.PROVIDER
)
CIRCUIT_SECONDS: Final = snapshot(
    "taskflux_circuit_open_seconds",
    "How long the provider's circuit has been open, and why; absent while it is closed.",
    labels.PROVIDER,
    Label("error_class", ("Unavailable", "Misconfigured", labels.OTHER), "own subclasses by name, at most 50"),
)
TYPE_INFO: Final = snapshot(
    "taskflux_type_info",
    "1 for each registered type, with its provider: whose circuit it is that holds its tasks back.",
    labels.TYPE,
    Label("provider", said="that type's, or empty"),
)
MEASURED: Final = snapshot(
    "taskflux_measured_timestamp_seconds", "When the leader measured last, in seconds since 1970."
)
MEASURE_SECONDS: Final = histogram(
    "taskflux_measure_seconds",
    "Seconds that one measurement took, PostgreSQL and Kafka together.",
    buckets=_CALLS,
    by="relay (leader)",
)

# Every process --------------------------------------------------------------------------------------------------------

BATCH: Final = histogram(
    "taskflux_batch_size",
    "Rows that shared one statement.",
    Label("statement", ("insert", "claim", "settle", "confirm")),
    buckets=_SIZES,
    by="every",
)
STATEMENT_SECONDS: Final = histogram(
    "taskflux_statement_seconds",
    "Seconds that a statement took on PostgreSQL, the wait for a connection not counted.",
    Label("statement", tuple(statement_names()), "the names in `taskflux/store/*.sql`"),
    buckets=_FAST,
    by="every",
)
STATEMENT_ERRORS: Final = counter(
    "taskflux_statement_errors",
    "Statements that failed, by what follows.",
    Label("error", labels.STORE_ERRORS),
    by="every",
)
POOL_WAIT: Final = histogram(
    "taskflux_pool_wait_seconds",
    "Seconds that a statement waited for a free connection, opening one included.",
    buckets=_FAST,
    by="every",
)
POOL: Final = gauge(
    "taskflux_pool_connections",
    "Connections to PostgreSQL in use, and those that could be.",
    Label("state", ("used", "free")),
    by="every",
)
OPENED: Final = counter(
    "taskflux_connections_opened",
    "Connections made, at first and anew. Of Kafka: producers and clients for positions, each replaced after a failure;"
    " what such a client, or a consumer, does about its connections to single brokers is not told.",
    Label("server", labels.SERVERS),
    by="every",
)
PRODUCE_SECONDS: Final = histogram(
    "taskflux_produce_seconds",
    "Seconds from handing a batch of records to Kafka until all of it was confirmed, or not.",
    buckets=_FAST,
    by="ingest, relay, router",
)
ACCELERATOR_ERRORS: Final = counter(
    "taskflux_accelerator_errors", "Times that Redis was given up for a while.", by="ingest, notify, process-*"
)
LOOP_LAG: Final = histogram(
    "taskflux_event_loop_lag_seconds",
    "How late the event loop came to a task that was due, looked at twice a second.",
    buckets=_FAST,
    by="every",
)
DRAINING: Final = gauge("taskflux_draining", "1 once the process was told to end.", by="every")
BUILD: Final = gauge(
    "taskflux_build_info", "1, with the version.", Label("version", said="TaskFlux's version"), by="every"
)
PEER_UP: Final = snapshot(
    "taskflux_peer_up",
    "Under `taskflux dev`: whether another process's metrics stand in this answer (1) or could not be had (0).",
    Label("peer", said="a process's name"),
    by="ingest",
)

LED: Final = (
    DEPTH, PARKED, OLDEST, KAFKA_LAG, PARTITIONS, WORKERS, OPEN_LETTERS, CIRCUIT_OPEN, CIRCUIT_SECONDS, TYPE_INFO,
    MEASURED,
)  # fmt: skip
"""What only the leader shows; nobody does while there is none."""
