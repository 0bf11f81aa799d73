"""The real thing: Prometheus scrapes a running stack under a mixed load with failures, and then with seeded faults.

One Prometheus has the chart's alerts as they are, from the beginning to the end; every panel's and every alert's
expression is asked of it. Another one, begun when the load is through, has the same alerts with their times divided by
20 (see `shortened`), and sees the faults: each has to fire the one right alert, and no other.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from taskflux.local.observe import Prometheus, rule_file
from taskflux.local.ports import free_port
from tests.drills.dev import Dev
from tests.observability.alerts import ALERTS, ROOT, rules, write_rules
from tests.observability.boards import Question, expressions, questions
from tests.observability.load import (
    DEAD,
    DEAD_AGAIN,
    ENDING_WELL,
    ENDING_WELL_AGAIN,
    SECRET,
    Load,
    mail,
    simulated,
    sms,
)
from tests.observability.mail import MailServer
from tests.observability.prometheus import Client, NoPromQL, Series
from tests.observability.promql import filled, readings
from tests.observability.shortened import shortened
from tests.observability.tools import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRAPE = 2.0
DIVISOR = 20.0

QUIET = {
    "overview: annotation Deployments": "one version runs from the beginning to the end",
    "handler: annotation Deployments": "the same",
    "stores: annotation Deployments": "the same",
    "handler: Its scaling / Duplicates [swept]": "no worker is lost",
    "handler: Its processes / Blocked event loop [{{type}}]": "no handler blocks its loop",
    "stores: Relay / Recovered [lost worker: {{state}}]": "no worker is lost",
    "stores: Relay / Recovered [published again: {{type}}]": "Kafka loses nothing",
    "stores: Relay / Push scaler: streams [streams]": "there is no KEDA",
    "stores: Relay / Push scaler: calls [{{method}} {{outcome}}]": "there is no KEDA",
    "stores: PostgreSQL / Failed statements [{{error}}]": "PostgreSQL is there all the time",
    "stores: Kafka and Redis / Failures of Kafka [{{handler}} {{error}}]": "Kafka answers all the time",
    "stores: Kafka and Redis / Rebalances and errors [{{handler}} rebalances]": "no worker joins or leaves later",
    "stores: Kafka and Redis / Rebalances and errors [{{handler}} refused commits]": "Kafka refuses none",
    "stores: Kafka and Redis / Rebalances and errors [{{handler}} Redis]": "Redis is there all the time",
}
"""Queries without data under this load, with the reason: all others have to return data."""

BY_CHANCE = {
    "stores: API / Connections cut [{{how}}]": "a connection is idle for longer than ingest keeps it, or not",
}
"""Queries that may or may not return data, with the reason."""

QUIET_IN_ALERTS = {
    ("status", "=~", "5.."): "ingest answers nothing with 5xx while PostgreSQL is there",
}


@dataclass
class Scene:
    """What runs, and when what happened."""

    dev: Dev
    mail: MailServer
    load: Load
    api: httpx.AsyncClient
    whole: Client
    quick: Client
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    faults: dict[str, tuple[float, float]] = field(default_factory=dict)

    async def send(self, *tasks: dict[str, object]) -> None:
        for task in tasks:
            answer = await self.api.post("/tasks", json=task)
            assert answer.status_code == 202, answer.text

    async def fault(self, name: str, alert: str, open_as: str) -> None:
        """Wait until `alert` fires over the circuit that is `open_as`, and some rounds more; then for its end."""
        began = time.time()
        others = [task for number in range(4) for task in (sms(2000 + number), simulated(2000 + number))]
        await self.send(*(mail(2000 + number) for number in range(20)), *others)
        await self.quick.until(
            f"{alert}: {open_as}",
            f'max(taskflux_circuit_open_seconds{{provider="smtp",error_class="{open_as}"}})',
            lambda value: value > 0,
        )
        await self.send(*(mail(3000 + number) for number in range(10)))
        firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        await self.quick.until(f"{alert} fires", firing, lambda value: value > 0)
        seen = time.time()
        await self.quick.until("some more rounds", "time()", lambda now: now > seen + 10)
        self.faults[name] = began, time.time()

    async def healed(self) -> None:
        """The circuit is closed, no mail is waiting, and no alert fires."""
        await self.quick.until(
            "a closed circuit", 'max(taskflux_circuit_open{provider="smtp"})', lambda value: value == 0
        )
        waiting = 'sum(taskflux_tasks{type="email"}) + sum(taskflux_lag{type="email"})'
        await self.quick.until("no mail is waiting", waiting, lambda value: value == 0)
        await self.quick.until("quiet", 'count(ALERTS{alertstate="firing"})', lambda value: value == 0)


@pytest_asyncio.fixture(scope="module")
async def scene(servers_dir: Path) -> AsyncIterator[Scene]:
    """All of it has happened when the first test looks."""
    program("prometheus")
    directory = servers_dir / "proof"
    async with AsyncExitStack() as closing:
        server = MailServer()
        await server.start()
        closing.push_async_callback(server.stop)
        own = {"TASKFLUX_MSG91__WEBHOOK_SECRET": SECRET, "TASKFLUX_MSG91__RATE": "200", "PYTHONPATH": str(ROOT)}
        dev = Dev(directory / "data", server.environment | own)
        closing.callback(dev.kill_all)
        await dev.start()
        whole = await _prometheus(closing, directory, "whole", dev, rule_file(ALERTS.glob("*.yaml")))
        ports = json.loads((directory / "data/ports.json").read_text())
        api = await closing.enter_async_context(httpx.AsyncClient(base_url=dev.url, timeout=30, trust_env=False))
        notify = await closing.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['notify']}", timeout=30, trust_env=False)
        )
        load = Load(api, notify, f"127.0.0.1:{ports['kafka']}")
        await whole.until("the first scrape", "count(taskflux_build_info)", lambda value: value >= 7)
        await load.send_all()
        await _through(whole, ENDING_WELL, DEAD)
        await load.send_again()
        await _through(whole, ENDING_WELL + ENDING_WELL_AGAIN, DEAD + DEAD_AGAIN - 1)  # the one sent again was counted

        quick_rules = {name: shortened(rule, DIVISOR, 3 * SCRAPE) for name, rule in rules().items()}
        write_rules(quick_rules, directory / "quick.yaml")
        quick = await _prometheus(closing, directory, "quick", dev, (directory / "quick.yaml").read_text())
        scene = Scene(dev, server, load, api, whole, quick)
        await quick.until("the first scrape", "count(taskflux_measured_timestamp_seconds)", lambda value: value == 1)
        await server.stop()
        await scene.fault("SMTP is down", "TaskFluxCircuitOpen", "Unavailable")
        await server.start()
        await scene.healed()
        await server.refuse_the_password()
        await scene.fault("the password is wrong", "TaskFluxCredentialsRefused", "Misconfigured")
        await server.take_the_password()
        await scene.healed()
        scene.ended = time.time()
        yield scene
        assert await dev.stop() == 0


async def _prometheus(closing: AsyncExitStack, directory: Path, name: str, dev: Dev, rule_text: str) -> Client:
    target = dev.url.removeprefix("http://")
    server = Prometheus(
        program("prometheus"),
        directory / name,
        target,
        port=free_port(),
        log=directory / f"{name}.log",
        rules=rule_text,
        scrape_seconds=SCRAPE,
    )
    await closing.enter_async_context(server)
    client = Client(server.url)
    closing.push_async_callback(client.close)
    return client


async def _through(prometheus: Client, succeeded: int, dead: int) -> None:
    """The load has ended so, and was scraped."""
    count = 'sum(taskflux_attempts_total{outcome="succeeded"})'
    await prometheus.until("the load is through", count, lambda value: value >= succeeded)
    await prometheus.until("the dead letters", "sum(taskflux_dead_letters_open)", lambda value: value >= dead)


def has_data(found: list[Series]) -> bool:
    return any(not math.isnan(value) for series in found for _, value in series.values)


async def test_every_panels_expression_parses_and_returns_data(scene: Scene) -> None:
    silent = set()
    for what, expr in expressions().items():
        await scene.whole.query(expr, scene.ended)
        if not has_data(await scene.whole.range(expr, scene.began - 120, scene.ended)):
            silent.add(what)
    assert silent - BY_CHANCE.keys() == QUIET.keys()


async def test_every_series_of_a_panel_has_a_name_of_its_own(scene: Scene) -> None:
    for panel, asked in _by_panel().items():
        names: list[str] = []
        for question in asked:
            found = await scene.whole.range(filled(question.expr, handler="email"), scene.began - 120, scene.ended)
            for series in found:
                assert all(series.labels.get(label) for label in re.findall(r"{{(\w+)}}", question.legend)), (
                    f"{question}: {series.labels}"
                )
                names.append(re.sub(r"{{(\w+)}}", partial(_label, series), question.legend))
        assert len(set(names)) == len(names), f"{panel}: {sorted(names)}"


def _label(series: Series, found: re.Match[str]) -> str:
    return series.labels[found[1]]


def _by_panel() -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in questions():
        if "annotation" not in question.panel:
            found.setdefault(f"{question.board}: {question.panel}", []).append(question)
    return found


@pytest.mark.parametrize("handler", ["email", "sms", "simulated"])
async def test_the_handlers_dashboard_shows_each_handler(scene: Scene, handler: str) -> None:
    silent = set()
    for what, expr in expressions(handler).items():
        if what.startswith("handler: ") and not has_data(await scene.whole.range(expr, scene.began - 120, scene.ended)):
            silent.add(what.removeprefix("handler: "))
    own = {
        "email": {"Its provider / Receipts [{{state}}]"},
        "sms": {"Its work / Errors [{{error_class}}]"},
        "simulated": {
            "Its provider / Circuit [{{provider}}]",
            "Its provider / Calls [{{provider}} {{outcome}}]",
            "Its provider / Time of a call [p50]",
            "Its provider / Time of a call [p95]",
            "Its provider / Time of a call [p99]",
            "Its provider / Rate limit [p95]",
            "Its provider / Receipts [{{state}}]",
        },
    }[handler]
    assert silent == own | {what.removeprefix("handler: ") for what in QUIET if what.startswith("handler: ")}


async def test_every_alerts_expression_is_evaluated_and_all_that_it_reads_is_there(scene: Scene) -> None:
    seen = {rule["name"]: rule for rule in await scene.whole.rules()}
    assert seen.keys() == rules().keys()
    for name, rule in seen.items():
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), name
        await scene.whole.query(rules()[name]["expr"], scene.ended)
        for reading in readings(rules()[name]["expr"]):
            if not any(matched in QUIET_IN_ALERTS for matched in reading.matched):
                found = await scene.whole.range(reading.selector, scene.began - 120, scene.ended)
                assert found, f"{name}: nothing is {reading.selector}"


async def test_an_invalid_expression_is_detected(scene: Scene) -> None:
    with pytest.raises(NoPromQL):
        await scene.whole.query("sum by (type (taskflux_lag)")
    assert not has_data(await scene.whole.range("taskflux_lagg", scene.began - 120, scene.ended))


@pytest.mark.parametrize(
    ("fault", "alert"),
    [("SMTP is down", "TaskFluxCircuitOpen"), ("the password is wrong", "TaskFluxCredentialsRefused")],
)
async def test_a_fault_fires_its_alert_and_no_other(scene: Scene, fault: str, alert: str) -> None:
    assert await scene.quick.fired(*scene.faults[fault]) == {alert}


async def test_nothing_else_fired_from_the_first_fault_to_the_end(scene: Scene) -> None:
    fired = await scene.quick.fired(scene.faults["SMTP is down"][0], scene.ended)
    assert fired == {"TaskFluxCircuitOpen", "TaskFluxCredentialsRefused"}


async def test_the_load_with_its_dead_letters_fires_what_it_should_and_no_more(scene: Scene) -> None:
    fired = await scene.whole.fired(scene.began - 120, scene.ended)
    assert "TaskFluxDeadLettersArriving" in fired
    assert fired <= {"TaskFluxDeadLettersArriving", "TaskFluxCircuitOpen", "TaskFluxCredentialsRefused"}
