"""Every pod of a release: handlers, the set-up, the pruning, the tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest

from taskflux.worker.executor import PAYLOAD_BYTES
from taskflux.worker.settings import HttpSettings
from tests.chart.cases import EACH_CI_FILE, full
from tests.chart.containers import quantity
from tests.chart.objects import Object, PodTemplate, pods
from tests.chart.rendering import render

# Volumes that the restricted profile of Pod Security allows.
VOLUMES: Final = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def unrestricted(pod: PodTemplate) -> Iterator[str]:
    """What the restricted profile of Pod Security (and we, who also want a root file system that is read-only, no
    token and no capability at all) would refuse.
    """
    spec = pod.spec
    yield from (f"{key} is true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes") or []:
        if not VOLUMES & volume.keys():
            yield f"the volume {volume['name']} is of {sorted(volume.keys() - {'name'})}"
    if spec.get("automountServiceAccountToken") is not False:
        yield "the service account's token is mounted"
    whole = spec.get("securityContext") or {}
    for container in pod.all_containers:
        yield from (f"{container['name']}: {fault}" for fault in _unrestricted(container, whole))


def _unrestricted(container: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    effective = {**whole, **own}
    if effective.get("runAsNonRoot") is not True or effective.get("runAsUser") in (None, 0):
        yield "it may run as root"
    if (effective.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "its seccomp profile is not the runtime's default"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "it may become privileged"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield f"its capabilities are {own.get('capabilities')}"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    if any("hostPort" in port for port in container.get("ports") or []):
        yield "it takes a port of the node"


@EACH_CI_FILE
def test_every_pod_passes_restricted_pod_security(ci: Path) -> None:
    found = [f"{pod}: {fault}" for pod in pods(render(ci).objects) for fault in unrestricted(pod)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("pod", "hostNetwork", True),
        ("pod", "automountServiceAccountToken", True),
        ("pod", "volumes", [{"name": "node", "hostPath": {"path": "/"}}]),
        ("context", "runAsUser", 0),
        ("context", "runAsNonRoot", False),
        ("context", "seccompProfile", {"type": "Unconfined"}),
        ("container", "allowPrivilegeEscalation", True),
        ("container", "privileged", True),
        ("container", "readOnlyRootFilesystem", False),
        ("container", "capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
    ],
)
def test_the_check_itself_finds_what_is_not_restricted(where: str, key: str, value: object) -> None:
    document: Any = deepcopy(full().of("Deployment")[0].document)
    spec = document["spec"]["template"]["spec"]
    place = {"pod": spec, "context": spec["securityContext"], "container": spec["containers"][0]["securityContext"]}
    place[where][key] = value
    pod = Object(document).pod
    assert pod is not None
    assert len(list(unrestricted(pod))) == 1


@EACH_CI_FILE
def test_every_container_has_resource_requests_and_limits(ci: Path) -> None:
    for pod in pods(render(ci).objects):
        for container in pod.all_containers:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), f"{pod}: {container['name']}"
            assert "memory" in resources["limits"], f"{pod}: {container['name']}"
            assert "cpu" not in resources["limits"], f"{pod}: a CPU limit throttles what it could do at once"


@EACH_CI_FILE
def test_every_container_has_a_tmp_that_counts_towards_its_memory_limit(ci: Path) -> None:
    for pod in pods(render(ci).objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
        for container in pod.all_containers:
            (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == "/tmp")
            room = volumes[mount["name"]]["emptyDir"]
            assert room["medium"] == "Memory"
            limit = container["resources"]["limits"]["memory"]
            assert quantity(room["sizeLimit"]) < quantity(limit), f"{pod}: a full /tmp ends it"


@EACH_CI_FILE
def test_the_kubelet_waits_longer_than_a_handler_drains(ci: Path) -> None:
    rendering = render(ci)
    for deployment in rendering.of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        settings = settings_of(pod, rendering.of("ConfigMap"))
        drain = float(settings["TASKFLUX_WORKER__DRAIN_SECONDS"])
        drain += float(settings.get("TASKFLUX_HTTP__LINGER_SECONDS", 0))
        assert pod.spec["terminationGracePeriodSeconds"] >= drain + 15, str(deployment)


def settings_of(pod: PodTemplate, maps: Any) -> Mapping[str, str]:
    """The plain environment of a pod's only container."""
    (container,) = pod.containers
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        if "configMapRef" in source:
            (data,) = (each.data for each in maps if each.name == source["configMapRef"]["name"])
            found |= data
    return found | {each["name"]: each["value"] for each in container.get("env") or [] if "value" in each}


def test_every_handler_is_probed_where_it_answers() -> None:
    for deployment in full().of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        (container,) = pod.containers
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        # Not readyz: a handler that waits for PostgreSQL at its start must not be killed for it.
        assert container["startupProbe"]["httpGet"]["path"] in ("/livez", "/readyz")
        ports = {each["name"] for each in container["ports"]}
        assert all(container[probe]["httpGet"]["port"] in ports for probe in PROBES)


PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")


def test_probes_take_the_numbers_that_are_given() -> None:
    numbers = {"periodSeconds": 7, "timeoutSeconds": 5, "failureThreshold": 9}
    rendering = full({"handlerDefaults": dict.fromkeys(PROBES, numbers)})
    for deployment in rendering.of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        for probe in PROBES:
            assert numbers.items() <= pod.containers[0][probe].items()


BASE = 96 * 1024**2
"""Bytes of a process that does nothing; most have some 65 MiB."""
FOLD = 5
"""Memory that a byte of work takes at its most: measured are 4.5 in ingest, 5.2 in notify, 5 for mails in a worker."""


@EACH_CI_FILE
def test_the_memory_limit_follows_from_what_a_process_may_hold(ci: Path) -> None:
    rendering = render(ci)
    for deployment in rendering.of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        settings = settings_of(pod, rendering.of("ConfigMap"))
        in_flight = int(settings.get("TASKFLUX_HTTP__BYTES_IN_FLIGHT", HttpSettings().bytes_in_flight))
        serves = pod.labels["app.kubernetes.io/component"] in ("ingest", "notify")
        held = in_flight if serves else PAYLOAD_BYTES
        (container,) = pod.containers
        assert quantity(container["resources"]["limits"]["memory"]) >= BASE + FOLD * held, str(deployment)
