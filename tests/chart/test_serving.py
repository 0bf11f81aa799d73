"""How a release is reached and watched: Services, the Ingress, PodMonitor, alerts, dashboards, the notes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskflux.worker.loading import BUILT_IN
from tests.chart.cases import EVERYTHING, LEAST, WITH_ALL_SERVERS, full, least
from tests.chart.objects import Object, pods, selects
from tests.chart.rendering import CHART, Rendering, notes, render
from tests.chart.strict import faults

OPENAPI = CHART.parents[1] / "docs" / "openapi.json"


def test_a_service_leads_to_the_port_that_its_handler_listens_on() -> None:
    rendering = full({"handlers": {"ingest": {"port": 9000, "service": {"port": 8000, "type": "NodePort"}}}})
    service = rendering.handler("Service", "ingest")
    assert service is not None
    assert service.spec["type"] == "NodePort"
    (port,) = service.spec["ports"]
    deployment = rendering.handler("Deployment", "ingest")
    assert deployment is not None
    assert deployment.pod is not None
    (container,) = deployment.pod.containers
    by_name = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert (port["port"], by_name[port["targetPort"]]) == (8000, 9000)


def test_a_service_has_its_annotations() -> None:
    rendering = full({"handlers": {"notify": {"service": {"annotations": {"internal": "true"}}}}})
    service = rendering.handler("Service", "notify")
    assert service is not None
    assert service.annotations["internal"] == "true"


def test_an_ingress_is_rendered_only_when_enabled() -> None:
    assert not least().of("Ingress")
    host = {
        "host": "tasks.example.com",
        "paths": [
            {"path": "/", "pathType": "Prefix", "handler": "ingest"},
            {"path": "/notifications", "pathType": "Prefix", "handler": "notify"},
        ],
    }
    rendering = full(
        {
            "ingress": {
                "enabled": True,
                "className": "traefik",
                "annotations": {"cert-manager.io/issuer": "letsencrypt"},
                "hosts": [host],
                "tls": [{"secretName": "tasks-tls", "hosts": ["tasks.example.com"]}],
            }
        }
    )
    (ingress,) = rendering.of("Ingress")
    assert ingress.spec["ingressClassName"] == "traefik"
    assert ingress.annotations["cert-manager.io/issuer"] == "letsencrypt"
    assert ingress.spec["tls"] == [{"secretName": "tasks-tls", "hosts": ["tasks.example.com"]}]
    (rule,) = ingress.spec["rules"]
    assert rule["host"] == "tasks.example.com"
    for path, handler in zip(rule["http"]["paths"], ("ingest", "notify"), strict=True):
        backend = path["backend"]["service"]
        service = rendering.one("Service", backend["name"])
        assert service.component == handler
        ports = {each.get("name"): each["port"] for each in service.spec["ports"]}
        assert backend["port"].get("number", ports.get(backend["port"].get("name"))) in ports.values()


def test_without_a_class_the_cluster_s_default_takes_the_ingress() -> None:
    (ingress,) = full({"ingress": {"enabled": True}}).of("Ingress")
    assert "ingressClassName" not in ingress.spec


def test_a_route_leads_from_the_gateway_to_the_handlers_services() -> None:
    assert not least().of("HTTPRoute")
    gateway = {"name": "public", "namespace": "gateways", "sectionName": "https"}
    route = {
        "enabled": True,
        "annotations": {"owner": "ada"},
        "parentRefs": [gateway],
        "hostnames": ["tasks.example.com"],
        "paths": [
            {"path": "/tasks", "handler": "ingest"},
            {
                "path": "/send",
                "type": "Exact",
                "handler": "notify",
                "filters": [
                    {
                        "type": "URLRewrite",
                        "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/notifications/email"}},
                    }
                ],
            },
        ],
    }
    rendering = full({"httpRoute": route, "handlers": {"ingest": {"service": {"port": 8000}}}})
    (each,) = rendering.of("HTTPRoute")
    assert each.annotations["owner"] == "ada"
    assert (each.spec["parentRefs"], each.spec["hostnames"]) == ([gateway], ["tasks.example.com"])
    tasks, mails = each.spec["rules"]
    assert tasks["matches"] == [{"path": {"type": "PathPrefix", "value": "/tasks"}}]
    assert mails["matches"] == [{"path": {"type": "Exact", "value": "/send"}}]
    assert mails["filters"][0]["type"] == "URLRewrite"
    for rule, handler in ((tasks, "ingest"), (mails, "notify")):
        (backend,) = rule["backendRefs"]
        service = rendering.one("Service", backend["name"])
        assert service.component == handler
        assert backend["port"] in [port["port"] for port in service.spec["ports"]]
    assert not faults(each, rendering)
    assert "https://tasks.example.com/tasks" in notes(LEAST, WITH_ALL_SERVERS, {"httpRoute": route})


def test_from_outside_only_the_api_is_reached_unless_values_say_more() -> None:
    rendering = full()
    (ingress,), (route,) = rendering.of("Ingress"), rendering.of("HTTPRoute")
    paths = [path["path"] for rule in ingress.spec["rules"] for path in rule["http"]["paths"]]
    assert paths == [match["path"]["value"] for rule in route.spec["rules"] for match in rule["matches"]]
    served = [path for path in json.loads(OPENAPI.read_text())["paths"] if path.startswith(tuple(paths))]
    assert {"/tasks", "/tasks/batch", "/webhooks/msg91/{secret}"} <= set(served)
    for inside in ("/", "/docs", "/dead-letters", "/openapi.json", "/metrics", "/livez", "/readyz"):
        assert not [path for path in paths if inside == path or inside.startswith(f"{path.rstrip('/')}/")], inside


def test_prometheus_finds_every_handler_s_pod() -> None:
    rendering = full({"monitoring": {"podMonitor": {"labels": {"release": "kps"}, "interval": "7s"}}})
    (monitor,) = rendering.of("PodMonitor")
    assert monitor.labels["release"] == "kps"
    (endpoint,) = monitor.spec["podMetricsEndpoints"]
    assert endpoint["interval"] == "7s"
    taken = {pod.owner.component for pod in pods(rendering.objects) if selects(monitor.spec["selector"], pod.labels)}
    assert taken >= set(BUILT_IN)
    for pod in pods(rendering.of("Deployment")):
        ports = {port["name"] for container in pod.containers for port in container["ports"]}
        assert endpoint["port"] in ports
    assert "namespaceSelector" not in monitor.spec or monitor.spec["namespaceSelector"] == {"matchNames": ["work"]}


FIRST: Mapping[str, Any] = {
    "settings": {"kafka": {"bootstrapServers": "kafka.kafka:9092"}},
    "secrets": {"postgres": {"existingSecret": "postgres"}},
}


def test_a_first_install_with_addresses_alone_has_the_handlers_that_need_no_provider() -> None:
    rendering = render(FIRST)
    deployed = {each.component for each in rendering.of("Deployment")}
    assert deployed == {"ingest", "relay", "dlq-sink", "process-simulated"}
    said = " ".join(notes(FIRST).split())
    assert "process-email needs settings.smtp.host" in said
    assert "process-sms needs secrets.msg91.existingSecret" in said
    assert "notify needs settings.smtp.host or secrets.msg91.existingSecret" in said
    assert "networkPolicy.apiFrom is empty: only the release's own pods may call the API" in said


def test_a_handler_is_on_as_soon_as_what_it_delivers_through_is_set() -> None:
    smtp = {"settings": {"smtp": {"host": "smtp.example.com", "sender": "a@example.com"}}}
    elsewhere = {"settings": {"notify": {"url": "http://notify.other.svc"}, "auth": {"mode": "off"}}}
    for more, on in ((smtp, {"process-email", "notify"}), (elsewhere, {"process-email", "process-sms"})):
        deployed = {each.component for each in render(FIRST, more).of("Deployment")}
        assert deployed == on | {"ingest", "relay", "dlq-sink", "process-simulated"}
    off = {"handlers": {"process-email": {"enabled": False}}}
    said = " ".join(notes(FIRST, off).split())
    assert "process-email needs" not in said, "it is off because somebody said so"
    assert "Off, until" not in notes(LEAST, WITH_ALL_SERVERS)


def test_the_metrics_of_a_handler_without_a_management_port_are_read_beside_its_api() -> None:
    rendering = full({"handlers": {"notify": {"managementPort": None}}})
    (monitor,) = rendering.of("PodMonitor")
    apart, together = monitor.spec["podMetricsEndpoints"]
    assert (apart["port"], together["port"]) == ("management", "http")
    assert together["relabelings"][0] == {
        "action": "keep",
        "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
        "regex": "notify",
    }
    notify = rendering.handler("Deployment", "notify")
    assert notify is not None
    assert notify.pod is not None
    (container,) = notify.pod.containers
    assert [port["name"] for port in container["ports"]] == ["http"]
    assert container["livenessProbe"]["httpGet"]["port"] == "http"
    assert "TASKFLUX_HTTP__MANAGEMENT_PORT" not in {each["name"] for each in container["env"]}


WITHOUT_KEYS: Mapping[str, Any] = {"settings": {"auth": {"mode": "optional"}}}

WARNINGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "two releases on one Kafka": ({}, "topicPrefix is empty. A second release on the same Kafka would take this one's"),
    "no relay": ({"handlers": {"relay": {"enabled": False}}}, "no relay is deployed"),
    "an open Ingress": ({"ingress": {"enabled": True}, **WITHOUT_KEYS}, "is open to whoever reaches the Ingress."),
    "an open Service": (
        {"handlers": {"notify": {"service": {"type": "LoadBalancer"}}}, **WITHOUT_KEYS},
        "is open to whoever reaches the Service of notify.",
    ),
    "no network policies": (
        {"networkPolicy": {"enabled": False}, **WITHOUT_KEYS},
        "is open to whoever reaches every pod of the",
    ),
    "dashboards of two releases": ({"monitoring": {"dashboards": {"enabled": True}}}, "the dashboards have fixed uids"),
    "a drain that the cluster autoscaler cuts off": ({}, "of notify (925 s), process-email (920 s)"),
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_the_notes_warn_of(warning: str) -> None:
    values, said = WARNINGS[warning]
    assert said in " ".join(notes(LEAST, WITH_ALL_SERVERS, values).split())


def test_the_notes_warn_of_nothing_that_is_not_so() -> None:
    calm = {
        "settings": {"kafka": {"topicPrefix": "shop-"}},
        "handlers": {
            "notify": {"drainSeconds": 300},
            "process-email": {"drainSeconds": 300},
            "process-simulated": {"drainSeconds": 300},
        },
    }
    said = " ".join(notes(LEAST, WITH_ALL_SERVERS, calm).split())
    for _, warning in WARNINGS.values():
        assert " ".join(warning.split()[:4]) not in said
    assert "authentication" not in said


def test_monitoring_objects_are_off_by_default() -> None:
    assert not least().of("PodMonitor", "PrometheusRule")
    assert not [each for each in least().of("ConfigMap") if "grafana_dashboard" in each.labels]


ALERT = """
alert: TasksWait
expr: max(taskflux_oldest_seconds{state="queued"}) > 600
for: 10m
labels: {severity: warning}
annotations:
  summary: 'The oldest task of {{ $labels.type }} has waited {{ $value | humanizeDuration }}.'
"""
DASHBOARD = {"title": "Tasks", "panels": [{"title": "Waiting", "targets": [{"legendFormat": "{{type}}"}]}]}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with one alert and one dashboard more, whose own braces are nothing of helm's."""
    chart = tmp_path_factory.mktemp("charts") / "taskflux"
    shutil.copytree(CHART, chart)
    (chart / "alerts").mkdir(exist_ok=True)
    (chart / "alerts" / "TasksWait.yaml").write_text(ALERT)
    (chart / "dashboards").mkdir(exist_ok=True)
    (chart / "dashboards" / "waiting.json").write_text(json.dumps(DASHBOARD))
    return chart


def watched(chart: Path, **rules: Any) -> Rendering:
    return render(LEAST, WITH_ALL_SERVERS, EVERYTHING, {"monitoring": {"prometheusRule": rules}}, chart=chart)


def alerts(rendering: Rendering) -> Mapping[str, Any]:
    rules = rendering.of("PrometheusRule")
    return {each["alert"]: each for rule in rules for group in rule.spec["groups"] for each in group["rules"]}


def test_every_alert_is_loaded_with_its_runbook(chart: Path) -> None:
    url = "https://runbooks.example.com"
    rendering = watched(chart, labels={"release": "kps"}, ruleLabels={"team": "tasks"}, runbookUrl=url)
    (rule,) = rendering.of("PrometheusRule")
    assert rule.labels["release"] == "kps"
    assert alerts(rendering).keys() == {path.stem for path in (chart / "alerts").glob("*.yaml")}
    for name, alert in alerts(rendering).items():
        written = yaml.safe_load((chart / "alerts" / f"{name}.yaml").read_text())
        assert alert["annotations"] == written["annotations"] | {"runbook_url": f"{url}/{name}.md"}
        assert alert["labels"] == written["labels"] | {"team": "tasks"}
        assert alert["expr"] == written["expr"]


def test_an_alert_can_be_disabled(chart: Path) -> None:
    assert "TasksWait" not in alerts(watched(chart, disabled=["TasksWait"]))


def test_every_dashboard_is_loaded_as_it_is(chart: Path) -> None:
    more = {"monitoring": {"dashboards": {"annotations": {"grafana_folder": "Tasks"}}}}
    rendering = render(LEAST, WITH_ALL_SERVERS, EVERYTHING, more, chart=chart)
    loaded: dict[str, str] = {}
    for each in rendering.of("ConfigMap"):
        if "grafana_dashboard" in each.labels:
            assert each.annotations["grafana_folder"] == "Tasks"
            loaded |= each.data
    written = {path.name: path.read_text() for path in (chart / "dashboards").glob("*.json")}
    assert loaded.keys() == written.keys()
    assert all(json.loads(loaded[name]) == json.loads(text) for name, text in written.items())


@pytest.mark.usefixtures("definitions")
def test_the_monitoring_objects_are_valid(chart: Path) -> None:
    rendering = watched(chart)
    for each in rendering.of("PrometheusRule", "PodMonitor", "ConfigMap"):
        assert not faults(each, rendering)
    (rule,) = rendering.of("PrometheusRule")
    document = deepcopy(dict(rule.document))
    del document["spec"]["groups"][0]["rules"][0]["expr"]
    assert any("expr" in fault for fault in faults(Object(document)))


_LINE = re.compile(r"(?m)^ +([a-z-]+) +(\d+) pods × (\d+) += +(\d+)$")
_OTHER = re.compile(r"(?m)^ +(KEDA's counts|Jobs) +(\d+)$")
_TOGETHER = re.compile(r"together +(\d+), of max_connections = (\d+)")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"postgresMaxConnections": 400},
        {"handlers": {"process-email": {"scaling": {"maxReplicas": 5}, "poolSize": 9}}},
        {"handlers": {"process-sms": {"enabled": False}, "relay": {"scaling": {"enabled": False}, "replicas": 3}}},
        {"keda": {"enabled": False}},
    ],
)
def test_the_notes_add_up_what_all_pods_may_open(more: Mapping[str, Any]) -> None:
    rendering = full(more)
    text = notes(LEAST, WITH_ALL_SERVERS, more)
    lines = {name: tuple(map(int, numbers)) for name, *numbers in _LINE.findall(text)}
    assert lines.keys() == {each.component for each in rendering.of("Deployment")}
    for deployment in rendering.of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        most = deployment.spec.get("replicas")
        for kind, key in (("ScaledObject", "maxReplicaCount"), ("HorizontalPodAutoscaler", "maxReplicas")):
            if (scaled := rendering.handler(kind, deployment.component or "")) is not None:
                most = scaled.spec[key]
        size = pool_size(pod.containers[0], rendering)
        assert lines[deployment.component or ""] == (most, size, int(most or 0) * size)
    others = {name: int(number) for name, number in _OTHER.findall(text)}
    triggers = [each["type"] for scaled in rendering.of("ScaledObject") for each in scaled.spec["triggers"]]
    assert others.get("KEDA's counts", 0) == triggers.count("postgresql")
    together = _TOGETHER.search(text)
    assert together is not None, text
    assert int(together[1]) == sum(line[2] for line in lines.values()) + sum(others.values())
    assert int(together[2]) == more.get("postgresMaxConnections", 100)


def pool_size(container: Mapping[str, Any], rendering: Any) -> int:
    for each in container["env"]:
        if each["name"] == "TASKFLUX_POSTGRES__POOL_SIZE":
            return int(each["value"])
    (source,) = (each["configMapRef"]["name"] for each in container["envFrom"] if "configMapRef" in each)
    return int(rendering.one("ConfigMap", source).data["TASKFLUX_POSTGRES__POOL_SIZE"])


def test_the_notes_warn_when_pods_need_more_connections_than_postgresql_has() -> None:
    few, many = {"postgresMaxConnections": 20}, {"postgresMaxConnections": 5000}
    assert "WARNING" in notes(LEAST, WITH_ALL_SERVERS, few)
    assert "WARNING" not in notes(LEAST, WITH_ALL_SERVERS, many)


def test_the_notes_say_how_to_send_a_first_task() -> None:
    text = notes(LEAST, WITH_ALL_SERVERS, release="mine")
    assert "svc/mine-taskflux-ingest" in text
    assert re.search("helm .*test mine", text)
    assert "/tasks" in text


def test_an_extra_object_is_a_template() -> None:
    mine = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "{{ .Release.Name }}-mine"},
        "data": {"a": "b"},
    }
    rendering = full({"extraObjects": [mine, yaml.safe_dump(mine).replace("-mine", "-more")]})
    assert {("ConfigMap", "tf-mine"), ("ConfigMap", "tf-more")} <= rendering.names()


def test_an_existing_service_account_is_used() -> None:
    rendering = full({"serviceAccount": {"create": False, "name": "theirs"}})
    assert not [each for each in rendering.of("ServiceAccount") if not each.hooks]
    for pod in pods(rendering.of("Deployment")):
        assert pod.spec["serviceAccountName"] == "theirs"


def test_no_object_grants_rbac_permissions() -> None:
    rights = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    assert not full().of(*rights)
    for account in full().of("ServiceAccount"):
        assert account.document.get("automountServiceAccountToken") is False
