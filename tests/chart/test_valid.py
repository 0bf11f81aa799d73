"""Every rendered object against strict schemas; and the check itself against known faults."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import EACH_CI_FILE, full
from tests.chart.objects import Object
from tests.chart.rendering import CHART, CI, Rendering, helm, render
from tests.chart.strict import faults

pytestmark = pytest.mark.usefixtures("definitions")

Break = Callable[[Any], None]


@EACH_CI_FILE
def test_every_object_is_valid(ci: Path) -> None:
    rendering = render(ci)
    found = [fault for each in rendering.objects for fault in faults(each, rendering)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("keda", [True, False])
def test_every_object_is_valid_with_everything_on(keda: bool) -> None:
    rendering = full(
        {
            "keda": {"enabled": keda, "prometheus": {"serverAddress": "http://prometheus:9090"}},
            "handlers": {"ingest": {"scaling": {"requestRate": 50 if keda else 0}}},
            "ingress": {"className": "traefik", "tls": [{"secretName": "tls", "hosts": ["taskflux.example.com"]}]},
            "settings": {"otel": {"endpoint": "http://collector:4318"}, "kafka": {"securityProtocol": "SASL_SSL"}},
            "secrets": {
                "kafka": {"existingSecret": "kafka", "usernameKey": "user", "passwordKey": "word", "caKey": "ca.crt"},
                "smtp": {"caKey": "ca.crt"},
                "postgres": {"migrateDsnKey": "direct"},
                "msg91": {"webhookSecretKey": "webhook"},
            },
        }
    )
    found = [fault for each in rendering.objects for fault in faults(each, rendering)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("ci", CI, ids=lambda path: path.stem)
def test_helm_lint_passes(ci: Path) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", str(ci))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "[WARNING]" not in linted.stdout + linted.stderr


def template(document: Any) -> Any:
    return document["spec"]["template"]["spec"]


KNOWN_FAULTS: dict[str, tuple[str, Break, str]] = {
    "a misspelt field": ("Deployment", lambda d: d["spec"].update(replica=1), "replica"),
    "a misspelt field deep inside": (
        "Deployment",
        lambda d: template(d)["containers"][0].update(imagePullPolicie="Always"),
        "imagePullPolicie",
    ),
    "a text where a number stands": (
        "Deployment",
        lambda d: template(d)["containers"][0]["ports"][0].update(containerPort="8080"),
        "containerPort",
    ),
    "a field that is null": ("Deployment", lambda d: template(d).update(nodeSelector=None), "nodeSelector"),
    "an upper-case name": ("Service", lambda d: d["metadata"].update(name="Ingest"), "Ingest"),
    "an invalid label": ("Service", lambda d: d["metadata"]["labels"].update(team="a b"), "team"),
    "a misspelt field of a policy": ("NetworkPolicy", lambda d: d["spec"].update(podSelectors={}), "podSelectors"),
    "a misspelt field of KEDA's": ("ScaledObject", lambda d: d["spec"].update(minReplicas=0), "minReplicas"),
    "a misspelt fallback": ("ScaledObject", lambda d: d["spec"].update(fallbacks={}), "fallbacks"),
    "a misspelt field of a route": ("HTTPRoute", lambda d: d["spec"].update(hostname=[]), "hostname"),
    "a misspelt field of a route's backend": (
        "HTTPRoute",
        lambda d: d["spec"]["rules"][0]["backendRefs"][0].update(ports=80),
        "ports",
    ),
    "a misspelt field of an authentication": (
        "TriggerAuthentication",
        lambda d: d["spec"].update(secretTargetRefs=[]),
        "secretTargetRefs",
    ),
    "a misspelt field of an alert": (
        "PrometheusRule",
        lambda d: d["spec"]["groups"][0]["rules"][0].update(form="5m"),
        "form",
    ),
    "a misspelt field of the operator's": (
        "PodMonitor",
        lambda d: d["spec"].update(podMetricEndpoints=[]),
        "podMetricEndpoints",
    ),
}


@pytest.mark.parametrize("fault", KNOWN_FAULTS)
def test_the_check_itself_finds(fault: str) -> None:
    kind, spoil, said = KNOWN_FAULTS[fault]
    each = full().of(kind)[0]
    assert not faults(each, full())
    document = deepcopy(dict(each.document))
    spoil(document)
    found = faults(Object(document), full())
    assert len(found) == 1
    assert said in found[0]


TRIGGER_FAULTS: dict[str, tuple[Break, str]] = {
    "a misspelt key": (lambda m: m.update(lagTreshold="5"), "lagTreshold: the scaler has no such key"),
    "a key that is missing": (lambda m: m.pop("consumerGroup"), "consumerGroup is missing"),
    "a value that is not in its list": (lambda m: m.update(offsetResetPolicy="first"), "'first' is none of"),
    "a secret where only an authentication is read": (
        lambda m: m.update(password="x"),
        "does not read it from its metadata",
    ),
    "a number where KEDA wants a text": (lambda m: m.update(lagThreshold=5), "lagThreshold"),
}


@pytest.mark.parametrize("fault", TRIGGER_FAULTS)
def test_the_check_itself_finds_in_a_trigger(fault: str) -> None:
    spoil, said = TRIGGER_FAULTS[fault]
    each = full().handler("ScaledObject", "process-email")
    assert each is not None
    document = deepcopy(dict(each.document))
    (kafka,) = (trigger for trigger in document["spec"]["triggers"] if trigger["type"] == "kafka")
    spoil(kafka["metadata"])
    found = faults(Object(document), full())
    assert len(found) == 1
    assert said in found[0]


def test_an_object_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(LookupError, match="Deploymint"):
        faults(Object({"apiVersion": "apps/v1", "kind": "Deploymint", "metadata": {"name": "x"}}), Rendering([]))
