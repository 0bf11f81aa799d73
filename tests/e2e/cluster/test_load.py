"""Under load, and while something is missing: nothing is lost, and nothing happens twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import uuid4

import pytest

from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.machine.outside import Outside
from tests.e2e.cluster.machine.place import Place
from tests.e2e.cluster.place import OfThisMachine, Where
from tests.e2e.cluster.taskflux import Api, Mailpit
from tests.e2e.cluster.waiting import until
from tests.k8s.files import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MAILS = 5000
RUN = ROOT / "build" / "e2e-mails.csv"
"""What waits, and the pods, over time: `python -m tests.e2e.cluster.plot` draws it."""
BATCH = 500
TO_ZERO = 240.0
AWAY = 45.0
"""Seconds for which there is no KEDA."""
WITHOUT_SMTP = 300.0


def _mail(to: str, number: int) -> dict[str, object]:
    return {"taskType": "email", "payload": {"to": to, "subject": f"{number}", "body": "Good morning"}}


def _submit(api: Api, to: str, count: int) -> Sequence[str]:
    mails = [_mail(to, number) for number in range(count)]
    return [task for at in range(0, count, BATCH) for task in api.submit_many(mails[at : at + BATCH])]


def _each_once(mailpit: Mailpit, to: str, count: int) -> None:
    subjects = Counter(mailpit.subjects(to))
    assert subjects == Counter(f"{number}" for number in range(count)), subjects.most_common(3)


def test_five_thousand_mails_from_zero_and_back_are_each_delivered_once(kube: Kube, api: Api, mailpit: Mailpit) -> None:
    until("process-email is at zero", lambda: not kube.pods("process-email"), TO_ZERO)
    to = f"{uuid4().hex}@example.org"
    RUN.parent.mkdir(parents=True, exist_ok=True)
    with RUN.open("w") as run:
        run.write("seconds,waiting,pods\n")
        began = time.monotonic()
        most = 0

        def look() -> tuple[int, int]:
            nonlocal most
            waiting, pods = MAILS - mailpit.count(to), len(kube.pods("process-email"))
            most = max(most, pods)
            run.write(f"{time.monotonic() - began:.2f},{waiting},{pods}\n")
            return waiting, pods

        _submit(api, to, MAILS)
        until("all mails are delivered", lambda: look()[0] == 0, 900)
        _each_once(mailpit, to, MAILS)
        assert most > 1
        until("process-email is at zero again", lambda: look()[1] == 0, TO_ZERO)
    _each_once(mailpit, to, MAILS)


def test_a_burst_at_every_handler_at_once_loses_nothing(api: Api) -> None:
    to = f"{uuid4().hex}@example.org"
    tasks: list[dict[str, object]] = [_mail(to, number) for number in range(100)]
    tasks += [{"taskType": "simulated", "payload": {"delayMs": 50}} for _ in range(100)]
    tasks += [
        {"taskType": "sms", "payload": {"mobile": f"9198123{number:05d}", "name": "Ann"}} for number in range(100)
    ]
    ended = [api.ended(task, 300) for task in api.submit_many(tasks)]
    assert {(task["status"], task["attempts"]) for task in ended} == {("succeeded", 1)}


def test_what_is_accepted_without_keda_is_done_when_it_runs_again(kube: Kube, api: Api, mailpit: Mailpit) -> None:
    until("process-email is at zero", lambda: not kube.pods("process-email"), TO_ZERO)
    to = f"{uuid4().hex}@example.org"
    kube.kubectl("scale", "deployment/keda-operator", "--namespace=keda", "--replicas=0")
    try:
        kube.kubectl("wait", "pod", "--selector=app=keda-operator", "--namespace=keda", "--for=delete", "--timeout=60s")
        tasks = _submit(api, to, 50)
        time.sleep(AWAY)
        assert mailpit.count(to) == 0
    finally:
        kube.kubectl("scale", "deployment/keda-operator", "--namespace=keda", "--replicas=1")
    assert {api.ended(task, 180)["status"] for task in tasks} == {"succeeded"}
    _each_once(mailpit, to, 50)


def test_ten_minute_tasks_are_neither_interrupted_nor_repeated_by_scale_in(kube: Kube, api: Api) -> None:
    """A pod drains as long as its type's timeout, whichever the ReplicaSet chooses."""
    long = api.submit_many([{"taskType": "simulated", "payload": {"delayMs": 590_000}}] * 30)
    short = api.submit_many([{"taskType": "simulated", "payload": {"delayMs": 90_000}}] * 40)
    until("there are three pods", lambda: len(kube.pods("process-simulated")) > 2, 120)
    until("one of them is on its way out", lambda: _leaving(kube, "process-simulated") > 0, 400)
    ended = [api.ended(task, 900) for task in [*short, *long]]
    assert {(task["status"], task["attempts"]) for task in ended} == {("succeeded", 1)}


def _leaving(kube: Kube, handler: str) -> int:
    every = kube.get("pods", f"--selector=app.kubernetes.io/component={handler}")["items"]
    return len(every) - len(kube.pods(handler))


@pytest.fixture
def outside(where: Where) -> Outside:
    """The servers, where they are ours to stop."""
    if not isinstance(where, OfThisMachine):
        pytest.skip("only this machine's cluster has servers that the tests may stop")
    return Outside(Place())


def test_while_smtp_is_down_no_pods_are_added_and_all_is_delivered_after(
    kube: Kube, api: Api, mailpit: Mailpit, outside: Outside
) -> None:
    until("process-email is at zero", lambda: not kube.pods("process-email"), TO_ZERO)
    to = f"{uuid4().hex}@example.org"
    Place().stop("mailpit")
    try:
        tasks = _submit(api, to, 500)
        over = time.monotonic() + WITHOUT_SMTP
        until("a pod has tried", lambda: bool(kube.pods("process-email")), 120)
        # What was published before the circuit opened may call for more; then it must not.
        time.sleep(60)
        pods = _most_until(over, lambda: len(kube.pods("process-email")))
    finally:
        outside.mailpit()
    assert pods <= 1
    assert {api.ended(task, 600)["status"] for task in tasks} == {"succeeded"}
    _each_once(mailpit, to, 500)


def _most_until(end: float, look: Callable[[], int]) -> int:
    most = 0
    while time.monotonic() < end:
        most = max(most, look())
        time.sleep(2)
    return most
