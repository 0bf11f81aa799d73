"""What each value may be, if its default does not show it: its pattern, its range, or what Kubernetes says.

Keys are paths in values.yaml. A handler's are those below `handlerDefaults`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from charts.generate.kubernetes import reference

Schema = Mapping[str, Any]

TEXTS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY: Final[Schema] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([KMG]i?|k)?$"}
SECRET: Final[Schema] = {
    "type": "string",
    "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
    "maxLength": 253,
}
SECRET_KEY: Final[Schema] = {"type": "string", "pattern": r"^[-._a-zA-Z0-9]*$", "maxLength": 253}
AGE: Final[Schema] = {"type": "string", "pattern": r"^(([0-9]+(\.[0-9]+)?[smhdw])+)?$"}
INTERVAL: Final[Schema] = {"type": "string", "pattern": r"^([0-9]+(ms|[smhdwy]))+$"}
URL: Final[Schema] = {"type": "string", "pattern": r"^(https?://[^\s/?#@]+[^\s?#]*)?$"}
SOME: Final[Schema] = {"type": "integer", "minimum": 1}
KAFKA_NAME: Final[Schema] = {"type": "string", "pattern": r"^[A-Za-z0-9._-]*$", "maxLength": 249}
CRON: Final[Schema] = {
    "type": "string",
    "pattern": r"^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|\S+ +\S+ +\S+ +\S+ +\S+)$",
}


def many(item: Schema) -> Schema:
    """A list of `item`."""
    return {"type": "array", "items": item}


def closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    """An object with these keys and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


IMAGE: Final[Mapping[str, Schema]] = {
    "registry": {"type": "string", "pattern": r"^[a-zA-Z0-9.:-]*$"},
    "repository": {"type": "string", "pattern": r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$"},
    "tag": {"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"},
    "digest": {"type": "string", "pattern": r"^(sha256:[a-f0-9]{64})?$"},
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
}
PROBE: Final = closed(
    {
        "initialDelaySeconds": {"type": "integer", "minimum": 0},
        **dict.fromkeys(("periodSeconds", "timeoutSeconds", "failureThreshold"), SOME),
    }
)
TRIGGER: Final = closed(
    {
        "type": {"type": "string", "minLength": 1},
        "name": {"type": "string"},
        "metadata": TEXTS,
        "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
        "useCachedMetrics": {"type": "boolean"},
        "authenticationRef": closed({"name": {"type": "string"}, "kind": {"type": "string"}}, "name"),
    },
    "type",
    "metadata",
)
# Restricted Pod Security: less is refused here, before the API server does.
POD_SECURITY: Final[Schema] = {
    "allOf": [
        reference("podSecurityContext"),
        {
            "properties": {
                "runAsNonRoot": {"const": True},
                "runAsUser": {"minimum": 1},
                "seccompProfile": {"properties": {"type": {"enum": ["RuntimeDefault", "Localhost"]}}},
            }
        },
    ]
}
CONTAINER_SECURITY: Final[Schema] = {
    "allOf": [
        reference("securityContext"),
        {
            "properties": {
                "allowPrivilegeEscalation": {"const": False},
                "privileged": {"const": False},
                "runAsNonRoot": {"const": True},
                "runAsUser": {"minimum": 1},
                "capabilities": {"properties": {"drop": {"contains": {"const": "ALL"}}}},
            }
        },
    ]
}
PATHS: Final = many(
    closed(
        {
            "path": {"type": "string", "pattern": "^/"},
            "pathType": {"enum": ["Prefix", "Exact", "ImplementationSpecific"]},
            "handler": {"type": "string", "minLength": 1},
        },
        "path",
        "handler",
    )
)

PARENT: Final = closed(
    {
        "group": {"type": "string"},
        "kind": {"type": "string"},
        "namespace": {"type": "string"},
        "name": {"type": "string", "minLength": 1},
        "sectionName": {"type": "string"},
        "port": PORT,
    },
    "name",
)
ROUTE: Final = closed(
    {
        "path": {"type": "string", "pattern": "^/"},
        "type": {"enum": ["PathPrefix", "Exact", "RegularExpression"]},
        "handler": {"type": "string", "minLength": 1},
        "filters": many({"type": "object", "required": ["type"]}),
    },
    "path",
    "handler",
)

HANDLER: Final[Mapping[str, Schema]] = {
    "target": {"type": "string", "pattern": r"^([a-z][a-z0-9-]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?$"},
    "extraArgs": many({"type": "string"}),
    "image": closed(IMAGE),
    "taskType": {"type": "string", "pattern": r"^([a-z0-9][a-z0-9._-]{0,99})?$"},
    "topic": KAFKA_NAME,
    "group": KAFKA_NAME,
    "secrets": {**many({"enum": ["postgres", "kafka", "redis", "smtp", "msg91"]}), "uniqueItems": True},
    "settings": {"$ref": "#/$defs/settings"},
    "poolSize": {"type": "integer", "minimum": 1, "maximum": 100},
    "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1},
    "port": PORT,
    "managementPort": {**PORT, "type": ["integer", "null"]},
    "strategy": reference("strategy"),
    "scaling.maxReplicas": SOME,
    "scaling.partitions": {"type": ["integer", "null"], "minimum": 1},
    "scaling.pollingInterval": SOME,
    "scaling.requestRate": {"type": "number", "minimum": 0},
    "scaling.rate": {"type": "number", "minimum": 0},
    "scaling.scaleDownStabilizationSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
    "scaling.extraTriggers": many(TRIGGER),
    "scaling.annotations": TEXTS,
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.port": PORT,
    "service.annotations": TEXTS,
    "pdb.maxUnavailable": {"anyOf": [SOME, {"type": "string", "pattern": "^([1-9][0-9]?|100)%$"}]},
    "egress": many(reference("egressRule")),
    "resources": reference("resources"),
    "extraEnv": many(reference("env")),
    "extraEnvFrom": many(reference("envFrom")),
    "extraVolumes": many(reference("volume")),
    "extraVolumeMounts": many(reference("volumeMount")),
    "initContainers": many(reference("container")),
    "extraContainers": many(reference("container")),
    "lifecycle": reference("lifecycle"),
    "dnsConfig": reference("dnsConfig"),
    "hostAliases": many(reference("hostAlias")),
    "progressDeadlineSeconds": SOME,
    "annotations": TEXTS,
    "podAnnotations": TEXTS,
    "podLabels": TEXTS,
    "nodeSelector": TEXTS,
    "tolerations": many(reference("toleration")),
    "affinity": reference("affinity"),
    "topologySpreadConstraints": many(reference("topologySpreadConstraint")),
    "podSecurityContext": POD_SECURITY,
    "securityContext": CONTAINER_SECURITY,
    "tmpSize": QUANTITY,
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "startupProbe": PROBE,
}
"""Below `handlerDefaults` and each of `handlers`."""

_PEERS: Final = many(reference("peer"))
SHAPES: Final[Mapping[str, Schema]] = {
    "commonLabels": TEXTS,
    "commonAnnotations": TEXTS,
    **{f"image.{name}": schema for name, schema in IMAGE.items()},
    "imagePullSecrets": many(
        {"anyOf": [{**SECRET, "minLength": 1}, closed({"name": {**SECRET, "minLength": 1}}, "name")]}
    ),
    **{f"handlerDefaults.{name}": schema for name, schema in HANDLER.items()},
    "secrets.postgres.sslMode": {"enum": ["", "disable", "prefer", "require", "verify-ca", "verify-full"]},
    "keda.kafkaVersion": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+(\.[0-9]+)?$"},
    "keda.prometheus.serverAddress": URL,
    "keda.pushScaler.port": PORT,
    "keda.pushScaler.from": {**_PEERS, "minItems": 1},  # an empty list would be everybody
    **{f"keda.pushScaler.tls.{name}": SECRET for name in ("existingSecret", "clientSecret")},
    **{f"keda.pushScaler.tls.{name}": SECRET_KEY for name in ("certKey", "keyKey", "caKey", "clientCaKey")},
    "ingress.annotations": TEXTS,
    "ingress.hosts": many(closed({"host": {"type": "string"}, "paths": PATHS}, "paths")),
    "ingress.tls": many(reference("ingressTls")),
    "httpRoute.annotations": TEXTS,
    "httpRoute.parentRefs": many(PARENT),
    "httpRoute.hostnames": many({"type": "string", "minLength": 1}),
    "httpRoute.paths": many(ROUTE),
    "networkPolicy.apiFrom": _PEERS,
    "networkPolicy.notifyFrom": _PEERS,
    "networkPolicy.metricsFrom": _PEERS,
    **{
        f"networkPolicy.{server}.to": _PEERS
        for server in ("dns", "postgres", "kafka", "redis", "smtp", "msg91", "otel")
    },
    **{f"networkPolicy.{server}.port": PORT for server in ("dns", "postgres", "redis")},
    "networkPolicy.kafka.port": {**PORT, "type": ["integer", "null"]},
    "serviceAccount.annotations": TEXTS,
    "setup.activeDeadlineSeconds": SOME,
    "setup.egress": many(reference("egressRule")),
    "setup.elsewhere": many({"type": "string", "minLength": 1}),
    "setup.podAnnotations": TEXTS,
    "setup.resources": reference("resources"),
    "strimzi.replicas": {"type": ["integer", "null"], "minimum": 1, "maximum": 32767},
    "strimzi.annotations": TEXTS,
    "prune.schedule": CRON,
    **{f"prune.{age}": AGE for age in ("succeeded", "dead", "deadLetters", "cancelled")},
    "prune.podAnnotations": TEXTS,
    "prune.resources": reference("resources"),
    "tests.timeoutSeconds": SOME,
    "tests.resources": reference("resources"),
    "monitoring.podMonitor.labels": TEXTS,
    "monitoring.podMonitor.interval": INTERVAL,
    "monitoring.prometheusRule.labels": TEXTS,
    "monitoring.prometheusRule.ruleLabels": TEXTS,
    "monitoring.prometheusRule.runbookUrl": URL,
    "monitoring.prometheusRule.disabled": many({"type": "string"}),
    "monitoring.dashboards.labels": TEXTS,
    "monitoring.dashboards.annotations": TEXTS,
    "postgresMaxConnections": SOME,
    "extraObjects": many({"type": ["string", "object"]}),
}
