"""Every metric, declared once: its name, its labels with their possible values, and its meaning.

Any layer counts directly: `metrics.CLAIMED.labels("email").inc()`. One process has one registry, and exposes what it
has done itself; PostgreSQL and Kafka are measured by the relay that leads (see `measuring`), which runs even when every
handler is at zero. `docs/observability.md` shows this file as a table.
"""

from __future__ import annotations

from typing import Final

from taskflux.tasks.model import DeliveryStatus
from taskflux.tasks.states import Event, State
from taskflux.telemetry.instruments import OTHER, Counter, Declared, Gauge, Histogram, Label, Snapshot

_WAITS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_CALLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

UNKNOWN: Final = "unknown"

# The values of labels are bounded: no series names a task or a person.
SETTLES: Final = tuple(each.value for each in (Event.SUCCEEDED, Event.RETRY, Event.RELEASED, Event.DIED, Event.HELD))
TASK_ERRORS: Final = (
    "Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured", "InvalidPayload", "Expired", "WorkerLost",
    "Crash",
)  # fmt: skip
RECORD_ERRORS: Final = (
    "NoValue", "Unreadable", "NotJson", "UnknownShape", "UnknownType", "TooLarge", "InvalidPayload", "IdReused",
    "MalformedDeadLetter", "Unknown",
)  # fmt: skip
STORE_ERRORS: Final = ("StoreUnavailable", "StoreBusy", "RefusedData", "SchemaTooOld", "StoreError")
PROVIDER_ERRORS: Final = ("Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured")
CALLED: Final = ("succeeded", *PROVIDER_ERRORS, "crashed")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WAITING_STATES: Final = ("scheduled", "due", "running", "dead-due")
PARKED_STATES: Final = (State.DEAD.value, State.UNCERTAIN.value, State.CANCELLED.value)
KAFKA_CAUSES: Final = (
    "login", "mechanism", "no-login", "client-certificate", "host-name", "authority", "certificate", "tls-port",
    "not-tls", "http", "tls", "denied", "login-required", "name", "refused", "network", "closed", "timeout", "other",
)  # fmt: skip
SERVERS: Final = ("postgresql", "kafka", "redis", "smtp", "msg91", "notify")

_TYPE: Final = Label("type", description="a registered task type")
_TAKEN: Final = Label("type", description="a registered task type, or dlq")
_QUEUE: Final = Label("type", description="a registered task type, dlq, or router")
_ERROR: Final = Label(
    "error_class", tuple(dict.fromkeys((*TASK_ERRORS, *RECORD_ERRORS, OTHER))), "own subclasses by name, at most 50"
)
_PROVIDER: Final = Label("provider", description="a handler's provider: smtp, msg91, or one of your own")
_KAFKA_ERROR: Final = "or the name of Kafka's error"

_own_classes: set[str] = set()


def error_class(name: str) -> str:
    """`name` as a label's value: ours, or one of the first 50 others that look like a class; `other` for the rest.

    The class of an error can be an application's own; that of a dead letter may come from any producer.
    """
    if name in TASK_ERRORS or name in RECORD_ERRORS or name in _own_classes:
        return name
    if len(_own_classes) >= 50 or not (name.isalnum() and name.isascii() and name[0].isupper() and len(name) <= 50):
        return OTHER
    _own_classes.add(name)
    return name


# Ingest ---------------------------------------------------------------------------------------------------------------

SUBMITTED: Final = Counter(
    "taskflux_submitted_total",
    "Submissions by outcome: accepted, repeated (an idempotency key seen before), or the problem of the refusal;"
    " refused ones have the type `unknown`.",
    Label("type", description=f"a registered task type, or {UNKNOWN}"),
    Label("outcome", ("accepted", "repeated"), "or the last part of a problem's type"),
    by="ingest",
)
REPORTS: Final = Counter(
    "taskflux_delivery_reports_total",
    "Delivery reports by status, or by why they were not kept: repeated (nothing new), unknown (no such task, or one"
    " replayed since), unmatched (not an id of ours), malformed.",
    Label("status", (*(each.value for each in DeliveryStatus), "repeated", "unknown", "unmatched", "malformed")),
    by="ingest",
)
FIRST_REPORTS: Final = Counter(
    "taskflux_first_reports_total",
    "Tasks that got their first delivery report, by their state at that time. The number that succeeded"
    ' (`taskflux_attempts_total{outcome="succeeded"}`) minus the reports in the states succeeded and running is the'
    " number accepted and not (yet) reported.",
    _TYPE,
    Label("state", tuple(each.value for each in State)),
    by="ingest",
)
HTTP_REFUSALS: Final = (
    "bad-request",
    "head-too-large",
    "request-timeout",
    "target-too-long",
    "too-many-connections",
)
HTTP_REQUESTS: Final = Counter(
    "taskflux_http_requests_total",
    "HTTP requests that were answered, without probes; `aborted`: the client left, or the process stopped first.",
    Label("method", (*METHODS, OTHER)),
    Label("route", description="the template of a route, or `(no route)`"),
    Label("status", description="a status code, or `aborted`"),
    by="ingest, notify",
)
HTTP_SECONDS: Final = Histogram(
    "taskflux_http_request_seconds",
    "Seconds until an HTTP request was answered, without probes.",
    Label("method", (*METHODS, OTHER)),
    Label("route", description="the template of a route, or `(no route)`"),
    buckets=_CALLS,
    exemplars=True,
    by="ingest, notify",
)
HTTP_CUT: Final = Counter(
    "taskflux_http_cut_total",
    "Connections that were closed because of their client. Where `how` is the slug of a problem, the client got that"
    " answer: the request was not HTTP, too large, or too slow.",
    Label("how", ("idle", "slow-reader", "too-many", *HTTP_REFUSALS)),
    by="ingest, notify",
)
HTTP_IN_PROGRESS: Final = Gauge(
    "taskflux_http_in_progress", "HTTP requests that wait for their answer, without probes.", by="ingest, notify"
)
NOTIFICATIONS: Final = Counter(
    "taskflux_notifications_total",
    "Notifications requested over HTTP, by outcome: accepted, repeated (not sent again), or the error.",
    Label("channel", ("email", "sms")),
    Label("outcome", ("accepted", "repeated", *TASK_ERRORS)),
    by="notify",
)

# Handlers -------------------------------------------------------------------------------------------------------------

CLAIMED: Final = Counter(
    "taskflux_claimed_total",
    "Tasks claimed from Kafka; dead letters have the type `dlq`.",
    _TAKEN,
    by="process-*, dlq-sink",
)
SKIPPED: Final = Counter(
    "taskflux_duplicates_suppressed_total",
    "Records whose task could not be claimed at their version, or does not exist.",
    _TYPE,
    by="process-*",
)
ATTEMPTS: Final = Counter(
    "taskflux_attempts_total",
    "Attempts by outcome (the event that settled them; `handed-back` ones were released and spent no attempt);"
    " `expired`: ended by the relay's leader while they waited.",
    _TYPE,
    Label("outcome", (*SETTLES, "expired")),
    by="process-*, relay",
)
ERRORS: Final = Counter("taskflux_errors_total", "Failed attempts by error class.", _TYPE, _ERROR, by="process-*")
PROCESSING: Final = Histogram(
    "taskflux_processing_seconds",
    "Seconds that a handler's own work took.",
    _TYPE,
    buckets=_WAITS,
    exemplars=True,
    by="process-*",
)
WAITED: Final = Histogram(
    "taskflux_wait_seconds",
    "Seconds from when a task was due to its claim.",
    _TYPE,
    buckets=_WAITS,
    by="process-*",
)
END_TO_END: Final = Histogram(
    "taskflux_end_to_end_seconds",
    "Seconds from acceptance to success.",
    _TYPE,
    buckets=_WAITS,
    exemplars=True,
    by="process-*",
)
IN_FLIGHT: Final = Gauge(
    "taskflux_in_flight", "Tasks that this process has claimed and not settled.", _TYPE, by="process-*"
)
CONCURRENCY: Final = Gauge(
    "taskflux_concurrency",
    "Attempts that may run at once; no series while no worker runs.",
    _TAKEN,
    by="process-*, dlq-sink",
)
REPEATS: Final = Counter(
    "taskflux_repeats_total",
    "Side effects that may have happened twice: a task ran again after an unknown outcome.",
    _TYPE,
    by="process-*, relay",
)
LATE_SETTLES: Final = Counter(
    "taskflux_late_settles_total",
    "Outcomes that were reported after the lease had expired, by whether they counted.",
    _TYPE,
    Label("counted", ("true", "false")),
    by="process-*",
)
ADOPTED: Final = Counter(
    "taskflux_adopted_total",
    "Records of other producers by outcome: a new task, a task that already existed, or a dead letter.",
    _TYPE,
    Label("outcome", ("adopted", "repeated", "poison")),
    by="process-*, router",
)
POISON: Final = Counter(
    "taskflux_poison_total",
    "Records that could not become a task, by error class.",
    Label("error_class", (*RECORD_ERRORS, OTHER)),
    by="process-*, router",
)
REBALANCES: Final = Counter(
    "taskflux_rebalances_total", "Assignments of partitions to this process.", by="process-*, router, dlq-sink"
)
COMMITS_FAILED: Final = Counter(
    "taskflux_commits_failed_total",
    "Offset commits that Kafka refused (harmless: the records are delivered again and skipped).",
    Label("error", ("Timeout",), _KAFKA_ERROR),
    by="process-*, router, dlq-sink",
)
DEAD_LETTERS: Final = Counter("taskflux_dead_letters_total", "Dead letters stored.", _ERROR, by="dlq-sink")
REPLAYED: Final = Counter(
    "taskflux_dead_letters_replayed_total",
    "Dead letters replayed, by how: single, bulk, or `mended` (repaired as a new task).",
    _ERROR,
    Label("how", ("single", "bulk", "mended")),
    by="ingest, relay",
)

# Providers ------------------------------------------------------------------------------------------------------------

PROVIDER_REQUESTS: Final = Counter(
    "taskflux_provider_requests_total",
    "Calls to a provider by outcome; a provider of your own is counted if its client does so (`Provider.call`).",
    _PROVIDER,
    Label("outcome", CALLED),
    by="process-*, notify",
)
PROVIDER_SECONDS: Final = Histogram(
    "taskflux_provider_request_seconds",
    "Seconds that a call to a provider took, the wait for a free connection included.",
    _PROVIDER,
    buckets=_CALLS,
    exemplars=True,
    by="process-*, notify",
)
PROVIDER_CONNECTIONS: Final = Gauge(
    "taskflux_provider_connections",
    "Connections to the SMTP server in use, and free ones: fewer while the server asks for fewer.",
    Label("provider", ("smtp",)),
    Label("state", ("used", "free")),
    by="process-*, notify",
)
RATE_WAIT: Final = Histogram(
    "taskflux_rate_limit_wait_seconds",
    "Seconds that attempts waited for their provider's rate limit.",
    Label("provider", description="a provider, or the type of a handler without one"),
    buckets=_CALLS,
    by="process-*, notify",
)

# Publishing -----------------------------------------------------------------------------------------------------------

PUBLISHED: Final = Counter(
    "taskflux_published_total",
    "Records sent to Kafka, by outcome.",
    Label("outcome", ("published", "Timeout", "KafkaUnavailable", "UnknownTopic", "TooLarge"), _KAFKA_ERROR),
    by="ingest, relay, router",
)
RELAY_LAG: Final = Gauge("taskflux_relay_lag_seconds", "How long the oldest pending publish has been due.", by="relay")
LEADER: Final = Gauge(
    "taskflux_leader", "1 in the relay that leads: it audits, sweeps leases and measures.", by="relay"
)
SCALER_STREAMS: Final = Gauge(
    "taskflux_scaler_streams",
    "Streams over which KEDA waits for work of the push scaler.",
    by="relay",
)
SCALER_CALLS: Final = Counter(
    "taskflux_scaler_calls_total",
    "Calls of KEDA to the push scaler that have ended, by outcome.",
    Label("method", ("IsActive", "StreamIsActive", "GetMetricSpec", "GetMetrics")),
    Label("outcome", ("ok", "unavailable", "invalid_argument", "resource_exhausted", "cancelled")),
    by="relay",
)
LEASES_SWEPT: Final = Counter(
    "taskflux_leases_swept_total",
    "Tasks whose worker was lost, by their new state.",
    _TYPE,
    Label("state", (State.SCHEDULED.value, State.UNCERTAIN.value, State.DEAD.value)),
    by="relay",
)
REQUEUED: Final = Counter(
    "taskflux_requeued_total",
    "Queued tasks whose record Kafka would not deliver, and that were published again.",
    _TYPE,
    by="relay",
)

# What the leader measures ---------------------------------------------------------------------------------------------

DEPTH: Final = Snapshot(
    "taskflux_tasks",
    "Tasks by what they wait for: scheduled (due later), due (to be published), running, dead-due (their dead letter is"
    " to be published). Published tasks that were not claimed yet are in `taskflux_lag`.",
    _TYPE,
    Label("state", WAITING_STATES),
)
PARKED: Final = Snapshot(
    "taskflux_parked",
    "Tasks that stay as they are until a person decides.",
    _TYPE,
    Label("state", PARKED_STATES),
)
OLDEST: Final = Snapshot(
    "taskflux_oldest_seconds",
    "How long the oldest task that is due and not claimed has waited; if it is published, since its record was written."
    " 0 if none waits.",
    _TYPE,
)
KAFKA_LAG: Final = Snapshot(
    "taskflux_lag",
    "Consumer lag, which KEDA scales by. The dead-letter topic has the type `dlq`, the router's topic `router`.",
    _QUEUE,
    Label("topic", description="that type's"),
    Label("group", description="that type's"),
)
PARTITIONS: Final = Snapshot(
    "taskflux_partitions", "Partitions of a type's topic: further workers would have nothing to do.", _QUEUE
)
WORKERS: Final = Snapshot("taskflux_workers", "Workers with a live lease; 0 for a type at zero.", _TYPE)
OPEN_DEAD_LETTERS: Final = Snapshot(
    "taskflux_dead_letters_open", "Dead letters that were neither replayed nor discarded.", _ERROR
)
CIRCUIT_OPEN: Final = Snapshot(
    "taskflux_circuit_open", "1 while only probes are published for the provider, else 0.", _PROVIDER
)
CIRCUIT_SECONDS: Final = Snapshot(
    "taskflux_circuit_open_seconds",
    "How long the provider's circuit has been open, and why; absent while it is closed.",
    _PROVIDER,
    Label("error_class", ("Unavailable", "Misconfigured", OTHER), "own subclasses by name, at most 50"),
)
TYPE_INFO: Final = Snapshot(
    "taskflux_type_info",
    "1 for each registered type, with the provider whose circuit governs it.",
    _TYPE,
    Label("provider", description="that type's, or empty"),
)
MEASURED: Final = Snapshot(
    "taskflux_measured_timestamp_seconds", "When the leader measured last, in seconds since 1970."
)
MEASURE_SECONDS: Final = Histogram(
    "taskflux_measure_seconds",
    "Seconds that one measurement took, PostgreSQL and Kafka together.",
    buckets=_CALLS,
    by="relay (leader)",
)

# Every process --------------------------------------------------------------------------------------------------------

BATCH: Final = Histogram(
    "taskflux_batch_size",
    "Rows that shared one statement.",
    Label("statement", ("insert", "claim", "settle", "confirm")),
    buckets=_SIZES,
    by="every",
)
STATEMENT_SECONDS: Final = Histogram(
    "taskflux_statement_seconds",
    "Seconds that a statement took on PostgreSQL, without the wait for a connection.",
    Label("statement", description="the names in `taskflux/store/*.sql`"),
    buckets=_FAST,
    by="every",
)
STATEMENT_ERRORS: Final = Counter(
    "taskflux_statement_errors_total",
    "Statements that failed, by error.",
    Label("error", STORE_ERRORS),
    by="every",
)
POOL_WAIT: Final = Histogram(
    "taskflux_pool_wait_seconds",
    "Seconds that a statement waited for a free connection, opening one included.",
    buckets=_FAST,
    by="every",
)
POOL: Final = Gauge(
    "taskflux_pool_connections",
    "Connections to PostgreSQL in use, and free ones.",
    Label("state", ("used", "free")),
    by="every",
)
OPENED: Final = Counter(
    "taskflux_connections_opened_total",
    "Connections opened, including replacements. For Kafka: producers and clients for positions, each replaced after a"
    " failure; their connections to single brokers, and those of consumers, are not counted.",
    Label("server", SERVERS),
    by="every",
)
KAFKA_FAILURES: Final = Counter(
    "taskflux_kafka_failures_total",
    "Failed attempts to use Kafka, by cause. The log and `/readyz` give the same cause in a sentence.",
    Label("error", KAFKA_CAUSES),
    by="ingest, relay, router, process-*, dlq-sink",
)
PRODUCE_SECONDS: Final = Histogram(
    "taskflux_produce_seconds",
    "Seconds from handing a batch of records to Kafka until all of it was confirmed, or not.",
    buckets=_FAST,
    by="ingest, relay, router",
)
ACCELERATOR_ERRORS: Final = Counter(
    "taskflux_accelerator_errors_total",
    "Failures after which Redis is not used for a while.",
    by="ingest, notify, process-*",
)
LOOP_LAG: Final = Histogram(
    "taskflux_event_loop_lag_seconds",
    "How late the event loop ran a timer, measured twice a second.",
    buckets=_FAST,
    by="every",
)
LOOP_BLOCKED: Final = Counter(
    "taskflux_event_loop_blocked_total",
    "How often a handler's code blocked the event loop for a second or more; the log says where.",
    _TYPE,
    by="process-*",
)
STUCK_THREADS: Final = Gauge(
    "taskflux_stuck_threads",
    "Threads of a plain `def` handler that have not returned though their attempts are over: each keeps its slot.",
    _TYPE,
    by="process-*",
)
DRAINING: Final = Gauge("taskflux_draining", "1 once the process was told to stop.", by="every")
BUILD: Final = Gauge(
    "taskflux_build_info", "1, with the version.", Label("version", description="TaskFlux's version"), by="every"
)
PEER_UP: Final = Snapshot(
    "taskflux_peer_up",
    "Under `taskflux dev`: whether another process's metrics are in this answer (1) or could not be read (0).",
    Label("peer", description="a process's name"),
    by="ingest",
)

LED: Final = (
    DEPTH, PARKED, OLDEST, KAFKA_LAG, PARTITIONS, WORKERS, OPEN_DEAD_LETTERS, CIRCUIT_OPEN, CIRCUIT_SECONDS, TYPE_INFO,
    MEASURED,
)  # fmt: skip
"""Exposed only by the leader; absent while there is none."""


def show_provider(name: str) -> None:
    """Expose a provider's series before its first call; those of your own provider stay 0 unless its client counts."""
    PROVIDER_REQUESTS.zeros(name)
    PROVIDER_SECONDS.zeros(name)
    if name in SERVERS:
        OPENED.zeros(name)


DECLARED: Final[dict[str, Declared]] = {
    each.declared.name: each.declared
    for each in tuple(globals().values())
    if isinstance(each, Counter | Gauge | Histogram | Snapshot)
}
"""The metrics of this module, by name and in this order."""
