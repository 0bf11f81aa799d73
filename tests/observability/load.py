"""A mixed load with failures: everything that a panel shows has to happen at least once."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import httpx
from aiokafka import AIOKafkaProducer

from tests.observability.mail import GONE

SECRET: Final = "a-secret-that-nobody-guesses"
MAILS: Final = 60
SMS: Final = 30
SIMULATED: Final = 120
BAD_RECIPIENTS: Final = 8
EXHAUSTED: Final = 4
POISON: Final = 3
ADOPTED: Final = 5

ENDING_WELL: Final = MAILS + SMS + SIMULATED + ADOPTED + 2
"""Tasks of the first round that succeed: those, one of the batch, and one that is delayed."""
DEAD: Final = BAD_RECIPIENTS + EXHAUSTED + POISON
AGAIN: Final = 3
ENDING_WELL_AGAIN: Final = AGAIN + ADOPTED
DEAD_AGAIN: Final = POISON + 1
"""Of the second round: with the one that is sent again, and dies again."""

Task = dict[str, Any]


def mail(number: int, domain: str = "example.org") -> Task:
    """An e-mail to somebody of that domain."""
    return {
        "taskType": "email",
        "payload": {"to": f"u{number}@{domain}", "subject": f"No. {number}", "body": "Hello.\n"},
    }


def sms(number: int) -> Task:
    """An SMS."""
    return {"taskType": "sms", "payload": {"mobile": f"91{9_000_000_000 + number}", "name": f"User {number}"}}


def simulated(number: int) -> Task:
    """Work of which every tenth fails sometimes."""
    return {"taskType": "simulated", "payload": {"delayMs": number % 40, "failRate": 0.3 if number % 10 == 0 else 0}}


class Load:
    """Sends it to one TaskFlux."""

    def __init__(self, api: httpx.AsyncClient, notify: httpx.AsyncClient, kafka: str) -> None:
        self._api = api
        self._notify = notify
        self._kafka = kafka

    async def send_all(self) -> None:
        """All of it is accepted, or refused as it should be, when this returns."""
        texts = await self._tasks([sms(number) for number in range(SMS)])
        await self._tasks([mail(number) for number in range(MAILS)])
        await self._tasks([simulated(number) for number in range(SIMULATED)])
        await self._failures()
        await self._batch_and_later()
        await self._refused()
        await self._records(0)
        await self._at_once()
        await self._reports(texts)

    async def send_again(self) -> None:
        """The rarer events once more: to Prometheus the first value of a counter is not an increase."""
        await self._records(ADOPTED)
        await self._reports(await self._tasks([sms(SMS + number) for number in range(AGAIN)]))
        page = (await self._api.get("/dead-letters", params={"errorClass": "Permanent", "limit": 1})).json()
        answer = await self._api.post(f"/dead-letters/{page['items'][0]['deadLetterId']}/replay")
        assert answer.status_code == 202, answer.text

    async def _tasks(self, tasks: list[Task]) -> list[str]:
        turns = asyncio.Semaphore(8)

        async def one(task: Task) -> str:
            async with turns:
                answer = await self._api.post("/tasks", json=task)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["taskId"])

        return list(await asyncio.gather(*(one(task) for task in tasks)))

    async def _failures(self) -> None:
        await self._tasks([mail(number, GONE) for number in range(BAD_RECIPIENTS)])
        failing = {"taskType": "simulated", "payload": {"simulateFail": True}, "maxAttempts": 1}
        await self._tasks([failing] * EXHAUSTED)

    async def _batch_and_later(self) -> None:
        batch = await self._api.post("/tasks/batch", json=[simulated(1), {"taskType": "email", "payload": {}}])
        assert [each["status"] for each in batch.json()] == [202, 422], batch.text
        await self._tasks([simulated(2) | {"delaySeconds": 3}, simulated(3) | {"delaySeconds": 86_400}])

    async def _refused(self) -> None:
        key = {"Idempotency-Key": "proof"}
        for _ in range(2):
            answer = await self._api.post("/tasks", json=simulated(4) | {"delaySeconds": 86_400}, headers=key)
            assert answer.status_code == 202, answer.text
        assert (await self._api.post("/tasks", json={"taskType": "nobody", "payload": {}})).status_code == 422
        assert (await self._api.get("/tasks/none")).status_code == 404

    async def _records(self, first: int) -> None:
        """Other producers' records: some are tasks, some are poison."""
        async with AIOKafkaProducer(bootstrap_servers=self._kafka) as producer:
            for number in range(first, first + ADOPTED):
                task = {"taskId": f"theirs-{number}", **mail(1000 + number)}
                await producer.send_and_wait("tasks.email", json.dumps(task).encode())
            for number in range(POISON):
                await producer.send_and_wait("tasks.email", f"no task {number}".encode())

    async def _at_once(self) -> None:
        payload = mail(0)["payload"]
        assert (await self._notify.post("/notifications/email", json=payload)).status_code == 200
        assert (await self._notify.post("/notifications/sms", json=sms(0)["payload"])).status_code == 200
        bad = await self._notify.post("/notifications/email", json=mail(0, GONE)["payload"])
        assert bad.status_code >= 400, bad.text

    async def _reports(self, tasks: list[str]) -> None:
        for task in tasks:
            report = {"requestId": "r", "CRQID": task, "status": "1", "desc": "DELIVERED", "number": "919000000000"}
            report["date"] = "2030-01-31 09:00:00"
            answer = await self._api.post(f"/webhooks/msg91/{SECRET}", json=report)
            assert answer.status_code < 300, answer.text
