"""Values that tests render: the least that an install needs, and what each `ci/` file is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.chart.containers import Container, Outside, containers
from tests.chart.objects import pods
from tests.chart.rendering import CI, Rendering, render

LEAST: Final[Mapping[str, Any]] = {
    "settings": {
        "kafka": {"bootstrapServers": "kafka:9092"},
        "smtp": {"host": "smtp.example.com", "sender": "taskflux@example.com"},
    },
    "secrets": {"postgres": {"existingSecret": "postgres"}, "msg91": {"existingSecret": "msg91"}},
    "networkPolicy": {"apiFrom": [{"podSelector": {}}]},
}
"""What every install has to say that leaves no handler out."""

WITH_ALL_SERVERS: Final[Mapping[str, Any]] = {
    "settings": {"router": {"topic": "task-topic"}},
    "secrets": {"redis": {"existingSecret": "redis"}, "smtp": {"existingSecret": "smtp"}},
    "handlers": {"router": {"enabled": True}},
}
"""On top of `LEAST`: the router too, and whatever a handler can work with."""

EVERYTHING: Final[Mapping[str, Any]] = {
    "ingress": {"enabled": True},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}]},
    "monitoring": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}
"""On top of `WITH_ALL_SERVERS`: what is off by default is on."""

EACH_CI_FILE: Final = pytest.mark.parametrize(
    "ci", [pytest.param(path, id=path.name.removesuffix("-values.yaml")) for path in CI]
)


def least(*more: Mapping[str, Any], release: str = "tf") -> Rendering:
    """The least values, and more on top."""
    return render(LEAST, *more, release=release)


def full(*more: Mapping[str, Any], release: str = "tf") -> Rendering:
    """Everything on, and more on top."""
    return render(LEAST, WITH_ALL_SERVERS, EVERYTHING, *more, release=release)


def stand_ins(rendering: Rendering) -> Outside:
    """Every Secret and ConfigMap that the rendering's pods ask for and the chart does not make."""
    secrets: defaultdict[str, dict[str, str]] = defaultdict(dict)
    config_maps: defaultdict[str, dict[str, str]] = defaultdict(dict)
    own = {each.name for each in rendering.of("ConfigMap")}
    for pod in pods(rendering.objects):
        for volume in pod.spec.get("volumes") or []:
            for source in volume.get("projected", {}).get("sources", [volume]):
                if (secret := source.get("secret")) is not None:
                    name = secret.get("secretName") or secret["name"]
                    keys = [item["key"] for item in secret.get("items") or []]
                    secrets[name].update({key: stand_in(name, key) for key in keys})
            if (config := volume.get("configMap")) is not None and config["name"] not in own:
                config_maps[config["name"]].update(file="")
        for container in pod.all_containers:
            for source in container.get("envFrom") or []:
                if (secret := source.get("secretRef")) is not None:
                    secrets[secret["name"]].update()
            for variable in container.get("env") or []:
                if (reference := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
                    name, key = reference["name"], reference["key"]
                    secrets[name][key] = stand_in(name, key)
    return Outside(secrets, config_maps)


def stand_in(secret: str, key: str) -> str:
    """A value that is unmistakably this Secret's, and passes for what is read there."""
    told = f"{secret}.{key}.0123456789abcdef0123456789abcdef"
    if key == "url":
        return f"rediss://:{told}@redis"  # with a CA, no other scheme is taken
    return f"postgresql://{told}@postgres/taskflux" if key.endswith(("dsn", "uri")) else told


def all_containers(rendering: Rendering) -> Iterator[Container]:
    for pod in pods(rendering.objects):
        yield from containers(pod, rendering, stand_ins(rendering))


def handler_container(rendering: Rendering, handler: str) -> Container:
    deployment = rendering.handler("Deployment", handler)
    assert deployment is not None
    assert deployment.pod is not None
    (container,) = containers(deployment.pod, rendering, stand_ins(rendering))
    return container
