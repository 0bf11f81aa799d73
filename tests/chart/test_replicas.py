"""What sets the number of pods and how many may be unavailable: one source each, without contradiction."""

from __future__ import annotations

from pathlib import Path

from tests.chart.cases import EACH_CI_FILE, WITH_ALL_SERVERS, full, least
from tests.chart.rendering import Rendering, defaults, render

BY_LAG = ("process-email", "process-simulated", "process-sms", "router", "dlq-sink")


@EACH_CI_FILE
def test_what_scales_a_deployment_owns_its_replicas(ci: Path) -> None:
    rendering = render(ci)
    owners: dict[str, list[str]] = {}
    for each in rendering.of("ScaledObject", "HorizontalPodAutoscaler"):
        assert each.spec["scaleTargetRef"].get("kind", "Deployment") == "Deployment"
        owners.setdefault(each.spec["scaleTargetRef"]["name"], []).append(str(each))
    names = {each.name for each in rendering.of("Deployment")}
    assert owners.keys() <= names
    assert all(len(found) == 1 for found in owners.values()), owners
    for deployment in rendering.of("Deployment"):
        assert ("replicas" in deployment.spec) == (deployment.name not in owners), str(deployment)


def test_without_keda_an_autoscaler_by_cpu_or_a_number_takes_its_place() -> None:
    rendering = full({"keda": {"enabled": False}, "handlers": {"relay": {"replicas": 2}}})
    assert not rendering.of("ScaledObject", "TriggerAuthentication")
    assert {each.component for each in rendering.of("HorizontalPodAutoscaler")} == {"ingest", "notify"}
    for each in rendering.of("HorizontalPodAutoscaler"):
        assert (each.spec["minReplicas"], each.spec["maxReplicas"]) == (1, 6)
        (metric,) = each.spec["metrics"]
        assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
        assert each.spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 120
    relay = rendering.handler("Deployment", "relay")
    assert relay is not None
    assert relay.spec["replicas"] == 2
    for handler in BY_LAG:
        deployment = rendering.handler("Deployment", handler)
        assert deployment is not None
        assert deployment.spec["replicas"] == 1


def test_a_handler_that_is_not_scaled_has_its_own_number_of_replicas() -> None:
    rendering = least({"handlers": {"process-sms": {"scaling": {"enabled": False}, "replicas": 3}}}, WITH_ALL_SERVERS)
    assert rendering.handler("ScaledObject", "process-sms") is None
    deployment = rendering.handler("Deployment", "process-sms")
    assert deployment is not None
    assert deployment.spec["replicas"] == 3


@EACH_CI_FILE
def test_a_disruption_budget_never_contradicts_the_replicas(ci: Path) -> None:
    """A budget that allows no disruption blocks every node drain; one for a single pod is useless."""
    rendering = render(ci)
    values = defaults()["handlerDefaults"]["pdb"]
    for budget in rendering.of("PodDisruptionBudget"):
        assert budget.component is not None
        most = most_replicas(rendering, budget.component)
        assert most > 1, f"{budget} for at most {most} replica"
        assert "minAvailable" not in budget.spec
        assert budget.spec["maxUnavailable"] >= values["maxUnavailable"] >= 1
        deployment = rendering.handler("Deployment", budget.component)
        assert deployment is not None
        assert budget.spec["selector"] == deployment.spec["selector"]


def most_replicas(rendering: Rendering, handler: str) -> int:
    for kind, key in (("ScaledObject", "maxReplicaCount"), ("HorizontalPodAutoscaler", "maxReplicas")):
        if (found := rendering.handler(kind, handler)) is not None:
            return int(found.spec[key])
    deployment = rendering.handler("Deployment", handler)
    assert deployment is not None
    return int(deployment.spec["replicas"])


def test_every_handler_that_may_have_several_pods_has_a_disruption_budget() -> None:
    rendering = full()
    with_budget = {each.component for each in rendering.of("PodDisruptionBudget")}
    assert with_budget == {each.component for each in rendering.of("Deployment")}
    none = full({"handlerDefaults": {"pdb": {"enabled": False}}})
    assert not none.of("PodDisruptionBudget")
