"""What `taskflux dev` runs: the servers, what prepares them, the handlers, and those of the person's own.

A person's own handlers are never imported here: an error in one ends nothing. A child lists them before anything
starts, and again whenever a source was saved. If that fails, what runs keeps running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from taskflux.local import environment as env
from taskflux.local.console import Console, Echo, Trouble, rotate
from taskflux.local.ports import INBOX, LOOPBACK, PEERS, Ports
from taskflux.local.processes import Process, die_with_parent, run, write_whole
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.sources import Sources, shown
from taskflux.local.supervisor import CLI, DRAIN_SECONDS, Inbox, Part, Supervisor, handler

HANDLERS: Final = ("ingest", "relay", "process-email", "process-sms", "process-simulated", "notify", "dlq-sink")
_COMMANDS: Final = ("migrate", "topics", "end-leases")
_SERVERS: Final = ("postgres", "valkey", "kafka", "inbox")
_NOT_FREE: Final = frozenset({*_SERVERS, *_COMMANDS, "smtp", "prometheus", "grafana", "dev"})
"""Names of logs and ports that a handler of one's own cannot have."""
_PREPARE_TIMEOUT: Final = 120.0
_LIST_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class OwnHandlers:
    """The handlers of the modules that a person named."""

    names: tuple[str, ...] = ()
    """What they named: modules, or module:handler."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """Deployment → module:handler."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Deployment → task type."""
    replaced: tuple[str, ...] = ()
    """The built-in deployments that do not run, because one of these does their work."""
    sources: tuple[Path, ...] = ()


async def list_own(names: Sequence[str], environment: Mapping[str, str], cli: tuple[str, ...] = CLI) -> OwnHandlers:
    """Import the modules in a child, and list their handlers.

    Raises:
        Trouble: one cannot be imported, has none, or cannot run beside the others.
    """
    if not names:
        return OwnHandlers()
    child = await asyncio.create_subprocess_exec(
        *(*cli, "handlers", *names),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, env.VARIABLE: "off"},
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGKILL, os.getpid()),
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), _LIST_TIMEOUT)
    except TimeoutError:
        raise Trouble(f"importing {', '.join(names)} took longer than {_LIST_TIMEOUT:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
    said = err.decode(errors="replace").strip()
    try:
        found = json.loads(out) if child.returncode == 0 else None
    except ValueError:
        found = None
    if found is None:
        raise Trouble(said.rpartition("taskflux: ")[2] or f"importing {', '.join(names)} ended the process")
    listed = {f"{name}-handler" if (name := each["name"]) in _NOT_FREE else name: each for each in found["handlers"]}
    return OwnHandlers(
        tuple(names),
        {name: each["target"] for name, each in listed.items()},
        {name: each["type"] for name, each in listed.items()},
        tuple(found["replaced"]),
        tuple(Path(each) for each in found["sources"]),
    )


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
        own: OwnHandlers,
        cli: tuple[str, ...] = CLI,
    ) -> None:
        """`port` is wished for ingest; `cli` knows `run <handler>`, `handlers`, `migrate`, `topics`, `end-leases`."""
        self._data_dir = data_dir
        self._logs = data_dir / "logs"
        self._console = console
        self._supervisor = supervisor
        self._own_environment = own_environment
        self._own_servers = env.own_servers(own_environment)
        self._own = own
        self._built_in = [name for name in HANDLERS if name not in own.replaced]
        self._own_parts: dict[str, Part] = {}
        self._cli = cli
        self._started = asyncio.Event()
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
        self._ports = ports
        self._handler_ports: dict[str, int] = {}
        self._choose_handler_ports(*self._built_in, *self._own.targets)
        if wished and self.port != wished:
            self._console.note(f"port {wished} is taken: {self.port} is used")

    def _choose_handler_ports(self, *names: str) -> None:
        """One for each that has none yet; ingest reads where the metrics of the others are."""
        for name in names:
            if name != "ingest" and name not in self._handler_ports:
                self._handler_ports[name] = self._ports.choose(name, 8081)
        self._ports.save()
        run = {*self._built_in, *self._own.targets}
        peers = {name: f"http://{LOOPBACK}:{port}/metrics" for name, port in self._handler_ports.items() if name in run}
        write_whole(self._peers_file, json.dumps(peers))

    @property
    def _peers_file(self) -> Path:
        return self._data_dir / "peers.json"

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
        return {name: self._log(name) for name in (*_SERVERS, *_COMMANDS, *self._built_in, *self._own.targets)}

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

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
        self._started.set()

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
        where = env.Embedded(
            postgres=postgres.dsn if postgres else None,
            kafka=broker.bootstrap_servers if broker else None,
            redis=valkey.url if valkey else None,
            smtp_port=self._smtp_port if "SMTP" not in own else None,
            msg91=self.inbox_url if "MSG91" not in own else None,
        )
        self._environment = env.for_handlers(self._own_environment, where, self._data_dir, DRAIN_SECONDS)

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
        environment = {**self._environment, PEERS: str(self._peers_file)}
        if self.inbox_url is not None:
            environment[INBOX] = self.inbox_url
        parts = []
        for name in self._built_in:
            port = self.port if name == "ingest" else self._handler_ports[name]
            program = handler(name, port=port, log=self._log(name), environment=environment, cli=self._cli)
            parts.append(Part(program, program.url, on_death=self._end_leases_of))
        own = [self._own_part(name, target) for name, target in self._own.targets.items()]
        await asyncio.gather(self._supervisor.start_together(*parts), *map(self._supervisor.start_or_retry, own))

    def _own_part(self, name: str, target: str) -> Part:
        # What it prints is shown as it prints it.
        environment = {**self._environment, "PYTHONUNBUFFERED": "1"}
        port = self._handler_ports[name]
        program = handler(name, target=target, port=port, log=self._log(name), environment=environment, cli=self._cli)
        part = Part(program, f"{program.url}  {target}", on_death=self._end_leases_of)
        self._own_parts[name] = part
        return part

    def environment_of_commands(self) -> dict[str, str]:
        """The variables that lead a command to this stack."""
        return env.for_commands(self._environment, self._own_environment, self.url)

    async def watch(self, echo: Echo) -> None:
        """Start the person's own handlers again when their sources change, until cancelled.

        What is saved while the stack starts counts once it has started.
        """
        while self._own.names:
            try:
                watched = self._own.sources
                async with aclosing(Sources(watched).changes()) as changes:
                    async for changed in changes:
                        await self._started.wait()
                        await self._reload(changed, echo)
                        if self._own.sources != watched:
                            break
            except ModuleNotFoundError:
                self._console.note("sources are not watched: that needs watchfiles (pip install watchfiles)")
                return
            except OSError as error:
                how = "set WATCHFILES_FORCE_POLLING=true to poll them"
                self._console.warning("sources", f"cannot be watched ({error}): {how}")
                return

    async def _reload(self, changed: Sequence[Path], echo: Echo) -> None:
        """List the handlers anew and start each again. If they cannot be listed, what runs keeps running."""
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        self._console.note(f"{shown(changed[0])}{more} changed")
        try:
            own = await list_own(self._own.names, self._own_environment, self._cli)
        except Trouble as trouble:
            self._console.warning("not reloaded", f"{trouble}. The old process keeps running")
            return
        if own.replaced != self._own.replaced:
            self._console.warning("not reloaded", "other built-in handlers are replaced now: start taskflux dev again")
            return
        gone = [part for name, part in self._own_parts.items() if self._own.targets[name] != own.targets.get(name)]
        kept = [part for part in self._own_parts.values() if part not in gone]
        for part in gone:
            del self._own_parts[part.name]
            await self._supervisor.remove(part)
        self._own = own
        added = [name for name in own.targets if name not in self._own_parts]
        self._choose_handler_ports(*added)
        for name in added:
            echo.follow(name, self._log(name))
        new = [self._own_part(name, own.targets[name]) for name in added]
        await asyncio.gather(*map(self._supervisor.restart, kept), *map(self._supervisor.start_or_retry, new))

    async def _end_leases_of(self, pid: int) -> None:
        await self._command("end-leases", "--pid", str(pid))

    async def _make_topics(self) -> None:
        await self._command("topics", *(word for name in self._own.replaced for word in ("--without", name)))

    async def _command(self, *words: str) -> None:
        """One of our own commands, run to its end.

        Raises:
            Trouble: it failed.
        """
        name = f"taskflux {' '.join(words)}"
        process = Process(name, [*self._cli, *words], log=self.logs()[words[0]], env=self._environment)
        await run(process, _PREPARE_TIMEOUT)
