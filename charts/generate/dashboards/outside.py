"""The API, and the providers."""

from __future__ import annotations

from typing import Final

from charts.generate.dashboards.plots import (
    OUTCOMES,
    STATUSES,
    Kind,
    Plot,
    Query,
    Row,
    happening,
    led,
    per_second,
    quantile,
    selector,
)

API: Final = Row(
    "API",
    (
        Plot(
            "Requests",
            "Requests answered per second, by status.",
            "reqps",
            (Query(per_second("taskflux_http_requests_total", "status"), "{{status}}"),),
            Kind.STACKED,
            width=8,
            colours=STATUSES,
        ),
        Plot(
            "Time to the answer",
            "95th percentile of the seconds to the answer, by route.",
            "s",
            (
                Query(
                    quantile(0.95, "taskflux_http_request_seconds", "method, route"),
                    "{{method}} {{route}}",
                    exemplars=True,
                ),
            ),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "In progress",
            "Requests that wait for their answer, by handler.",
            "short",
            (Query(f"sum by (handler) ({selector('taskflux_http_in_progress')})", "{{handler}}"),),
            width=8,
        ),
        Plot(
            "Submissions",
            "Submissions per second, by outcome: accepted, repeated, or the problem they were refused with.",
            "reqps",
            (Query(happening("taskflux_submitted_total", "outcome"), "{{outcome}}"),),
            Kind.STACKED,
            width=6,
        ),
        Plot(
            "Notifications at once",
            "Notifications per second that are requested over HTTP and sent while the caller waits, by outcome.",
            "reqps",
            (Query(happening("taskflux_notifications_total", "channel, outcome"), "{{channel}} {{outcome}}"),),
            Kind.STACKED,
            width=6,
            nothing="none",
        ),
        Plot(
            "Delivery reports",
            "Delivery reports per second, by status, or by why they were not stored.",
            "reqps",
            (Query(happening("taskflux_delivery_reports_total", "status"), "{{status}}"),),
            Kind.STACKED,
            width=6,
            nothing="none",
        ),
        Plot(
            "Connections cut",
            "Connections closed because of their client, per second, by reason.",
            "reqps",
            (Query(happening("taskflux_http_cut_total", "how"), "{{how}}"),),
            Kind.STACKED,
            width=6,
            nothing="none",
        ),
    ),
)

PROVIDERS: Final = Row(
    "Providers",
    (
        Plot(
            "Calls",
            "Calls to providers per second, by outcome.",
            "reqps",
            (Query(happening("taskflux_provider_requests_total", "provider, outcome"), "{{provider}} {{outcome}}"),),
            Kind.STACKED,
            width=8,
            colours=OUTCOMES,
        ),
        Plot(
            "Time of a call",
            "95th percentile of the seconds that a call took, by provider.",
            "s",
            (Query(quantile(0.95, "taskflux_provider_request_seconds", "provider"), "{{provider}}", exemplars=True),),
            Kind.TIMES,
            width=8,
        ),
        Plot(
            "Circuits open since",
            "How long the circuit has been open, by provider and the error class that opened it.",
            "s",
            (Query(led("taskflux_circuit_open_seconds", "provider, error_class"), "{{provider}} {{error_class}}"),),
            width=8,
            nothing="all closed",
        ),
        Plot(
            "Connections in use",
            "Connections to the SMTP server in use, and those that may be: fewer while the server asks for fewer.",
            "short",
            (
                Query(
                    f"sum by (provider, state) ({selector('taskflux_provider_connections')})", "{{provider}} {{state}}"
                ),
            ),
            Kind.STACKED,
            nothing="none",
        ),
        Plot(
            "Connections made",
            "Connections opened per second to providers, PostgreSQL and Redis; for Kafka's clients, those"
            " that send records or ask for positions.",
            "ops",
            (Query(happening("taskflux_connections_opened_total", "server"), "{{server}}"),),
            Kind.STACKED,
            nothing="none",
        ),
    ),
)
