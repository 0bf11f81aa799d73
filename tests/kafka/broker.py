"""A real Apache Kafka in KRaft mode: one node that is broker and controller, on 127.0.0.1."""

from __future__ import annotations

import base64
import signal
import uuid
from pathlib import Path

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError

from taskflux.local.ports import LOOPBACK, free_port, is_free
from taskflux.local.processes import Process, run
from taskflux.local.servers import Server
from tests.kafka.classpath import java, server_classpath

HEAP = "512m"
# C1 only, and one garbage collector thread: a broker that lives for minutes beside the tests on the same two cores.
JVM = (f"-Xmx{HEAP}", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
# To standard error, which is the log file.
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")


class KafkaBroker(Server):
    """One Kafka server with its log in `data_dir`, which outlives `stop` and `kill`.

    The counterpart of `taskflux.local.servers.Broker`: the same methods, a real log and an idempotent producer.
    """

    name = "Apache Kafka"
    start_timeout = 90.0
    idempotent = True

    def __init__(
        self, data_dir: Path, port: int | None = None, *, log: Path | None = None, rebalance_delay: int = 0
    ) -> None:
        """`data_dir` is made at the first start; without `log` it writes to `<data_dir>.log`.

        Groups are made and left all the time here, by members that are killed: so the `rebalance_delay`, in
        milliseconds, is not Kafka's own of 3,000.
        """
        self.data_dir = data_dir.absolute()
        self._rebalance_delay = rebalance_delay
        super().__init__(port=port, log=log or self.data_dir.with_name(f"{self.data_dir.name}.log"))
        self._controller_port = free_port()

    @property
    def bootstrap_servers(self) -> str:
        """127.0.0.1:<port>"""
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Format the storage at the first start, start, and wait until clients are served.

        Raises:
            Trouble: no Java, no Maven, no jars, or it does not start; the text says why.
        """
        program: list[str | Path] = [java(), *JVM, *LOGGING, "-cp", server_classpath()]
        properties = self.data_dir / "server.properties"
        if not (self.data_dir / "log" / "meta.properties").exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            properties.write_text(self._properties())
            format_argv: list[str | Path] = ["kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", properties]
            format_argv += self._accounts()
            await run(Process("Kafka's storage tool", [*program, *format_argv], log=self.log), timeout=60.0)
        await self._launch(Process(self.name, [*program, "kafka.Kafka", properties], log=self.log, cwd=self.data_dir))

    async def stop(self) -> None:
        """A controlled shutdown, within 20 s."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 20.0))

    async def answers(self) -> bool:
        """True when it serves clients and coordinates groups.

        Metadata names a broker once the controller let it in; asking for a coordinator makes the topic of offsets.
        """
        if is_free(self.port):  # spares a log full of refused connections while the server loads
            return False
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=2000)
        try:
            await client.bootstrap()
            if not client.cluster.brokers():
                return False
            await client.coordinator_lookup(CoordinationType.GROUP, "anybody")
            return True
        except (KafkaError, OSError):
            return False
        finally:
            await client.close()

    def _accounts(self) -> list[str]:
        """What the storage is formatted with besides: who may log in."""
        return []

    def _properties(self) -> str:
        controller = f"{LOOPBACK}:{self._controller_port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.data_dir / "log"),
            "auto.create.topics.enable": "true",  # as by default: none of ours may be made by that
            # A single node: one replica of everything, and few partitions of what Kafka keeps for itself.
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": str(self._rebalance_delay),
            "group.min.session.timeout.ms": "1000",
            # After kill -9 the controller accepts the same node again only when its former session has expired.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            # Many small topics: no 10 MB of index for each segment, no 128 MB for the cleaner.
            "log.index.size.max.bytes": "1048576",
            "log.cleaner.dedupe.buffer.size": "4194304",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _cluster_id() -> str:
    """A random id in Kafka's own form: 16 bytes, base64 without padding, never beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text
