"""What `taskflux dev` runs: the servers, what prepares them, and the handlers with the environment that they get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskflux.local.console import Console
from taskflux.local.echo import rotate
from taskflux.local.ports import INBOX, LOOPBACK, LOOPBACK_NAME, PEERS, Ports
from taskflux.local.processes import Process, run
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.supervisor import CLI, DRAIN_SECONDS, Inbox, Part, Supervisor, handler

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
    # No website shall have its name lead to what listens here (DNS rebinding).
    usual["TASKFLUX_HTTP__ALLOWED_HOSTS"] = LOOPBACK_NAME
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
        forced |= {
            "TASKFLUX_KAFKA__TANSU": "true",
            "TASKFLUX_KAFKA__IDEMPOTENT": "false",
            "TASKFLUX_KAFKA__REPLICATION_FACTOR": "1",
        }
        # The embedded broker answers an empty fetch late, and a join after half of the session timeout.
        usual |= {
            "TASKFLUX_KAFKA__PARTITIONS": "2",
            "TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS": "50",
            "TASKFLUX_KAFKA__SESSION_TIMEOUT": "2",
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


HANDLERS: Final = ("ingest", "relay", "process-email", "process-sms", "process-simulated", "notify", "dlq-sink")
_COMMANDS: Final = ("migrate", "topics", "end-leases")
_PREPARE_TIMEOUT: Final = 120.0


class Stack:
    """One data directory's servers and handlers."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        console: Console,
        supervisor: Supervisor,
        own_environment: Mapping[str, str],
        cli: tuple[str, ...] = CLI,
    ) -> None:
        """`port` is wished for ingest; `cli` is what `run <handler>`, `migrate`, `topics`, `end-leases` are told to."""
        self._data_dir = data_dir
        self._logs = data_dir / "logs"
        self._console = console
        self._supervisor = supervisor
        self._own_environment = own_environment
        self._own_servers = own_servers(own_environment)
        self._cli = cli
        self._choose_ports(port)
        self._environment: dict[str, str] = dict(own_environment)

    def _choose_ports(self, wished: int) -> None:
        ports = Ports(self._data_dir / "ports.json")
        self.port = ports.first("ingest", wished, *ports.remembered("ingest"), *range(wished + 1, wished + 50))
        self._postgres_port = ports.choose("postgres", 5432)
        self._valkey_port = ports.choose("valkey", 6379)
        self._kafka_port = ports.choose("kafka", 9092)
        self._smtp_port = ports.choose("smtp", 1025)
        self._inbox_port = ports.choose("inbox", 8025)
        self._handler_ports = {name: ports.choose(name, 8081) for name in HANDLERS if name != "ingest"}
        ports.save()
        if wished and self.port != wished:
            self._console.note(f"port {wished} is taken: {self.port} is used")

    @property
    def url(self) -> str:
        """Where ingest serves."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def inbox_url(self) -> str | None:
        """Where the inbox's page is; None when neither mail nor SMS goes there."""
        return None if {"SMTP", "MSG91"} <= self._own_servers else f"http://{LOOPBACK}:{self._inbox_port}"

    def logs(self) -> dict[str, Path]:
        """Every part's log file."""
        names = ("postgres", "valkey", "kafka", "inbox", *_COMMANDS, *HANDLERS)
        return {name: self._logs / f"{name}.log" for name in names}

    async def start(self) -> None:
        """Start everything; returns when it serves.

        Raises:
            Trouble: something does not start.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        for file in self.logs().values():
            rotate(file)
        await self._start_servers()
        await self._command("migrate")
        await asyncio.gather(self._make_topics(), self._command("end-leases"))
        self._console.started("schema and topics")
        await self._start_handlers()

    async def _start_servers(self) -> None:
        parts: list[Part] = []
        logs, own = self.logs(), self._own_servers
        postgres = broker = valkey = None
        if "POSTGRES" not in own:
            postgres = PostgresServer(self._data_dir / "postgres", self._postgres_port, log=logs["postgres"])
            parts.append(Part(postgres, f"{LOOPBACK}:{postgres.port}"))
        if "REDIS" not in own:
            valkey = ValkeyServer(self._data_dir / "valkey", self._valkey_port, log=logs["valkey"])
            parts.append(Part(valkey, valkey.url))
        if "KAFKA" not in own:
            broker = Broker(self._kafka_port, log=logs["kafka"])
            parts.append(Part(broker, broker.bootstrap_servers, on_return=self._make_topics))
        if self.inbox_url is not None:
            parts.append(self._inbox())
        await self._supervisor.start_together(*parts)
        for section in sorted(own):
            self._console.note(f"{section}: your own, from the environment")
        for directory in postgres.opened if postgres else []:
            if directory.is_relative_to(self._data_dir):
                continue
            self._console.note(f"{directory} was opened for passage (chmod o+x): PostgreSQL does not run as root")
        where = Embedded(
            postgres=postgres.dsn if postgres else None,
            kafka=broker.bootstrap_servers if broker else None,
            redis=valkey.url if valkey else None,
            smtp_port=self._smtp_port if "SMTP" not in own else None,
            msg91=self.inbox_url if "MSG91" not in own else None,
        )
        self._environment = for_handlers(self._own_environment, where, self._data_dir, DRAIN_SECONDS)

    def _inbox(self) -> Part:
        inbox = Inbox(
            smtp_port=self._smtp_port,
            http_port=self._inbox_port,
            file=self._data_dir / "inbox.sqlite",
            log=self.logs()["inbox"],
            environment=self._own_environment,
        )
        return Part(inbox, f"{inbox.url}  smtp {LOOPBACK}:{inbox.smtp_port}")

    async def _start_handlers(self) -> None:
        peers = {name: f"http://{LOOPBACK}:{port}/metrics" for name, port in self._handler_ports.items()}
        environment = {**self._environment, PEERS: json.dumps(peers)}
        if self.inbox_url is not None:
            environment[INBOX] = self.inbox_url
        parts = []
        for name in HANDLERS:
            port = self.port if name == "ingest" else self._handler_ports[name]
            program = handler(name, port=port, log=self.logs()[name], environment=environment, cli=self._cli)
            parts.append(Part(program, program.url, on_death=self._end_leases_of))
        await self._supervisor.start_together(*parts)

    async def _end_leases_of(self, pid: int) -> None:
        await self._command("end-leases", "--pid", str(pid))

    async def _make_topics(self) -> None:
        await self._command("topics")

    async def _command(self, *words: str) -> None:
        """One of our own commands, run to its end.

        Raises:
            Trouble: it failed.
        """
        name = f"taskflux {' '.join(words)}"
        process = Process(name, [*self._cli, *words], log=self.logs()[words[0]], env=self._environment)
        await run(process, _PREPARE_TIMEOUT)
