"""The servers of this machine as a user of the chart names them: in values, and in Secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from taskflux.local.environment import SENDER, TEMPLATE_ID
from taskflux.local.ports import free_port
from tests.chart.containers import Outside
from tests.keys import KEY

MIXED_TOPIC: Final = "task-topic"


@dataclass(frozen=True)
class Servers:
    """Where they are. Nothing else than these addresses, and what each of them demands, differs from a cluster's."""

    postgres: str
    """DSN"""
    kafka: str
    """host:port"""
    redis: str
    """URL"""
    smtp_port: int
    msg91: str
    """base URL"""
    kafka_demands: Mapping[str, Any]
    """Settings of Kafka's that this broker asks for."""

    def values(self, prefix: str, handlers: Sequence[str]) -> dict[str, Any]:
        """Values of a release that uses them, its topics apart from others'; each handler has free ports."""
        return {
            "settings": {
                "kafka": {"bootstrapServers": self.kafka, "topicPrefix": prefix, **self.kafka_demands},
                "smtp": {"host": "127.0.0.1", "port": self.smtp_port, "tls": "none", "sender": SENDER},
                "msg91": {"baseUrl": self.msg91, "templateId": TEMPLATE_ID},
                "router": {"topic": f"{prefix}{MIXED_TOPIC}"},
                "http": {"host": "127.0.0.1"},
            },
            "secrets": {name: {"existingSecret": name} for name in ("postgres", "redis", "msg91", "auth")},
            "networkPolicy": {"apiFrom": [{"podSelector": {}}]},
            "handlerDefaults": {"scaling": {"maxReplicas": self.kafka_demands.get("partitions", 12)}},
            "handlers": {
                name: {"enabled": True, "port": free_port(), "managementPort": free_port()} for name in handlers
            },
        }

    def outside(self) -> Outside:
        """The Secrets that these values name, by the keys that values.yaml gives them."""
        return Outside(
            {
                "postgres": {"dsn": self.postgres},
                "redis": {"url": self.redis},
                "msg91": {"auth-key": "local"},
                "auth": {"key": KEY},
            }
        )
