"""What everything depends on: the API, PostgreSQL, Kafka, Redis, and the relay."""

from __future__ import annotations

from typing import Final

from charts.generate.dashboards.outside import API, PROVIDERS
from charts.generate.dashboards.plots import (
    Kind,
    Plot,
    Query,
    Row,
    average,
    happening,
    led,
    per_second,
    percentiles,
    quantile,
    selector,
)

POSTGRES: Final = Row(
    "PostgreSQL",
    (
        Plot(
            "Statements",
            "Statements per second, by name.",
            "ops",
            (Query(per_second("taskflux_statement_seconds_count", "statement"), "{{statement}}"),),
            Kind.STACKED,
            width=8,
        ),
        Plot(
            "Time of a statement",
            "95th percentile of a statement's seconds, by name; the wait for a connection is apart.",
            "s",
            (Query(quantile(0.95, "taskflux_statement_seconds", "statement"), "{{statement}}"),),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Failed statements",
            "Statements that failed per second, by error.",
            "ops",
            (Query(happening("taskflux_statement_errors_total", "error"), "{{error}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
        ),
        Plot(
            "Wait for a connection",
            "95th percentile of the seconds that a statement waited for a connection of its pool, by handler.",
            "s",
            (Query(quantile(0.95, "taskflux_pool_wait_seconds", "handler"), "{{handler}}"),),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Connections",
            "Connections of all pools, in use and free.",
            "short",
            (Query(f"sum by (state) ({selector('taskflux_pool_connections')})", "{{state}}"),),
            Kind.STACKED,
            width=8,
        ),
        Plot(
            "Group commits",
            "Average number of rows that shared one statement.",
            "short",
            (Query(average("taskflux_batch_size", "statement"), "{{statement}}"),),
            width=8,
        ),
    ),
)

KAFKA: Final = Row(
    "Kafka and Redis",
    (
        Plot(
            "Published",
            "Records sent to Kafka per second, by outcome.",
            "reqps",
            (Query(happening("taskflux_published_total", "outcome"), "{{outcome}}"),),
            Kind.STACKED,
            width=8,
        ),
        Plot(
            "Time to Kafka's confirmation",
            "Seconds from handing records to Kafka until they were confirmed.",
            "s",
            percentiles("taskflux_produce_seconds"),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Rebalances and errors",
            "Per second: assignments of partitions, refused commits of offsets, and failures of Redis.",
            "ops",
            (
                Query(happening("taskflux_rebalances_total", "handler"), "{{handler}} rebalances"),
                Query(happening("taskflux_commits_failed_total", "handler"), "{{handler}} refused commits"),
                Query(happening("taskflux_accelerator_errors_total", "handler"), "{{handler}} Redis"),
            ),
            width=8,
            nothing="none",
        ),
        Plot(
            "Failures of Kafka",
            "Failed attempts to use Kafka per second, by handler and cause. The handler's log says what to do.",
            "ops",
            (Query(happening("taskflux_kafka_failures_total", "handler, error"), "{{handler}} {{error}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
        ),
        Plot(
            "Other producers' records",
            "Records of other producers per second, by outcome.",
            "reqps",
            (Query(happening("taskflux_adopted_total", "type, outcome"), "{{type}} {{outcome}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
        ),
        Plot(
            "Records that were no task",
            "Poison messages per second that went to the dead letters, by what was wrong.",
            "reqps",
            (Query(happening("taskflux_poison_total", "error_class"), "{{error_class}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
        ),
    ),
)

RELAY: Final = Row(
    "Relay",
    (
        Plot(
            "Relay lag",
            "How long the oldest due task has waited to be published. An open circuit holds its types back.",
            "s",
            (Query(f"max({selector('taskflux_relay_lag_seconds')})", "behind"),),
            width=8,
            warning=15,
            alarming=60,
        ),
        Plot(
            "Backlog",
            "Tasks that are due and not published, by type.",
            "short",
            (Query(led("taskflux_tasks", "type", 'state="due"'), "{{type}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
        ),
        Plot(
            "Recovered",
            "Per second: tasks of lost workers by what became of them, and queued ones whose records Kafka had lost.",
            "ops",
            (
                Query(happening("taskflux_leases_swept_total", "state"), "lost worker: {{state}}"),
                Query(happening("taskflux_requeued_total", "type"), "published again: {{type}}"),
            ),
            width=8,
            nothing="nothing to set right",
        ),
        Plot(
            "Leaders",
            "Relays that lead: one, or for a moment none. Without one, nothing is measured or recovered.",
            "short",
            (Query(f"sum({selector('taskflux_leader')})", "leaders"),),
            Kind.STEPS,
            width=8,
            largest=2,
        ),
        Plot(
            "Last measured",
            "How long ago the leader last measured the shared figures: depth, age, lag, workers, dead letters,"
            " circuits.",
            "s",
            (Query(f"time() - max({selector('taskflux_measured_timestamp_seconds')})", "ago"),),
            width=8,
            alarming=300,
            nothing="not measured",
        ),
        Plot(
            "Cost of measuring",
            "Seconds that one measurement took. The next one waits fifty times as long, and five seconds at least.",
            "s",
            percentiles("taskflux_measure_seconds"),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Push scaler: streams",
            "Streams over which KEDA waits for work, of all relays. 0: KEDA polls, or no relay can be reached.",
            "short",
            (Query(f"sum({selector('taskflux_scaler_streams')})", "streams"),),
            Kind.STEPS,
            width=12,
            nothing="no push scaler",
        ),
        Plot(
            "Push scaler: calls",
            "Calls of KEDA per second that have ended, by outcome; unavailable: PostgreSQL or Kafka could not be read.",
            "reqps",
            (Query(happening("taskflux_scaler_calls_total", "method, outcome"), "{{method}} {{outcome}}"),),
            Kind.STACKED,
            width=12,
            nothing="none",
        ),
    ),
)

PROCESSES: Final = Row(
    "Processes",
    (
        Plot(
            "CPU",
            "Cores in use, by handler.",
            "short",
            (Query(per_second("process_cpu_seconds_total", "handler"), "{{handler}}"),),
            Kind.STACKED,
            width=6,
        ),
        Plot(
            "Memory",
            "Resident memory of the largest process, by handler.",
            "bytes",
            (Query(f"max by (handler) ({selector('process_resident_memory_bytes')})", "{{handler}}"),),
            width=6,
        ),
        Plot(
            "Event-loop lag",
            "99th percentile of how late the event loop was: above a tenth of a second something blocks it.",
            "s",
            (Query(quantile(0.99, "taskflux_event_loop_lag_seconds", "handler"), "{{handler}}"),),
            Kind.TIMES,
            width=6,
            warning=0.1,
        ),
        Plot(
            "Versions",
            "Processes by version, and those that drain.",
            "short",
            (
                Query(f"count by (version) ({selector('taskflux_build_info')})", "{{version}}"),
                Query(f"sum({selector('taskflux_draining')})", "draining"),
            ),
            Kind.STEPS,
            width=6,
        ),
    ),
)

ROWS: Final = (API, PROVIDERS, POSTGRES, KAFKA, RELAY, PROCESSES)
