"""NetworkPolicies where they are enforced: what is not allowed fails, and what is allowed does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube, Refused
from tests.e2e.cluster.machine.place import OUTSIDE
from tests.e2e.cluster.place import OfThisMachine, Where

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()"
STRANGER = "stranger"


@pytest.fixture(scope="module")
def stranger(where: Where, installation: Installation, kube: Kube) -> Iterator[str]:
    """A pod of another namespace; its name."""
    if not isinstance(where, OfThisMachine):
        pytest.skip("only this machine's cluster is known to enforce NetworkPolicies")
    kube.apply(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": STRANGER, "namespace": "default"},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {
                            "name": "python",
                            "image": installation.image,
                            "imagePullPolicy": "Never",
                            "command": ["python", "-c", "import time; time.sleep(3600)"],
                        }
                    ],
                },
            }
        ),
        namespace="default",
    )
    kube.kubectl("wait", f"pod/{STRANGER}", "--namespace=default", "--for=condition=Ready", "--timeout=60s")
    yield STRANGER
    kube.kubectl("delete", f"pod/{STRANGER}", "--namespace=default", "--wait=false")


def _connects(kube: Kube, pod: str, namespace: str, host: str, port: int) -> bool:
    command = ("exec", pod, f"--namespace={namespace}", "--", "python", "-c", CONNECT, host, str(port))
    try:
        kube.kubectl(*command)
    except Refused as refused:
        if "TimeoutError" in str(refused):  # dropped, as by a policy; else something is wrong with the test
            return False
        raise
    return True


def test_a_pod_of_another_namespace_cannot_call_the_api(stranger: str, kube: Kube) -> None:
    address = kube.pods("ingest")[0]["status"]["podIP"]
    assert not _connects(kube, stranger, "default", address, 8080)


def test_the_same_pod_is_let_through_where_no_policy_forbids_it(stranger: str, kube: Kube) -> None:
    assert _connects(kube, stranger, "default", OUTSIDE, 8025)


def test_a_pod_of_ours_reaches_its_servers_and_nothing_else(stranger: str, kube: Kube) -> None:
    pod = kube.pods("ingest")[0]["metadata"]["name"]
    assert _connects(kube, pod, kube.namespace, OUTSIDE, 5432)
    assert not _connects(kube, pod, kube.namespace, OUTSIDE, 8025)
