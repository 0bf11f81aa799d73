"""One handler: the tasks of its type, its scaling, its processes, and its provider."""

from __future__ import annotations

from typing import Final

from charts.generate.dashboards.plots import (
    OUTCOMES,
    Kind,
    Plot,
    Query,
    Row,
    at_percentiles,
    happening,
    heat,
    led,
    per_second,
    percentiles,
    rate,
    selector,
)

TYPE: Final = 'type=~"$handler"'
ITS_PROCESSES: Final = f"and on (namespace, release, pod, handler) {selector('taskflux_concurrency', TYPE)}"
"""Only of processes that run this type: a process says so by how many attempts of it may run at once."""
ITS_PROVIDER: Final = f"and on (namespace, release, provider) {selector('taskflux_type_info', TYPE)}"


def _of_its_processes(metric: str, by: str, *matchers: str) -> str:
    return f"sum by ({by}) ({rate(metric, *matchers)} {ITS_PROCESSES})"


def _quantile_of_its_processes(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, {_of_its_processes(f'{histogram}_bucket', 'le')})"


def _percentiles_of_its_processes(histogram: str) -> tuple[Query, ...]:
    return at_percentiles(histogram, lambda share: _quantile_of_its_processes(share, histogram))


WORK: Final = Row(
    "Its work",
    (
        Plot(
            "Attempts",
            "Attempts that ended per second, by outcome.",
            "reqps",
            (Query(per_second("taskflux_attempts_total", "outcome", TYPE), "{{outcome}}"),),
            Kind.STACKED,
            width=8,
            colours=OUTCOMES,
        ),
        Plot(
            "Errors",
            "Failed attempts per second, by error class.",
            "reqps",
            (Query(happening("taskflux_errors_total", "error_class", TYPE), "{{error_class}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
            colours=OUTCOMES,
        ),
        Plot(
            "Saturation",
            "Claimed tasks as a share of the attempts that may run at once. Above 100 %, some wait for a slot.",
            "percentunit",
            (
                Query(
                    f"sum by (type) ({selector('taskflux_in_flight', TYPE)})"
                    f" / sum by (type) ({selector('taskflux_concurrency', TYPE)})",
                    "{{type}}",
                ),
            ),
            width=8,
            largest=1,
            warning=0.9,
            nothing="at zero",
        ),
        Plot(
            "Processing",
            "Seconds that the handler's own work took.",
            "s",
            percentiles("taskflux_processing_seconds", TYPE),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Processing, spread",
            "How many attempts took how long.",
            "s",
            (heat("taskflux_processing_seconds", TYPE),),
            Kind.HEATMAP,
            width=8,
        ),
        Plot(
            "From acceptance to success",
            "End-to-end seconds of its tasks that succeeded, including waiting, retries and requested delays.",
            "s",
            percentiles("taskflux_end_to_end_seconds", TYPE),
            Kind.TIMES,
            width=8,
        ),
    ),
)

SCALING: Final = Row(
    "Its scaling",
    (
        Plot(
            "Oldest waiting",
            "Age of the oldest task that is due and not claimed.",
            "s",
            (Query(led("taskflux_oldest_seconds", "type", TYPE), "{{type}}"),),
            width=8,
            alarming=300,
        ),
        Plot(
            "Lag",
            "Records of this type in Kafka that are not consumed yet, by consumer group.",
            "short",
            (Query(led("taskflux_lag", "topic, group", TYPE), "{{group}}"),),
            width=8,
        ),
        Plot(
            "Replicas",
            "Workers with a live lease, and the partitions of the topic. Workers beyond that number are idle.",
            "short",
            (
                Query(led("taskflux_workers", "type", TYPE), "workers"),
                Query(led("taskflux_partitions", "type", TYPE), "partitions"),
            ),
            Kind.STEPS,
            width=8,
        ),
        Plot(
            "Claims",
            "Tasks claimed per second.",
            "reqps",
            (Query(per_second("taskflux_claimed_total", "type", TYPE), "{{type}}"),),
            width=8,
        ),
        Plot(
            "Waiting",
            "Seconds from the time that a task is due to its claim.",
            "s",
            percentiles("taskflux_wait_seconds", TYPE),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Duplicates",
            "Per second: records whose task is claimed already (duplicates), side effects that may have happened twice"
            " (repeats), outcomes that came after their lease (late), and tasks of lost workers (swept).",
            "reqps",
            (
                Query(per_second("taskflux_duplicates_suppressed_total", "type", TYPE), "duplicates"),
                Query(per_second("taskflux_repeats_total", "type", TYPE), "repeats"),
                Query(per_second("taskflux_late_settles_total", "type", TYPE), "late"),
                Query(happening("taskflux_leases_swept_total", "type", TYPE), "swept"),
            ),
            width=8,
            nothing="none",
        ),
    ),
)

PROVIDER: Final = Row(
    "Its provider",
    (
        Plot(
            "Circuit",
            "Open while only probes are sent to its provider. A handler without a provider has no circuit.",
            "short",
            (Query(f"max by (provider) ({selector('taskflux_circuit_open')} {ITS_PROVIDER})", "{{provider}}"),),
            Kind.STEPS,
            width=8,
            largest=1,
            alarming=1,
            states=(("0", "closed"), ("1", "open")),
            nothing="no provider",
        ),
        Plot(
            "Calls",
            "Calls of its processes to the provider per second, by outcome.",
            "reqps",
            (
                Query(
                    f"{_of_its_processes('taskflux_provider_requests_total', 'provider, outcome')} > 0",
                    "{{provider}} {{outcome}}",
                ),
            ),
            Kind.STACKED,
            width=8,
            colours=OUTCOMES,
            nothing="none",
        ),
        Plot(
            "Time of a call",
            "Seconds that its processes' calls to the provider took.",
            "s",
            _percentiles_of_its_processes("taskflux_provider_request_seconds"),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Rate limit",
            "95th percentile of the seconds that its attempts waited for the provider's rate limit.",
            "s",
            (Query(_quantile_of_its_processes(0.95, "taskflux_rate_limit_wait_seconds"), "p95"),),
            Kind.TIMES,
            nothing="no rate limit",
        ),
        Plot(
            "Receipts",
            "Per second: tasks whose delivery was reported for the first time, by their state at that time.",
            "reqps",
            (Query(happening("taskflux_first_reports_total", "state", TYPE), "{{state}}"),),
            Kind.STACKED,
            nothing="no reports",
        ),
    ),
)

PROCESSES: Final = Row(
    "Its processes",
    (
        Plot(
            "CPU",
            "Cores in use.",
            "short",
            (Query(_of_its_processes("process_cpu_seconds_total", "handler"), "{{handler}}"),),
            width=8,
            nothing="at zero",
        ),
        Plot(
            "Memory",
            "Resident memory of the largest of its processes.",
            "bytes",
            (Query(f"max by (handler) ({selector('process_resident_memory_bytes')} {ITS_PROCESSES})", "{{handler}}"),),
            width=8,
            nothing="at zero",
        ),
        Plot(
            "Event-loop lag",
            "99th percentile of how late the event loop was: above a tenth of a second something blocks it.",
            "s",
            (Query(_quantile_of_its_processes(0.99, "taskflux_event_loop_lag_seconds"), "p99"),),
            Kind.TIMES,
            width=8,
            warning=0.1,
            nothing="at zero",
        ),
        Plot(
            "Blocked event loop",
            "How often per second the handler's code blocked the event loop for a second or more. Its log says where.",
            "short",
            (Query(happening("taskflux_event_loop_blocked_total", "type", TYPE), "{{type}}"),),
            nothing="never",
        ),
        Plot(
            "Stuck threads",
            "Threads of a plain function that have not returned though their attempts are over. Each keeps its slot.",
            "short",
            (Query(f"sum by (type) ({selector('taskflux_stuck_threads', TYPE)})", "{{type}}"),),
            warning=1,
            nothing="at zero",
        ),
    ),
)

ROWS: Final = (WORK, SCALING, PROVIDER, PROCESSES)
