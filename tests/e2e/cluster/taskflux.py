"""TaskFlux as its users meet it: the API behind the ingress, and the mails in Mailpit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from tests.e2e.cluster.waiting import until

HOST: Final = "taskflux.localhost"
ENDED: Final = {"succeeded", "dead", "cancelled", "uncertain"}

Task = Mapping[str, Any]


class Api:
    """The API through the ingress at `url`."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"Host": HOST}, timeout=30, trust_env=False)

    def close(self) -> None:
        """Let go of its connections."""
        self._client.close()

    def answers(self) -> bool:
        """Whether the ingress leads to an API that serves."""
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """The answer, whatever it is."""
        return self._client.post(path, json=body)

    def submit(self, task_type: str, payload: Any, **more: Any) -> Task:
        """A task that was accepted."""
        answer = self.post("/tasks", {"taskType": task_type, "payload": payload, **more})
        assert answer.status_code == 202, answer.text
        task: Task = answer.json()
        return task

    def submit_many(self, tasks: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        """The ids of tasks that were all accepted, in one request."""
        answer = self._client.post("/tasks/batch", json=list(tasks))
        assert answer.status_code == 202, answer.text
        return [result["taskId"] for result in answer.json()]

    def get(self, path: str, **query: str | int) -> Any:
        """A document."""
        return self._client.get(path, params=query).raise_for_status().json()

    def task(self, task_id: str) -> Task:
        """A task as it stands."""
        found: Task = self.get(f"/tasks/{task_id}")
        return found

    def ended(self, task_id: str, seconds: float) -> Task:
        """A task once it has ended, within `seconds`."""

        def look() -> Task | None:
            task = self.task(task_id)
            return task if task["status"] in ENDED else None

        return until(f"task {task_id} ends", look, seconds)

    def status_is(self, task_id: str, status: str, seconds: float) -> Task:
        """A task once it stands so."""

        def look() -> Task | None:
            task = self.task(task_id)
            return task if task["status"] == status else None

        return until(f"task {task_id} is {status}", look, seconds)

    def dead_letter_of(self, task_id: str, seconds: float) -> Mapping[str, Any]:
        """The task's open dead letter, once the sink has stored it."""

        def look() -> Mapping[str, Any] | None:
            page = self.get("/dead-letters", limit=100)
            return next((letter for letter in page["items"] if letter["taskId"] == task_id), None)

        return until(f"task {task_id} is among the dead letters", look, seconds)


class Mailpit:
    """What was delivered, as Mailpit's API at `url` tells it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def close(self) -> None:
        """Let go of its connections."""
        self._client.close()

    def subjects(self, recipient: str) -> Sequence[str]:
        """The subjects of all mails to this address, one for each delivery."""
        found: list[str] = []
        while page := self._search(recipient, start=len(found))["messages"]:
            found += [message["Subject"] for message in page]
        return found

    def count(self, recipient: str) -> int:
        """How many mails to this address were delivered."""
        return int(self._search(recipient, limit=1)["messages_count"])

    def _search(self, recipient: str, *, start: int = 0, limit: int = 1000) -> Any:
        query: dict[str, str | int] = {"query": f'to:"{recipient}"', "start": start, "limit": limit}
        return self._client.get("/api/v1/search", params=query).raise_for_status().json()
