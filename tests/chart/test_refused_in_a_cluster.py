"""What every schema accepts, and a cluster would not: the rules of KEDA's webhook and of the API server, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.chart.cases import LEAST, WITH_ALL_SERVERS, full, handler_container
from tests.chart.rendering import Refused, notes, render
from tests.chart.test_names import LONGEST

HPA_PREFIX: Final = "keda-hpa-"


@pytest.mark.parametrize("release", ["tf", "shop-production-notifications-europe-west1", LONGEST])
def test_keda_s_autoscaler_has_a_name_that_fits_a_label(release: str) -> None:
    """KEDA's webhook refuses a ScaledObject otherwise."""
    for each in full(release=release).of("ScaledObject"):
        assert len(HPA_PREFIX + each.name) <= 63, each.name
        assert each.spec["scaleTargetRef"]["name"] == each.name


def test_keda_logs_no_warning_for_a_handler_that_never_scales_to_zero() -> None:
    for each in full().of("ScaledObject"):
        for key in ("pollingInterval", "cooldownPeriod"):
            assert (key in each.spec) == (each.spec["minReplicaCount"] == 0), f"{each}: {key}"


def test_an_interval_stays_where_metrics_are_cached_by_it() -> None:
    trigger = {"type": "cron", "metadata": {"timezone": "UTC"}, "useCachedMetrics": True}
    rendering = full({"handlers": {"relay": {"scaling": {"extraTriggers": [trigger], "pollingInterval": 11}}}})
    relay = rendering.handler("ScaledObject", "relay")
    assert relay is not None
    assert relay.spec["pollingInterval"] == 11


def test_the_recreate_strategy_has_no_rolling_update_parameters() -> None:
    """The API server refuses the two together."""
    rendering = full({"handlers": {"relay": {"strategy": {"type": "Recreate"}}}})
    relay = rendering.handler("Deployment", "relay")
    assert relay is not None
    assert relay.spec["strategy"] == {"type": "Recreate"}


def test_a_large_number_stays_an_integer() -> None:
    """Go prints 1000000.0 as 1e+06, which neither KEDA nor the API server reads as an integer."""
    large = 3_000_000
    scaling = {"lagThreshold": large, "runningThreshold": large, "cooldownPeriod": large, "pollingInterval": large}
    email = {"scaling": scaling, "drainSeconds": large, "revisionHistoryLimit": large}
    rendering = full({"handlers": {"process-email": email}, "setup": {"activeDeadlineSeconds": large}})
    scaled = rendering.handler("ScaledObject", "process-email")
    deployment = rendering.handler("Deployment", "process-email")
    assert scaled is not None
    assert deployment is not None
    assert deployment.pod is not None
    lag, running = (each["metadata"] for each in scaled.spec["triggers"])
    assert (lag["lagThreshold"], running["targetQueryValue"]) == (str(large), str(large))
    numbers = (scaled.spec["cooldownPeriod"], scaled.spec["pollingInterval"], deployment.spec["revisionHistoryLimit"])
    assert all(type(each) is int and each == large for each in numbers), numbers
    assert type(deployment.pod.spec["terminationGracePeriodSeconds"]) is int
    assert handler_container(rendering, "process-email").environment["TASKFLUX_WORKER__DRAIN_SECONDS"] == str(large)
    for job in rendering.of("Job"):
        assert job.pod is not None
        assert type(job.pod.spec["activeDeadlineSeconds"]) is int


@pytest.mark.parametrize(
    ("empty", "named"),
    [
        ({"settings": {"smtp": None}}, "smtp"),
        ({"secrets": {"redis": None}}, "redis"),
        ({"networkPolicy": {"dns": None}}, "dns"),
        ({"handlerDefaults": {"podSecurityContext": None}}, "podSecurityContext"),
    ],
)
def test_an_empty_section_is_named_in_the_error(empty: Mapping[str, Any], named: str) -> None:
    """Helm removes it with its defaults, as `--reuse-values` does with those of a newer chart."""
    with pytest.raises(Refused) as refused:
        render(LEAST, empty)
    assert f"missing property '{named}'" in str(refused.value)


@pytest.mark.parametrize(("server", "key"), [("postgres", "dsnKey"), ("redis", "urlKey"), ("msg91", "authKeyKey")])
def test_a_secret_without_the_key_that_is_read_is_refused(server: str, key: str) -> None:
    with pytest.raises(Refused) as refused:
        render(LEAST, WITH_ALL_SERVERS, {"secrets": {server: {key: ""}}})
    assert f"secrets.{server}.{key}" in str(refused.value)


def test_a_notification_service_elsewhere_is_reached() -> None:
    settings = {"notify": {"url": "http://notify.other.svc:8081"}, "auth": {"mode": "off"}}
    rendering = full({"settings": settings, "handlers": {"notify": {"enabled": False}}})
    policy = rendering.handler("NetworkPolicy", "process-email")
    assert policy is not None
    assert {"ports": [{"port": 8081, "protocol": "TCP"}]} in policy.spec["egress"]


def test_the_notes_name_what_keeps_keda_from_querying() -> None:
    def said(more: Mapping[str, Any]) -> str:
        return notes(LEAST, WITH_ALL_SERVERS, more)

    named = {"settings": {"kafka": {"bootstrapServers": "kafka.work:9092"}}}
    assert "KEDA reads the lag of kafka:9092 from its own namespace" in said({})
    assert "KEDA reads the lag" not in said(named)
    assert "KEDA reads the lag" not in said({"keda": {"enabled": False}})
    pooled = {"settings": {"postgres": {"pooler": True}}}
    assert "default_query_exec_mode=simple_protocol" in said(pooled)
    assert "simple_protocol" not in said({**pooled, "secrets": {"postgres": {"kedaDsnKey": "keda"}}})
    unread = "does not read PostgreSQL's CA"
    assert unread in said({"secrets": {"postgres": {"caKey": "ca.crt"}}})
    assert unread in said({"secrets": {"postgres": {"caSecret": "database-ca"}}})
    # Its DSN has no sslmode then, so KEDA encrypts without verifying.
    assert unread not in said({"secrets": {"postgres": {"caSecret": "database-ca", "sslMode": "verify-full"}}})
