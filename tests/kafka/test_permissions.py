"""The permissions that docs/guides/strimzi.md names are enough: on a real Kafka that permits nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest
import trustme
import yaml
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest

from taskflux.local.ports import free_port
from taskflux.local.processes import Process
from tests.integration.stream.patience import eventually
from tests.kafka.secured import PASSWORD, USERNAME, SecuredKafka

GUIDE: Final = Path(__file__).parents[2] / "docs" / "guides" / "strimzi.md"
TASKFLUX: Final = Path(sys.executable).with_name("taskflux")
# The numbers of Kafka's protocol.
RESOURCES: Final = {"topic": 2, "group": 3, "cluster": 4}
PATTERNS: Final = {"literal": 3, "prefix": 4}
OPERATIONS: Final = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
ALLOW: Final = 3


class GuardedKafka(SecuredKafka):
    """Kafka that permits nothing to whoever logs in, and everything to whoever comes through the open listener."""

    def _properties(self) -> str:
        return super()._properties() + (
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n"
            "super.users=User:ANONYMOUS\n"
        )

    async def permit(self, rules: list[dict[str, Any]]) -> None:
        """Permit to `USERNAME` what the rules of a KafkaUser say."""
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap_servers)
        await client.bootstrap()
        try:
            for kind, name, pattern, operation in _permissions(rules):
                request = CreateAclsRequest(kind, name, pattern, f"User:{USERNAME}", "*", operation, ALLOW)
                answer = await client.send(1, request)
                assert [code for code, _ in answer.creation_responses] == [0], answer
        finally:
            await client.close()


def _permissions(rules: list[dict[str, Any]]) -> Iterator[tuple[int, str, int, int]]:
    for rule in rules:
        resource = rule["resource"]
        name, pattern = resource.get("name", "kafka-cluster"), PATTERNS[resource.get("patternType", "literal")]
        for operation in rule["operations"]:
            yield RESOURCES[resource["type"]], name, pattern, OPERATIONS[operation]


def _rules() -> list[dict[str, Any]]:
    """The rules of the guide's KafkaUser."""
    (user,) = (
        block for block in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "KafkaUser" in block
    )
    rules: list[dict[str, Any]] = yaml.safe_load(user)["spec"]["authorization"]["acls"]
    return rules


class Stack:
    """`taskflux dev` with the guarded broker, its own servers for the rest, and its logs below `folder`."""

    def __init__(self, folder: Path, broker: GuardedKafka) -> None:
        self.logs = folder / "data" / "logs"
        self._log = folder / "dev.log"
        strange = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
        self.environment = strange | {
            "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": broker.at("SASL"),
            "TASKFLUX_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "TASKFLUX_KAFKA__SASL_USERNAME": USERNAME,
            "TASKFLUX_KAFKA__SASL_PASSWORD": PASSWORD,
        }
        port = free_port()
        argv: list[str | Path] = [TASKFLUX, "dev", "--port", str(port), "--data-dir", folder / "data", "--no-samples"]
        self._dev = Process("taskflux dev", argv, log=self._log, env=self.environment)
        self.api = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30.0)

    async def __aenter__(self) -> Self:
        self._dev.spawn()
        await eventually(self._serves, "taskflux dev serves", 120.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.api.aclose()
        await self._dev.stop((signal.SIGINT, 30.0))

    async def outcome(self, fail_rate: int) -> str:
        """What becomes of a simulated task."""
        body = {"taskType": "simulated", "payload": {"failRate": fail_rate}, "maxAttempts": 1}
        where = (await self.api.post("/tasks", json=body)).headers["Location"]

        async def ended() -> str | None:
            status = str((await self.api.get(where)).json()["status"])
            return status if status in ("succeeded", "dead") else None

        return str(await eventually(ended, "the task has ended", 60.0))

    async def dead_letters(self) -> list[Any]:
        """What dlq-sink has stored."""
        return list((await self.api.get("/dead-letters")).json()["items"])

    async def _serves(self) -> bool:
        return "Serving on" in await asyncio.to_thread(self._log.read_text)


@pytest.mark.timeout(300)
async def test_a_user_with_the_permissions_of_the_guide_runs_everything(tmp_path: Path) -> None:
    async with GuardedKafka(tmp_path / "kafka", trustme.CA()) as broker:
        await broker.permit(_rules())
        async with Stack(tmp_path, broker) as stack:
            assert await stack.outcome(fail_rate=0) == "succeeded"
            assert await stack.outcome(fail_rate=1) == "dead"
            assert await eventually(stack.dead_letters, "dlq-sink has stored it", 60.0)
            doctor = await asyncio.create_subprocess_exec(
                TASKFLUX, "doctor", "--json", env=stack.environment, stdout=asyncio.subprocess.PIPE
            )
            findings = json.loads((await doctor.communicate())[0])["findings"]
        logs = {file.name: await asyncio.to_thread(file.read_text) for file in stack.logs.iterdir()}
    assert {name for name, text in logs.items() if "uthorization" in text} == set()
    of_kafka = [each for each in findings if each["subject"] == "Kafka"]
    assert of_kafka
    assert [each["told"] for each in of_kafka if "uthoriz" in f"{each['told']} {each['do']}"] == []
