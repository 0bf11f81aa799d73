"""Kubernetes puts variables of its own before every pod, one set for each Service of the namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

from taskflux.cli.reference import sections
from taskflux.worker.settings import WrongSettings, load, load_provider

SERVICES = {
    "taskflux": 80,
    "taskflux-ingest": 80,
    "taskflux-notify": 8080,
    "taskflux-http": 80,
    "taskflux-postgres": 5432,
    "taskflux-kafka": 9092,
    "taskflux-redis": 6379,
    "taskflux-smtp": 25,
    "taskflux-msg91": 443,
    "taskflux-api": 80,
    "taskflux-otel": 4318,
}
NEEDED = {
    "TASKFLUX_POSTGRES__DSN": "postgresql://db.example.org/taskflux",
    "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092",
}


def links(service: str, port: int, protocol: str = "tcp") -> Iterator[tuple[str, str]]:
    """What the kubelet sets for one Service (k8s.io/kubernetes pkg/kubelet/envvars)."""
    name, address = service.upper().replace("-", "_"), "10.0.0.1"
    url = f"{protocol}://{address}:{port}"
    head = f"{name}_PORT_{port}_{protocol.upper()}"
    yield f"{name}_SERVICE_HOST", address
    yield f"{name}_SERVICE_PORT", str(port)
    yield f"{name}_SERVICE_PORT_HTTP", str(port)
    yield f"{name}_SERVICE_PORT_METRICS", "9090"
    yield f"{name}_PORT", url
    yield head, url
    yield f"{head}_PROTO", protocol
    yield f"{head}_PORT", str(port)
    yield f"{head}_ADDR", address


@pytest.fixture(autouse=True)
def _only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TASKFLUX_")]:
        monkeypatch.delenv(name)
    given(monkeypatch, NEEDED)


def given(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("service", SERVICES)
def test_the_variables_of_a_service_are_ignored(service: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("postgres", "kafka")
    providers = {name: model for name, model in sections().items() if name in ("smtp", "msg91")}
    provided = {name: load_provider(name, model) for name, model in providers.items()}
    given(monkeypatch, dict(links(service, SERVICES[service], protocol)))
    assert load("postgres", "kafka") == before
    assert {name: load_provider(name, model) for name, model in providers.items()} == provided


@pytest.mark.parametrize("section", sections())
def test_a_service_named_like_a_section_is_let_through(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, dict(links(f"taskflux-{section}", 8080)))
    load("postgres", "kafka")


def test_a_real_mistake_beside_them_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, dict(links("taskflux-http", 80)))
    monkeypatch.setenv("TASKFLUX_HTTP_PORT", "8081")
    with pytest.raises(WrongSettings, match="TASKFLUX_HTTP__PORT"):
        load("postgres", "kafka")
