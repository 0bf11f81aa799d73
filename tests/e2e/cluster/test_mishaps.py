"""Failures: a pod killed in mid-task, a task that fails permanently, an upgrade under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import pytest

from tests.e2e.cluster.conftest import Kill
from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.taskflux import Api
from tests.e2e.cluster.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AWAKE = 180.0
LEASE = 30.0
"""Seconds until a silent worker's tasks go to another (TASKFLUX_WORKER__LEASE_SECONDS)."""
BETWEEN_REQUESTS = 0.1


def test_a_task_whose_container_is_killed_is_run_again(kube: Kube, api: Api, kill: Kill) -> None:
    until("process-simulated is at zero", lambda: not kube.pods("process-simulated"), 240)
    task = api.submit("simulated", {"delayMs": 20_000})
    api.status_is(task["taskId"], "running", AWAKE)
    (pod,) = kube.pods("process-simulated")
    kill(pod["metadata"]["name"])

    ended = api.ended(task["taskId"], LEASE + AWAKE)
    # What a lost worker ran is not held against the task: it has its attempt back.
    assert (ended["status"], ended["attempts"]) == ("succeeded", 1)
    happened = [event["event"] for event in ended["timeline"]]
    assert (happened.count("claimed"), happened.count("lease-ran-out")) == (2, 1)


def test_a_pod_that_is_deleted_in_the_middle_of_a_task_finishes_it_first(kube: Kube, api: Api) -> None:
    until("process-simulated is at zero", lambda: not kube.pods("process-simulated"), 240)
    task = api.submit("simulated", {"delayMs": 15_000})
    api.status_is(task["taskId"], "running", AWAKE)
    (pod,) = kube.pods("process-simulated")
    kube.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

    ended = api.ended(task["taskId"], AWAKE)
    assert (ended["status"], ended["attempts"]) == ("succeeded", 1)


def test_permanently_failed_tasks_become_dead_letters_and_are_replayed(kube: Kube, api: Api) -> None:
    task = api.submit("simulated", {"delayMs": 1, "simulateFail": True}, maxAttempts=1)
    assert api.ended(task["taskId"], AWAKE)["status"] == "dead"
    letter = api.dead_letter_of(task["taskId"], AWAKE)
    assert letter["errorClass"] == "Transient"

    answer = api.post(f"/dead-letters/{letter['deadLetterId']}/replay", {"payload": {"delayMs": 1}})
    assert answer.status_code == 202, answer.text
    assert api.ended(task["taskId"], AWAKE)["status"] == "succeeded"
    until("the dead letters are drained and their sink goes", lambda: not kube.pods("dlq-sink"), 240)


@dataclass
class Load:
    """What a steady stream of requests met."""

    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextmanager
def _load(api: Api) -> Iterator[Load]:
    """A task every tenth of a second while the block lasts."""
    load, over = Load(), threading.Event()

    def submit() -> None:
        while not over.wait(BETWEEN_REQUESTS):
            try:
                answer = api.post("/tasks", {"taskType": "simulated", "payload": {"delayMs": 200}})
            except httpx.TransportError as error:
                load.refused.append(repr(error))
                continue
            if answer.status_code == 202:
                load.accepted.append(answer.json()["taskId"])
            else:
                load.refused.append(f"{answer.status_code} {answer.text[:200]}")

    thread = threading.Thread(target=submit, name="load")
    thread.start()
    try:
        yield load
    finally:
        over.set()
        thread.join()


def test_an_upgrade_under_load_refuses_no_request_and_loses_no_task(
    kube: Kube, api: Api, installation: Installation
) -> None:
    before = {pod["metadata"]["uid"] for pod in kube.pods("ingest")}
    with _load(api) as load:
        until("the load is on", lambda: len(load.accepted) > 20, 60)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        installation.taskflux({"handlerDefaults.podAnnotations": {"example.org/rolled": stamp}})
        until(
            "every pod of ingest is a new one",
            lambda: not before & {p["metadata"]["uid"] for p in kube.pods("ingest")},
            120,
        )
        during = len(load.accepted)
        until("the load goes on after it", lambda: len(load.accepted) > during + 20, 60)
    assert load.refused == []
    ended = [api.ended(task_id, 300) for task_id in load.accepted]
    assert {task["status"] for task in ended} == {"succeeded"}
