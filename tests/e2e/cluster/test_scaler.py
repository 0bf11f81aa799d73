"""The push scaler on a real KEDA: whatever happens to the relays or to KEDA, a task that waits at zero is claimed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from tests.e2e.cluster.conftest import Kill
from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.taskflux import Api
from tests.e2e.cluster.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("pushed")]

HANDLER = "process-email"
TO_ZERO = 240.0
AT_ONCE = 15.0
"""Seconds on a busy machine; on a quiet one it is less than two."""
LATER = 90.0
PAUSED = "autoscaling.keda.sh/paused-replicas"


@pytest.fixture(scope="module")
def pushed(installation: Installation) -> Iterator[None]:
    installation.taskflux({"keda.pushScaler.enabled": True})
    yield
    installation.taskflux()


def _at_zero(kube: Kube) -> None:
    until(f"{HANDLER} is at zero", lambda: not kube.pods(HANDLER), TO_ZERO)


def _claimed_after(api: Api, seconds: float, what: str) -> float:
    """Seconds until a mail is claimed that is accepted now; they are printed, too."""
    task = api.submit("email", {"to": "scaler@example.org", "subject": what, "body": "Good morning"})
    events = {
        each["event"]: datetime.fromisoformat(each["at"]) for each in api.ended(task["taskId"], seconds)["timeline"]
    }
    took = (events["claimed"] - events["accepted"]).total_seconds()
    print(f"\n{what}: claimed after {took:.1f} s")
    return took


@contextmanager
def _no_relay(kube: Kube) -> Iterator[None]:
    """While the block lasts there is no relay, and KEDA leaves it so."""
    kube.kubectl("annotate", "scaledobject/taskflux-relay", f"{PAUSED}=0", "--overwrite")
    try:
        until("there is no relay", lambda: not kube.pods("relay"), 120)
        yield
    finally:
        kube.kubectl("annotate", "scaledobject/taskflux-relay", f"{PAUSED}-")
        kube.kubectl("scale", "deployment/taskflux-relay", "--replicas=1")
        kube.kubectl("rollout", "status", "deployment/taskflux-relay", "--timeout=120s", timeout=130)


def _restart_keda(kube: Kube) -> None:
    kube.kubectl("rollout", "restart", "deployment/keda-operator", "--namespace=keda")
    kube.kubectl("rollout", "status", "deployment/keda-operator", "--namespace=keda", "--timeout=120s", timeout=130)


def test_a_task_wakes_its_handler_at_once(kube: Kube, api: Api) -> None:
    _at_zero(kube)
    assert _claimed_after(api, 60, "relay and KEDA at rest") < AT_ONCE


def test_a_relay_that_is_killed_five_times_in_a_row(kube: Kube, api: Api, kill: Kill) -> None:
    _at_zero(kube)
    (relay, *_) = kube.pods("relay")
    name = relay["metadata"]["name"]
    for restarts in range(5):
        until(
            "the relay runs again",
            lambda restarts=restarts: _restarts(kube, name) >= restarts,  # type: ignore[misc]
            240,
        )
        kill(name)
    assert _claimed_after(api, LATER, "relay killed five times in a row") < LATER


def _restarts(kube: Kube, pod: str) -> int:
    """How often its container was started again; -1 while it does not run."""
    (container,) = kube.get("pod", pod)["status"]["containerStatuses"]
    return int(container["restartCount"]) if "running" in container["state"] else -1


def test_no_relay_at_all(kube: Kube, api: Api) -> None:
    _at_zero(kube)
    with _no_relay(kube):
        assert _claimed_after(api, LATER, "no relay") < LATER
    _at_zero(kube)
    assert _claimed_after(api, LATER, "relay back") < LATER


def test_keda_restarted_while_there_is_no_relay(kube: Kube, api: Api) -> None:
    _at_zero(kube)
    with _no_relay(kube):
        _restart_keda(kube)
        assert _claimed_after(api, LATER, "KEDA restarted, no relay") < LATER
    _at_zero(kube)
    assert _claimed_after(api, LATER, "relay back after KEDA's restart") < LATER


def test_a_scaled_object_that_is_there_before_the_relay(kube: Kube, api: Api) -> None:
    _at_zero(kube)
    with _no_relay(kube):
        scaled = kube.kubectl("get", f"scaledobject/taskflux-{HANDLER}", "--output=json")
        kube.kubectl("delete", f"scaledobject/taskflux-{HANDLER}", "--wait=true")
        # As helm would: it takes no object over from another.
        kube.kubectl("replace", "--force", "--field-manager=helm", "--filename=-", stdin=scaled)
        assert _claimed_after(api, LATER, "ScaledObject ahead of the relay") < LATER
    began = time.monotonic()
    until("the autoscaler has the relay's figure", lambda: len(_metrics(kube)) == 2, 180)
    print(f"the autoscaler had the relay's metric {time.monotonic() - began:.0f} s after the relay was back")


def _metrics(kube: Kube) -> list[object]:
    found: list[object] = kube.get("hpa", f"keda-hpa-taskflux-{HANDLER}")["spec"]["metrics"]
    return found
