"""Which servers are embedded, and the environment that every handler gets. Pure: environments in, environments out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What a person may have set for a server of theirs, and what would contradict the embedded one.
_NOT_WITH_EMBEDDED: Final = {
    "POSTGRES": ("MIGRATE_DSN", "POOLER"),
    "KAFKA": (
        "SECURITY_PROTOCOL",
        "SASL_MECHANISM",
        "SASL_USERNAME",
        "SASL_PASSWORD",
        "TLS_CA_FILE",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
    ),
    "SMTP": ("USERNAME", "PASSWORD", "CA_FILE", "HOSTNAME"),
    "MSG91": (),
    "REDIS": (),
}
_DECIDES: Final = {
    "POSTGRES": "DSN",
    "KAFKA": "BOOTSTRAP_SERVERS",
    "REDIS": "URL",
    "SMTP": "HOST",
    "MSG91": "AUTH_KEY",
}
SENDER: Final = "TaskFlux <taskflux@localhost>"
TEMPLATE_ID: Final = "65f0c0ffee65f0c0ffee65f0"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Where the embedded servers are; None: that server is the person's own, named in their environment."""

    postgres: str | None = None
    """DSN"""
    kafka: str | None = None
    """host:port"""
    redis: str | None = None
    """URL"""
    smtp_port: int | None = None
    msg91: str | None = None
    """base URL"""


def own_servers(environment: Mapping[str, str]) -> frozenset[str]:
    """The sections (POSTGRES, KAFKA, REDIS, SMTP, MSG91) whose server the environment names."""
    return frozenset(section for section, field in _DECIDES.items() if _given(environment, section, field))


def for_handlers(environment: Mapping[str, str], embedded: Embedded, origin: Path, drain: float) -> dict[str, str]:
    """The environment of every handler: the person's own, with the embedded servers in it.

    `origin` marks the leases of these workers as ours to end; `drain` is what they may take to end, in seconds.
    """
    # The terminal counts outcomes by their log lines.
    usual = {"TASKFLUX_WORKER__DRAIN_SECONDS": f"{drain:g}", "TASKFLUX_LOG__OUTCOMES": "100000"}
    forced = {
        "TASKFLUX_WORKER__ORIGIN": str(origin),
        "TASKFLUX_HTTP__HOST": "127.0.0.1",
        "TASKFLUX_LOG__FORMAT": "json",  # what is echoed on the terminal is read from there
    }
    dropped: set[str] = set()
    if embedded.postgres is not None:
        forced["TASKFLUX_POSTGRES__DSN"] = embedded.postgres
        dropped |= _unfit("POSTGRES")
    if embedded.kafka is not None:
        forced["TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"] = embedded.kafka
        forced |= {"TASKFLUX_KAFKA__IDEMPOTENT": "false", "TASKFLUX_KAFKA__REPLICATION_FACTOR": "1"}
        usual |= {
            "TASKFLUX_KAFKA__PARTITIONS": "2",
            "TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS": "20",
            "TASKFLUX_KAFKA__FETCH_IDLE_WAIT_MS": "100",
        }
        dropped |= _unfit("KAFKA")
    if embedded.redis is not None:
        forced["TASKFLUX_REDIS__URL"] = embedded.redis
    if embedded.smtp_port is not None:
        forced |= {"TASKFLUX_SMTP__HOST": "127.0.0.1", "TASKFLUX_SMTP__PORT": str(embedded.smtp_port)}
        forced["TASKFLUX_SMTP__TLS"] = "none"
        usual["TASKFLUX_SMTP__SENDER"] = SENDER
        dropped |= _unfit("SMTP")
    if embedded.msg91 is not None:
        forced |= {"TASKFLUX_MSG91__BASE_URL": embedded.msg91, "TASKFLUX_MSG91__AUTH_KEY": "local"}
        usual["TASKFLUX_MSG91__TEMPLATE_ID"] = TEMPLATE_ID
    replaced = dropped | forced.keys()
    kept = {name: value for name, value in environment.items() if name.upper() not in replaced}
    return {**usual, **kept, **forced}


def with_peers(environment: Mapping[str, str], peers: Mapping[str, str]) -> dict[str, str]:
    """`environment` for ingest, whose /metrics shows these peers' (name → URL) too."""
    return {**environment, "TASKFLUX_HTTP__PEERS": json.dumps(dict(peers))}


def _given(environment: Mapping[str, str], section: str, field: str) -> bool:
    upper = {name.upper(): value for name, value in environment.items()}
    if upper.get(f"TASKFLUX_{section}__{field}"):
        return True
    try:  # a whole section may stand in one variable, as JSON
        whole = json.loads(upper.get(f"TASKFLUX_{section}") or "{}")
    except ValueError:
        return False
    return isinstance(whole, dict) and bool(whole.get(field.lower()))


def _unfit(section: str) -> set[str]:
    return {f"TASKFLUX_{section}__{field}" for field in _NOT_WITH_EMBEDDED[section]}
