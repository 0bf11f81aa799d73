"""The overview: is it flowing, what is stuck, why, and since when."""

from __future__ import annotations

from typing import Final

from charts.generate.dashboards.plots import (
    OUTCOMES,
    Kind,
    Plot,
    Query,
    Row,
    happening,
    heat,
    led,
    per_second,
    percentiles,
    quantile,
    selector,
)

_ACCEPTED: Final = per_second("taskflux_submitted_total", "type", 'outcome="accepted"')
_FOREIGN: Final = per_second("taskflux_adopted_total", "type", 'outcome="adopted"')
_SUCCEEDED: Final = per_second("taskflux_attempts_total", "type", 'outcome="succeeded"')
_ENDED: Final = per_second("taskflux_attempts_total", "type", 'outcome=~"succeeded|died|expired"')
_UNDECIDED: Final = 'state=~"dead|uncertain"'


def _total(expr: str) -> str:
    return f"sum({expr}) or vector(0)"


FLOW: Final = Row(
    "Is it flowing?",
    (
        Plot(
            "Accepted",
            "Tasks accepted per second: over HTTP, and from other producers' records.",
            "reqps",
            (Query(f"({_total(_ACCEPTED)}) + ({_total(_FOREIGN)})", "accepted"),),
            Kind.NUMBER,
            width=4,
            height=4,
        ),
        Plot(
            "Succeeded",
            "Tasks that succeeded per second.",
            "reqps",
            (Query(_total(_SUCCEEDED), "succeeded"),),
            Kind.NUMBER,
            width=4,
            height=4,
        ),
        Plot(
            "Success rate",
            "Share of the tasks that ended in the last minutes and succeeded. Tasks that are retried have not ended.",
            "percentunit",
            (Query(f"sum({_SUCCEEDED}) / (sum({_ENDED}) > 0)", "success rate"),),
            Kind.NUMBER,
            width=4,
            height=4,
            good_above=0.99,
            largest=1,
            nothing="none ended",
        ),
        Plot(
            "Oldest waiting",
            "Age of the oldest task of any type that is due and not claimed.",
            "s",
            (Query(f"max({selector('taskflux_oldest_seconds')}) or vector(0)", "oldest"),),
            Kind.NUMBER,
            width=4,
            height=4,
            warning=60,
            alarming=300,
        ),
        Plot(
            "Open dead letters",
            "Dead letters that nobody has replayed or discarded.",
            "short",
            (Query(f"sum({led('taskflux_dead_letters_open', 'error_class')}) or vector(0)", "dead letters"),),
            Kind.NUMBER,
            width=4,
            height=4,
            warning=1,
            alarming=100,
        ),
        Plot(
            "Open circuits",
            "Providers to which nothing is sent, because they failed for several tasks. See the circuits below.",
            "short",
            (Query(f"sum({led('taskflux_circuit_open', 'provider')}) or vector(0)", "open"),),
            Kind.NUMBER,
            width=4,
            height=4,
            alarming=1,
        ),
        Plot(
            "In",
            "Tasks accepted over HTTP per second, by type.",
            "reqps",
            (Query(_ACCEPTED, "{{type}}"),),
            Kind.STACKED,
            width=8,
        ),
        Plot(
            "Out",
            "Attempts that ended per second: succeeded and died end a task; retry, handed-back and held do not.",
            "reqps",
            (Query(per_second("taskflux_attempts_total", "outcome"), "{{outcome}}"),),
            Kind.STACKED,
            width=8,
            colours=OUTCOMES,
        ),
        Plot(
            "In flight",
            "Tasks that are claimed and not settled, by type.",
            "short",
            (Query(f"sum by (type) ({selector('taskflux_in_flight')})", "{{type}}"),),
            width=8,
        ),
    ),
)

LATENCY: Final = Row(
    "How long does it take?",
    (
        Plot(
            "From acceptance to success",
            "End-to-end seconds of tasks that succeeded, including waiting, retries and requested delays.",
            "s",
            percentiles("taskflux_end_to_end_seconds"),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "From acceptance to success, spread",
            "How many tasks took how long, end to end.",
            "s",
            (heat("taskflux_end_to_end_seconds"),),
            Kind.HEATMAP,
            width=8,
        ),
        Plot(
            "Waiting",
            "95th percentile of the seconds from when a task was due to its claim, by type.",
            "s",
            (Query(quantile(0.95, "taskflux_wait_seconds", "type"), "{{type}}"),),
            Kind.TIMES,
            width=8,
        ),
    ),
)

STUCK: Final = Row(
    "What is stuck?",
    (
        Plot(
            "Oldest waiting",
            "Age of the oldest task that is due and not claimed, by type.",
            "s",
            (Query(led("taskflux_oldest_seconds", "type"), "{{type}}"),),
            width=8,
            alarming=300,
        ),
        Plot(
            "Lag",
            "Unclaimed records in Kafka, by type. KEDA scales the handlers by them.",
            "short",
            (Query(led("taskflux_lag", "type"), "{{type}}"),),
            width=8,
        ),
        Plot(
            "Replicas",
            "Workers with a live lease, by type. A handler at zero wakes for its first record.",
            "short",
            (Query(led("taskflux_workers", "type"), "{{type}}"),),
            Kind.STEPS,
            width=8,
        ),
        Plot(
            "Waiting and running",
            "Tasks by state: due later (scheduled), due and not published yet (due), running, and dead ones whose dead"
            " letter is to be published (dead-due).",
            "short",
            (Query(f"sum by (state) ({led('taskflux_tasks', 'type, state')})", "{{state}}"),),
        ),
        Plot(
            "Waiting for a person",
            "Tasks that are dead, or uncertain: whether their side effect happened is unknown, and they are held.",
            "short",
            (
                Query(
                    f"sum by (type, state) ({led('taskflux_parked', 'type, state', _UNDECIDED)})",
                    "{{type}} {{state}}",
                ),
            ),
            nothing="none",
        ),
    ),
)

WHY: Final = Row(
    "Why?",
    (
        Plot(
            "Failed attempts",
            "Attempts that failed per second, by error class.",
            "reqps",
            (Query(happening("taskflux_errors_total", "error_class"), "{{error_class}}"),),
            Kind.STACKED,
            width=8,
            nothing="none",
            colours=OUTCOMES,
        ),
        Plot(
            "Failed calls to providers",
            "Calls to providers that failed per second, by outcome.",
            "reqps",
            (
                Query(
                    happening("taskflux_provider_requests_total", "provider, outcome", 'outcome!="succeeded"'),
                    "{{provider}} {{outcome}}",
                ),
            ),
            Kind.STACKED,
            width=8,
            nothing="none",
            colours=OUTCOMES,
        ),
        Plot(
            "Circuits",
            "Open while only probes are sent to the provider. It closes by itself once a probe succeeds.",
            "short",
            (Query(led("taskflux_circuit_open", "provider"), "{{provider}}"),),
            Kind.STEPS,
            width=8,
            largest=1,
            alarming=1,
            states=(("0", "closed"), ("1", "open")),
        ),
        Plot(
            "Dead letters arriving",
            "Dead letters stored per second, by error class, and those that were replayed.",
            "reqps",
            (
                Query(happening("taskflux_dead_letters_total", "error_class"), "{{error_class}}"),
                Query(happening("taskflux_dead_letters_replayed_total", "how"), "replayed: {{how}}"),
            ),
            nothing="none",
            colours=OUTCOMES,
        ),
        Plot(
            "Open dead letters by class",
            "Dead letters that nobody has replayed or discarded, by error class.",
            "short",
            (Query(led("taskflux_dead_letters_open", "error_class"), "{{error_class}}"),),
            Kind.STACKED,
            nothing="none",
            colours=OUTCOMES,
        ),
    ),
)

ROWS: Final = (FLOW, LATENCY, STUCK, WHY)
