"""From zero and back: a mail's whole way through a cluster, and what a backlog does to the number of pods."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.taskflux import Api, Mailpit
from tests.e2e.cluster.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TO_ZERO = 240.0
"""Seconds: the cooldown of k8s/values-dev.yaml (20), what is left to drain (30), and a slow machine's margin."""
AWAKE = 120.0


def test_a_mail_wakes_its_handler_is_delivered_once_and_lets_the_handler_go_again(
    kube: Kube, api: Api, mailpit: Mailpit
) -> None:
    until("process-email is at zero", lambda: not kube.pods("process-email"), TO_ZERO)
    to = f"{uuid4().hex}@example.org"
    task = api.submit("email", {"to": to, "subject": "From zero", "body": "Good morning"})
    until("process-email has a pod", lambda: bool(kube.pods("process-email")), AWAKE)
    ended = api.ended(task["taskId"], AWAKE)
    assert (ended["status"], ended["attempts"]) == ("succeeded", 1)
    assert mailpit.subjects(to) == ["From zero"]
    until("process-email is at zero again", lambda: not kube.pods("process-email"), TO_ZERO)


def test_a_short_message_is_delivered_too(api: Api) -> None:
    task = api.submit("sms", {"mobile": "919812345678", "name": "Ann"})
    assert api.ended(task["taskId"], AWAKE * 2)["status"] == "succeeded"


def test_a_backlog_brings_more_pods_and_each_task_runs_once(kube: Kube, api: Api) -> None:
    ids = api.submit_many([{"taskType": "simulated", "payload": {"delayMs": 4000}}] * 200)
    most = 0

    def scaled_out() -> bool:
        nonlocal most
        most = max(most, len(kube.pods("process-simulated")))
        return most > 1

    until("process-simulated has more than one pod", scaled_out, AWAKE)
    attempts = [api.ended(task_id, 300)["attempts"] for task_id in ids]
    assert attempts == [1] * len(ids)
    assert most <= _most(kube, "process-simulated")
    until("process-simulated is at zero again", lambda: not kube.pods("process-simulated"), TO_ZERO)


def _most(kube: Kube, handler: str) -> int:
    return int(kube.get("scaledobject", f"taskflux-{handler}")["spec"]["maxReplicaCount"])


def test_helm_test_passes(installation: Installation) -> None:
    assert "Phase:          Succeeded" in installation.test()
