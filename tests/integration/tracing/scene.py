"""A whole TaskFlux of separate processes, with spans sent to a receiver and logs kept at DEBUG."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.loading import load
from tests.integration.providers.flow_api import FlowApi, flow_api
from tests.integration.providers.smtp_server import Postbox, smtp_server
from tests.integration.system.stack import PATIENCE, Stack, eventually, settings_for
from tests.integration.tracing.receiver import Receiver, Span, receiver
from tests.keys import KEY

TYPES = ("process-email", "process-sms", "simulated")


@dataclass
class Scene:
    """What the tests see and decide."""

    stack: Stack
    receiver: Receiver
    postbox: Postbox
    flow: FlowApi
    children: dict[str, Child]
    ports: dict[str, str]

    @classmethod
    async def build(cls, postgres: PostgresSettings, kafka: KafkaSettings, directory: Path) -> tuple[Self, Any]:
        """All parts run; the second of the answer closes them."""
        async with AsyncExitStack() as closing:
            kafka = kafka.model_copy(update={"topic_prefix": "tracing-"})
            received = closing.enter_context(receiver())
            postbox = await closing.enter_async_context(smtp_server(Postbox()))
            flow = await closing.enter_async_context(flow_api())
            settings = settings_for(postgres, kafka, RedisSettings())
            handlers: list[Any] = [load(name) for name in ("process-email", "process-sms", "process-simulated")]
            stack = await Stack.create(settings, handlers, directory)
            closing.push_async_callback(stack.close)
            scene = cls(stack, received, postbox, flow, {}, {})
            scene._spawn_all()
            await scene._all_ready()
            return scene, closing.pop_all()
        raise AssertionError

    def _spawn_all(self) -> None:
        mail = {
            "TASKFLUX_SMTP__HOST": "127.0.0.1",
            "TASKFLUX_SMTP__PORT": str(self.postbox.port),
            "TASKFLUX_SMTP__TLS": "none",
            "TASKFLUX_SMTP__SENDER": "tasks@example.org",
        }
        text = {
            "TASKFLUX_MSG91__BASE_URL": self.flow.url,
            "TASKFLUX_MSG91__AUTH_KEY": "key",
            "TASKFLUX_MSG91__TEMPLATE_ID": "5f1a2b3c4d5e6f7a8b9c0d1e",
        }
        webhook = {"TASKFLUX_MSG91__WEBHOOK_SECRET": "very-secret-path"}
        self.spawn("ingest", TASKFLUX_HTTP__PORT=str(self.stack.settings.http.port), **webhook)
        self.spawn("relay")
        self.spawn("dlq-sink")
        self.spawn("notify", **mail, **text)
        self.spawn("process-email", **mail)
        self.spawn("process-sms", TASKFLUX_NOTIFY__URL=self.notify_url, TASKFLUX_NOTIFY__KEY=KEY)
        self.spawn("process-simulated")

    def spawn(self, target: str, name: str | None = None, **environment: str) -> Child:
        """One more process; its spans come here, its log is JSON at DEBUG."""
        usual = {
            "TASKFLUX_OTEL__ENDPOINT": self.receiver.url,
            "TASKFLUX_OTEL__SAMPLE_RATIO": "1",
            "TASKFLUX_OTEL__HEADERS": '{"x-token": "let-me-in"}',
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=pod-1",
            "TASKFLUX_LOG__LEVEL": "DEBUG",
            "NO_PROXY": "127.0.0.1",
            "TASKFLUX_HTTP__PORT": str(free_port()),
        }
        environment = usual | environment
        self.ports[name or target] = environment["TASKFLUX_HTTP__PORT"]
        child = self.stack.spawn(target, name or target, cwd=None, **environment)
        self.children[name or target] = child
        return child

    @property
    def notify_url(self) -> str:
        """Where the notification service listens."""
        return f"http://127.0.0.1:{self.ports['notify']}"

    async def _all_ready(self) -> None:
        await asyncio.gather(*(self.ready(name) for name in self.children))

    async def ready(self, name: str) -> None:
        """Return once a process has started."""

        async def started() -> bool:
            child = self.children[name]
            if not child.running and "is taken" in self.log(name):  # a port that was free when it was chosen
                child.log.unlink()
                child.spawn()
            assert child.running, self.log(name)
            return any(line.get("message") == "started" for line in self.lines(name))

        await eventually(started, f"{name} starts", PATIENCE)

    def log(self, name: str) -> str:
        """What a process has written."""
        path = self.children[name].log
        return path.read_text() if path.exists() else ""

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The same; every whole line of it is JSON."""
        import json

        *lines, _ = self.log(name).split("\n")
        return [json.loads(line) for line in lines]

    async def submit(self, task_type: str, payload: Any, trace: str | None = None, **fields: Any) -> UUID:
        """Send a task, in the trace of this traceparent; its id."""
        document = {"taskType": task_type, "payload": payload, **fields}
        headers = {} if trace is None else {"traceparent": trace}
        answer = await self.stack.client.post("/tasks", json=document, headers=headers)
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["taskId"])

    async def trace_of(self, task: UUID) -> str:
        """The trace that a task names."""
        trace: str = (await self.stack.get(task))["traceId"]
        return trace

    async def until_tree(self, trace: str, expected: str) -> list[Span]:
        """The spans of a trace, once they are this tree."""
        wanted = "\n".join(line[8:] if line.startswith(" " * 8) else line for line in expected.strip("\n").split("\n"))
        wanted = wanted.strip()

        async def there() -> bool:
            return self.receiver.tree(trace) == wanted

        try:
            await eventually(there, "the tree of spans")
        except AssertionError:
            assert self.receiver.tree(trace) == wanted
        return self.receiver.trace(trace)

    async def exemplars(self, name: str, metric: str, **labels: str) -> list[Mapping[str, str]]:
        """What the exemplars on a process's metric say, on those series of it that have these labels."""
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                f"http://127.0.0.1:{self.ports[name]}/metrics",
                headers={"accept": "application/openmetrics-text", "authorization": f"Bearer {KEY}"},
            )
        families = text_string_to_metric_families(answer.raise_for_status().text)  # type: ignore[no-untyped-call]
        samples = [each for family in families if family.name == metric for each in family.samples if each.exemplar]
        return [each.exemplar.labels for each in samples if labels.items() <= each.labels.items()]

    async def post(self, path: str, body: Mapping[str, Any], status: int) -> httpx.Response:
        """Ask ingest for something."""
        answer = await self.stack.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer
