"""The servers outside the cluster, secured as in production, behind a link of their own.

Apache Kafka takes SASL_SSL only, PostgreSQL is verified by name (`verify-full`), Valkey and SMTP speak TLS, all by one
CA that is not the cluster's. Mailpit counts the mails. MSG91 is the stand-in of `taskflux dev`.
"""

from __future__ import annotations

import base64
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trustme

from tests.chart.tools import Missing
from tests.e2e.apiserver.credentials import Credentials
from tests.e2e.cluster.machine.control_plane import answers
from tests.e2e.cluster.machine.place import DOMAIN, NAMES, OUTSIDE, Place
from tests.k8s import gotools
from tests.kafka.broker import JVM, LOGGING
from tests.kafka.classpath import java, server_classpath
from tests.kafka.secured import keys_of

PASSWORD: Final = "right-6f1c"
"""Of every account; nothing of it can be reached from anywhere else."""
USER: Final = "taskflux"
POSTGRES: Final = Path("/usr/lib/postgresql")
PACKAGES: Final = ("postgresql", "redis-server", "openjdk-17-jre-headless", "maven")
"""Of Debian."""
MAILPIT: Final = f"http://{OUTSIDE}:8025"
CONNECTIONS: Final = 300
TOPIC: Final = "task-topic"
NEW_TOPIC: Final = f"""
import asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

async def make():
    admin = AIOKafkaAdminClient(bootstrap_servers="127.0.0.1:9092")
    await admin.start()
    try:
        await admin.create_topics([NewTopic("{TOPIC}", num_partitions=4, replication_factor=1)])
    finally:
        await admin.close()

asyncio.run(make())
"""


def host(name: str) -> str:
    """What pods call a server by."""
    return f"{name}.{DOMAIN}"


class Outside:
    """Kafka, PostgreSQL, Valkey, Mailpit and MSG91's stand-in."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._credentials = Credentials(place.directory / "outside-credentials")
        certificate, key = self._credentials.server("outside", "outside", *(host(name) for name in NAMES))
        self.ca, self._certificate, self._key = self._credentials.ca, certificate, key

    def up(self) -> None:
        """Start what does not run, and wait until each answers."""
        self.kafka()
        self._postgres()
        self._valkey()
        self.mailpit()
        self._msg91()

    def secrets(self) -> Mapping[str, Mapping[str, str]]:
        """Kubernetes' Secrets by name, as the values in charts/taskflux/ci/e2e-values.yaml read them."""
        ca = self.ca.read_text()
        dsn = f"postgresql://{USER}:{PASSWORD}@{host('postgres')}:5432/{USER}"
        return {
            "outside-postgres": {
                "dsn": f"{dsn}?sslmode=verify-full",
                "keda-dsn": f"{dsn}?sslmode=require",
                "ca.crt": ca,
            },
            "outside-kafka": {"username": USER, "password": PASSWORD, "ca.crt": ca},
            "outside-valkey": {"url": f"rediss://:{PASSWORD}@{host('valkey')}:6379/0", "ca.crt": ca},
            "outside-smtp": {"ca.crt": ca},
            "outside-msg91": {"auth-key": PASSWORD, "webhook": f"webhook-{PASSWORD}-0123"},
        }

    def kafka(self, rebalance_delay: int = 0) -> None:
        """One node, broker and controller. `rebalance_delay`: milliseconds that a new group waits for more members."""
        own = self._place.directory / "kafka"
        program: list[str | Path] = [java(), *JVM, *LOGGING, "-cp", server_classpath()]
        properties = own / "server.properties"
        own.mkdir(exist_ok=True)
        properties.write_text(self._kafka_properties(own, rebalance_delay))
        if not (own / "log" / "meta.properties").exists():
            account = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
            cluster = base64.urlsafe_b64encode(b"taskflux-cluster").rstrip(b"=").decode()
            self._place.outside.run(
                *program, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", properties, "--add-scram", account
            )
        self._start("kafka", 9093, *program, "kafka.Kafka", properties)
        # Other producers' topic, which the chart does not make.
        self._place.outside.run(sys.executable, "-P", "-c", NEW_TOPIC)

    def _kafka_properties(self, own: Path, rebalance_delay: int) -> str:
        keys, trusted = own / "keys.pem", own / "ca.pem"
        if not keys.exists():
            authority = trustme.CA.from_pem(self.ca.read_bytes(), self.ca.with_suffix(".key").read_bytes())
            keys.write_bytes(keys_of(authority.issue_cert(host("kafka"))))
            shutil.copyfile(self.ca, trusted)
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": "1@127.0.0.1:9094",
            "listeners": f"LOCAL://127.0.0.1:9092,SASL://{OUTSIDE}:9093,CONTROLLER://127.0.0.1:9094",
            "advertised.listeners": f"LOCAL://127.0.0.1:9092,SASL://{host('kafka')}:9093",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "LOCAL",
            "listener.security.protocol.map": "LOCAL:PLAINTEXT,SASL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config":
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keys),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(trusted),
            "log.dirs": str(own / "log"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": str(rebalance_delay),
            # Longer than any topic of ours keeps its records.
            "offsets.retention.minutes": "20160",
        }  # fmt: skip
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _postgres(self) -> None:
        binaries = max(POSTGRES.glob("*/bin"), default=None, key=lambda each: int(each.parent.name))
        if binaries is None:
            raise Missing("PostgreSQL's server is missing: apt-get install postgresql")
        own = self._place.directory / "postgres"
        data = own / "data"
        owner = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
        if not (data / "PG_VERSION").exists():
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(mode=0o700)
            for file, name in ((self._certificate, "server.crt"), (self._key, "server.key")):
                shutil.copyfile(file, own / name)
                (own / name).chmod(0o600)
            password = own / "password"
            password.write_text(PASSWORD)
            for path in (own, *own.iterdir()):
                shutil.chown(path, "postgres", "postgres")
            initdb = (binaries / "initdb", f"--pgdata={data}", f"--username={USER}", f"--pwfile={password}")
            self._place.outside.run(*owner, *initdb, "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8")
            (data / "pg_hba.conf").write_text("hostssl all all 0.0.0.0/0 scram-sha-256\nlocal all all trust\n")
        settings = {
            "listen_addresses": OUTSIDE,
            "unix_socket_directories": str(own),
            "ssl": "on",
            "ssl_cert_file": str(own / "server.crt"),
            "ssl_key_file": str(own / "server.key"),
            "max_connections": str(CONNECTIONS),
            "fsync": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._start("postgres", 5432, binaries / "postgres", "-D", data, *options, user="postgres")
        socket_ = ("--host", own, "--username", USER)
        if USER not in self._place.outside.run(
            "psql", *socket_, "--dbname=postgres", "-Atc", "SELECT datname FROM pg_database"
        ):
            self._place.outside.run("createdb", *socket_, USER)

    def _valkey(self) -> None:
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            raise Missing("Valkey or Redis is missing: apt-get install redis-server")
        tls = {"tls-cert-file": self._certificate, "tls-key-file": self._key, "tls-ca-cert-file": self.ca}
        options = {**tls, "port": "0", "tls-port": "6379", "tls-auth-clients": "no", "bind": OUTSIDE, "save": ""}
        options |= {"requirepass": PASSWORD, "appendonly": "no", "dir": "/"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._start("valkey", 6379, program, *arguments)

    def mailpit(self) -> None:
        """An SMTP server that keeps what it takes, and counts it."""
        self._start(
            "mailpit",
            1025,
            gotools.mailpit(),
            f"--smtp={OUTSIDE}:1025",
            f"--listen={OUTSIDE}:8025",
            f"--smtp-tls-cert={self._certificate}",
            f"--smtp-tls-key={self._key}",
            "--smtp-require-starttls",
            "--smtp-disable-rdns",
            "--max=0",
            "--disable-version-check",
            f"--database={self._place.directory / 'mailpit.sqlite'}",
            ready=answers(f"{MAILPIT}/readyz"),
        )

    def _msg91(self) -> None:
        self._start(
            "msg91",
            8091,
            sys.executable,
            "-P",
            "-m",
            "taskflux.local.inbox",
            f"--host={OUTSIDE}",
            "--http-port=8091",
            f"--name={host('msg91')}",
            f"--file={self._place.directory / 'msg91.sqlite'}",
        )

    def _start(
        self,
        name: str,
        port: int,
        *argv: str | Path,
        user: str | None = None,
        ready: Callable[[], object] | None = None,
    ) -> None:
        listens = ready or (lambda: socket.create_connection((OUTSIDE, port), timeout=5).close())
        self._place.start(name, *argv, where=self._place.outside, user=user, ready=listens)
