"""Common mistakes in values: each is refused with the name of the key, or with what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.chart.cases import LEAST, WITH_ALL_SERVERS
from tests.chart.rendering import Refused, merged, render

Values = Mapping[str, Any]


def handler(name: str, **values: Any) -> Values:
    return {"handlers": {name: values}}


def scaling(name: str, **values: Any) -> Values:
    return handler(name, scaling=values)


def strimzi(more: Values) -> Values:
    """A KafkaUser on top of values that it fits."""
    kafka = {"securityProtocol": "SASL_SSL", "saslMechanism": "SCRAM-SHA-512"}
    return merged(
        {
            "strimzi": {"cluster": "shop", "user": True},
            "setup": {"useHelmHooks": False},
            "settings": {"kafka": kafka},
            "secrets": {"kafka": {"existingSecret": "taskflux", "passwordKey": "password"}},
        },
        more,
    )


MISTAKES: Mapping[str, tuple[Values, str]] = {
    "a misspelt key at the top": ({"handelrs": {}}, "handelrs"),
    "a misspelt key of a handler": (handler("process-email", scalling={}), "scalling"),
    "a misspelt key below a handler": (scaling("process-email", maxReplica=3), "maxReplica"),
    "a misspelt key of the defaults": ({"handlerDefaults": {"replica": 3}}, "replica"),
    "a misspelt setting": ({"settings": {"kafka": {"bootstrapServer": "kafka:9092"}}}, "bootstrapServer"),
    "a misspelt setting of a provider": ({"settings": {"smtp": {"sendr": "a@example.org"}}}, "sendr"),
    "a misspelt setting of one handler": (handler("relay", settings={"relay": {"bach": 3}}), "bach"),
    "a misspelt section of settings": ({"settings": {"kafak": {}}}, "kafak"),
    "a misspelt key of a secret": ({"secrets": {"postgres": {"existingSecrets": "x"}}}, "existingSecrets"),
    "a misspelt key of the monitoring": ({"monitoring": {"podmonitor": {}}}, "podmonitor"),
    "a number where a text stands": ({"image": {"tag": 1.5}}, "image.*tag"),
    "a text where a number stands": (handler("relay", replicas="two"), "relay.*replicas"),
    "a text where a list stands": ({"imagePullSecrets": "registry"}, "imagePullSecrets"),
    "a protocol that Kafka has not": ({"settings": {"kafka": {"securityProtocol": "SASL"}}}, "securityProtocol"),
    "no brokers": ({"settings": {"kafka": {"bootstrapServers": ""}}}, r"settings\.kafka\.bootstrapServers"),
    "no database": ({"secrets": {"postgres": {"existingSecret": ""}}}, r"secrets\.postgres\.existingSecret"),
    "a CA of a Redis that is not used": (
        {"secrets": {"redis": {"caSecret": "cache-ca"}}},
        r"secrets\.redis\.caSecret[\s\S]*secrets\.redis\.existingSecret",
    ),
    "a CA of a Kafka without TLS": ({"secrets": {"kafka": {"caSecret": "kafka-ca"}}}, "securityProtocol is PLAINTEXT"),
    "a mode of TLS that PostgreSQL has not": ({"secrets": {"postgres": {"sslMode": "full"}}}, "sslMode"),
    "SASL without a secret": (
        {"settings": {"kafka": {"securityProtocol": "SASL_SSL"}}},
        r"SASL_SSL[\s\S]*secrets\.kafka|secrets\.kafka[\s\S]*SASL",
    ),
    "a relay that may go to zero": (
        scaling("relay", minReplicas=0),
        "relay[\\s\\S]*minReplicas|minReplicas[\\s\\S]*relay",
    ),
    "an API that may go to zero": (
        scaling("ingest", minReplicas=0),
        "ingest[\\s\\S]*minReplicas|minReplicas[\\s\\S]*ingest",
    ),
    "a notify that may go to zero": (
        scaling("notify", minReplicas=0),
        "notify[\\s\\S]*minReplicas|minReplicas[\\s\\S]*notify",
    ),
    "more replicas than partitions": (
        scaling("process-email", maxReplicas=24),
        "email.*maxReplicas.*24.*12 partitions",
    ),
    "an Ingress whose controller may not call": (
        {"ingress": {"enabled": True}, "networkPolicy": {"apiFrom": []}},
        r"ingress\.enabled is true, but networkPolicy\.apiFrom is empty",
    ),
    "a route whose Gateway may not call": (
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}, "networkPolicy": {"apiFrom": []}},
        r"httpRoute\.enabled is true, but networkPolicy\.apiFrom is empty",
    ),
    "a push scaler that nobody is named for, so that everybody may call it": (
        {"keda": {"pushScaler": {"enabled": True, "from": []}}},
        "from",
    ),
    "a notify that asks for a key, and handlers that have none": (
        {"settings": {"notify": {"url": "http://notify"}}},
        r"settings\.notify\.url is set, but secrets\.notify\.existingSecret is not",
    ),
    "a mode that there is not": ({"settings": {"auth": {"mode": "maybe"}}}, "mode|maybe"),
    "a bootstrap key among the settings": ({"settings": {"auth": {"bootstrapKey": "x"}}}, "bootstrapKey"),
    "fewer at most than at least": (scaling("process-email", minReplicas=4, maxReplicas=2), "minReplicas"),
    "a password among the settings": ({"settings": {"smtp": {"password": "x"}}}, "password"),
    "a DSN among the settings": ({"settings": {"postgres": {"dsn": "postgresql://u:p@h/d"}}}, "dsn"),
    "a SASL password among the settings": ({"settings": {"kafka": {"saslPassword": "x"}}}, "saslPassword"),
    "an auth key among the settings": ({"settings": {"msg91": {"authKey": "x"}}}, "authKey"),
    "a Redis URL among the settings": ({"settings": {"redis": {"url": "redis://:p@h"}}}, "url"),
    "a handler's name that no object can have": (handler("Process_Email"), "Process_Email"),
    "a handler's name that is too long": (handler("x" * 64), "x{10}"),
    "a task type that no topic can have": (handler("mine", target="a.b:c", taskType="My Type"), "taskType|My Type"),
    "a task type that is reserved": (handler("mine", target="a.b:c", taskType="dlq"), "taskType|dlq"),
    "a secret that there is not": (handler("relay", secrets=["postgress"]), "relay/secrets/0.*'postgres'"),
    "a grace period within the drain": (
        handler("process-email", drainSeconds=900, terminationGracePeriodSeconds=600),
        "terminationGracePeriodSeconds[\\s\\S]*drainSeconds|drainSeconds[\\s\\S]*terminationGracePeriodSeconds",
    ),
    "a drain that is set as a setting": ({"settings": {"worker": {"drainSeconds": 5}}}, "drainSeconds"),
    "a pool that is set as a setting": ({"settings": {"postgres": {"poolSize": 5}}}, "poolSize"),
    "requests without a Prometheus": (scaling("ingest", requestRate=50), r"keda\.prometheus\.serverAddress"),
    "a router without its topic": (handler("router", enabled=True), r"settings\.router\.topic"),
    "lag without a topic": (handler("mine", target="a.b:c"), "mine[\\s\\S]*(taskType|topic)"),
    "a handler that nobody knows": (handler("process-emial"), "process-emial"),
    "an invalid digest": ({"image": {"digest": "latest"}}, "digest"),
    "an Ingress to a handler without a Service": (
        {
            "ingress": {
                "enabled": True,
                "hosts": [
                    {"host": "x.example.com", "paths": [{"path": "/", "pathType": "Prefix", "handler": "relay"}]}
                ],
            }
        },
        "relay",
    ),
    "a second container of the handler's own name": (
        handler("relay", extraContainers=[{"name": "taskflux", "image": "x"}]),
        "handlers.relay has another container named taskflux",
    ),
    "a misspelt field of an extra container": (
        handler("relay", initContainers=[{"name": "wait", "imge": "x"}]),
        "imge",
    ),
    "one port for the API and the metrics": (
        handler("ingest", port=8081),
        "handlers.ingest.managementPort and its port are both 8081",
    ),
    "a rollout that fails before its pods may count": (
        handler("relay", minReadySeconds=60, progressDeadlineSeconds=30),
        r"progressDeadlineSeconds \(30\).*minReadySeconds \(60\)",
    ),
    "a route without a Gateway": ({"httpRoute": {"enabled": True}}, r"httpRoute\.parentRefs"),
    "a route without paths": (
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "paths": []}},
        r"httpRoute\.paths is empty",
    ),
    "a route to a handler without a Service": (
        {
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "public"}],
                "paths": [{"path": "/", "handler": "relay"}],
            }
        },
        r"httpRoute\.paths leads / to the handler .*relay",
    ),
    "a misspelt key of a Gateway": ({"httpRoute": {"parentRefs": [{"name": "x", "section": "y"}]}}, "section"),
    "a user who is root": ({"handlerDefaults": {"podSecurityContext": {"runAsUser": 0}}}, "runAsUser"),
    "an invalid schedule": ({"prune": {"schedule": "daily at three"}}, "schedule"),
    "a pruning of nothing": ({"prune": {"succeeded": "", "cancelled": ""}}, r"prune\.enabled"),
    "mails without a server": (
        {"settings": {"smtp": {"host": ""}}, **handler("process-email", enabled=True)},
        r"handlers\.process-email\.enabled is true, but settings\.smtp\.host is not set",
    ),
    "short messages without a secret": (
        {"secrets": {"msg91": {"existingSecret": ""}}, **handler("process-sms", enabled=True)},
        r"handlers\.process-sms\.enabled is true, but secrets\.msg91\.existingSecret is not set",
    ),
    "a notify with nobody to deliver through": (
        {
            "settings": {"smtp": {"host": ""}},
            "secrets": {"msg91": {"existingSecret": ""}},
            **handler("notify", enabled=True),
        },
        r"settings\.smtp\.host or secrets\.msg91\.existingSecret is not set",
    ),
    "a user of Strimzi's, and hooks that need it first": (
        strimzi({"settings": {"kafka": {"saslUsername": "taskflux"}}, "setup": {"useHelmHooks": True}}),
        r"strimzi\.user is true, but the set-up is made of hooks",
    ),
    "a user of Strimzi's without a name": (strimzi({}), r"settings\.kafka\.saslUsername is not set"),
    "a user of Strimzi's who cannot log in": (
        strimzi({"settings": {"kafka": {"saslUsername": "taskflux", "saslMechanism": "PLAIN"}}}),
        r"set settings\.kafka\.securityProtocol=SASL_SSL and settings\.kafka\.saslMechanism=SCRAM-SHA-512",
    ),
    "an invalid age": ({"prune": {"succeeded": "a month"}}, "succeeded"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_its_name(mistake: str) -> None:
    values, said = MISTAKES[mistake]
    with pytest.raises(Refused) as refused:
        render(merged(LEAST, values))
    assert re.search(said, str(refused.value)), str(refused.value)


def test_the_values_without_the_mistakes_render() -> None:
    render(LEAST)
    render(LEAST, WITH_ALL_SERVERS)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(Refused) as refused:
        render(merged(LEAST, {"handelrs": {}}, scaling("relay", minReplica=1), {"image": {"tagg": "x"}}))
    assert all(name in str(refused.value) for name in ("handelrs", "minReplica", "tagg"))
